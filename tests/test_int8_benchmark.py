"""The benchmarks of int8: the hard case is the same function, other quantizers' graphs and undone steps run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime.quantization")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")

from edgeseg.backends.base import Options
from edgeseg.backends.ort import OrtBackend
from edgeseg.benchmarks.hard_case import rescale
from edgeseg.benchmarks.int8_plain import normalisation, quantize_plainly
from edgeseg.benchmarks.int8_race import contender, race
from edgeseg.benchmarks.int8_steps import STEPS, Encoded
from edgeseg.benchmarks.networks import calm
from edgeseg.bundle import Bundle
from edgeseg.calibration.encode import encode_cpu
from edgeseg.calibration.network import read_network
from edgeseg.calibration.observe import observe
from edgeseg.calibration.ranges import tabulate
from edgeseg.calibration.rounding import round_weights
from edgeseg.errors import InputError
from edgeseg.models import deeplabv3
from edgeseg.surgery.onnx_file import Runner
from edgeseg.testing import TINY, street_scene

FRAMES = [street_scene(seed, (64, 96))[0] for seed in range(30, 33)]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open(TINY)


def test_the_hard_case_is_the_same_function() -> None:
    model = deeplabv3("mobilenet_v2", num_classes=3).eval()
    calm(model)
    x = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted, bottleneck = model(x), model.backbone.features[:2](x)
        rescale(model, (0, 2, 5), 128, 2)
        assert torch.equal(model(x), wanted)
        assert model.backbone.features[:2](x).abs().max() > 10 * bottleneck.abs().max()
    with pytest.raises(InputError, match="trunk is 6: must be 0 to 5"):
        rescale(model, [6], 128, 1)


def test_the_plain_graph_runs_and_leaves_the_normalisation_alone(bundle: Bundle, tmp_path: Path) -> None:
    fp32 = bundle.model(bundle.variant(16, "fp32"))
    assert len(normalisation(fp32)) == 4
    plain = contender(quantize_plainly(fp32, tmp_path / "plain.onnx", FRAMES, normalisation(fp32)), fp32)
    with OrtBackend().open(plain, "cpu", Options("int8"), None) as session:
        assert {"QLinearConv"} <= {layer.kind for layer in session.layers()}
    found = race("ort", {"fp32": fp32, "plain": plain}, FRAMES, 2)
    assert found.agreement["fp32"] == 1
    assert found.agreement["plain"] > 0.9
    assert found.ms("plain") > 0
    assert found.ratio("fp32", "fp32").median == 1
    with pytest.raises(InputError, match="backend is 'reference': choose openvino or ort"):
        race("reference", {"fp32": fp32}, FRAMES, 1)


def test_undone_steps_change_little(bundle: Bundle) -> None:
    network = read_network(bundle, bundle.variant(16, "fp32"))
    seen = observe(network, FRAMES, len(FRAMES))
    ranges = tabulate("tiny", seen, ()).methods["minmax"]
    weights = {layer.name: round_weights(*network.weights(layer), seen.moments[layer.name]) for layer in network.layers}
    encoded = Encoded(encode_cpu(network, ranges, weights), network, ranges)
    wanted = Runner(encoded.graph).run({"pixels": FRAMES[0][None]}, ["logits"])[0]
    for name, undo in STEPS.items():
        undone = undo(encoded).graph
        found = Runner(undone).run({"pixels": FRAMES[0][None]}, ["logits"])[0]
        assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max(), name
    assert len(undone.graph.node) > len(encoded.graph.graph.node)
