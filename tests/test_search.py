"""The guard's search names the layer to blame, gives up in words, keeps to its time; its plot; networks of all ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="int8 graphs are written with onnx")
pytest.importorskip("onnxruntime", reason="ONNX Runtime judges")

from onnx import TensorProto, helper, numpy_helper

import edgeseg
from edgeseg import images as image_files
from edgeseg._canvas import BLUE, ORANGE
from edgeseg.bundle import Bundle
from edgeseg.calibration.datasets import Dataset, open_dataset
from edgeseg.calibration.judging import Limit, Measured
from edgeseg.calibration.plot import draw
from edgeseg.calibration.recipe import Calibrated, Guard, calibrate
from edgeseg.calibration.search import LayerCost, Outcome, Trial
from edgeseg.calibration.verification import verify
from edgeseg.errors import CalibrationError, InputError
from edgeseg.testing import TINY, street_scene

SIZE = (64, 96)
SPLIT = (6, 6)
HEADING = 76
"""Rows of the plot above its panels."""
LIMIT = Limit(max_disagreement=3)
INPUT: dict[str, Any] = {"input_size": SIZE, "mean": (0.4, 0.5, 0.6), "std": (0.25, 0.25, 0.25)}


def write_network(path: Path, channels: int = 5, tail: str = "none", outlier: float = 1) -> Path:
    """Convolutions a to e, to a quarter of the input, and the tail that its author gave them.

    One channel between b and c is `outlier` times as large, and weighs as much less in c, which changes nothing in
    float: in 8 bits nothing is left of the other channels for c to read.
    """
    noise = np.random.default_rng(3)
    shapes = {
        "a": (8, 3, 3, 3),
        "b": (16, 8, 3, 3),
        "c": (16, 16, 1, 1),
        "d": (16, 16, 3, 3),
        "e": (channels, 16, 1, 1),
    }
    weights = {n: (noise.standard_normal(s) * np.sqrt(2 / np.prod(s[1:]))).astype("f") for n, s in shapes.items()}
    weights["b"][5] *= outlier
    weights["c"][:, 5] /= outlier
    nodes, x = [], "image"
    for name, weight in weights.items():
        pad, stride = weight.shape[2] // 2, 2 if name in "ab" else 1
        settings = {"strides": [stride] * 2, "pads": [pad] * 4}
        nodes.append(helper.make_node("Conv", [x, f"{name}.weight"], [name], name, **settings))
        x = name
        if name != "e":
            x = f"{name}.relu"
            nodes.append(helper.make_node("Relu", [name], [x], x))
    resize = ("Resize", ["", "scales"], {"mode": "linear"})
    tails = {"softmax": [("Softmax", [], {"axis": 1}), resize], "sigmoid": [resize, ("Sigmoid", [], {})], "none": []}
    for kind, inputs, settings in tails[tail]:
        nodes.append(helper.make_node(kind, [x, *inputs], [kind], kind, **settings))
        x = kind
    size = (16, 24) if tail == "none" else SIZE
    stored = [numpy_helper.from_array(value, f"{name}.weight") for name, value in weights.items()]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, *SIZE])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["n", channels, *size])],
        [*stored, numpy_helper.from_array(np.array([1, 1, 4, 4], "f"), "scales")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def outlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outlier")
    file = write_network(folder / "net.onnx", outlier=1000)
    return edgeseg.export(file, folder / "net.edgeseg", classes=list("vwxyz"), **INPUT).path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    """Images to calibrate on, and others for the guard."""
    folder = tmp_path_factory.mktemp("scenes")
    for seed in range(sum(SPLIT)):
        image_files.write(folder / f"{seed}.png", street_scene(seed, SIZE)[0])
    images, guard = open_dataset(folder, classes=Bundle.open(TINY).manifest.classes).split(0, *SPLIT)
    return images, guard


@pytest.fixture(scope="module")
def found(outlier: Path, scenes: tuple[Dataset, Dataset], tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    """The network in int8 under a guard. Not to be changed."""
    guard = Guard(scenes[1], LIMIT)
    return calibrate(outlier, tmp_path_factory.mktemp("found") / "a.edgeseg", scenes[0], guard=guard)


def test_exactly_the_layer_to_blame_stays_in_float(found: Calibrated) -> None:
    for outcome, encoding in zip(found.outcomes, ("cpu", "tensorrt"), strict=True):
        assert outcome.encoding == encoding
        assert outcome.float_layers == ("c",)
        assert outcome.holds
        assert all(trial.measured.agreement < 0.95 for trial in outcome.trials if not trial.float_layers)
        costs = {cost.layer: cost.agreement_gain for cost in outcome.layers}
        assert set(costs) == ({"a", "b", "c", "d"} if encoding == "cpu" else set())
        assert costs.pop("c", 100) > 5
        assert max(costs.values(), default=0) < 1
        how = found.bundle.variant(4, "int8", outcome.encoding).calibration
        assert how is not None
        assert (how.method, how.float_layers) == (outcome.method, ("c",))


def test_what_was_left_in_float_stays_so_without_images(found: Calibrated, tmp_path: Path) -> None:
    again = calibrate(found.bundle.path, tmp_path / "a.edgeseg", None)
    assert [outcome.float_layers for outcome in again.outcomes] == [("c",), ("c",)]
    for name, info in found.bundle.manifest.files.items():
        assert again.bundle.manifest.files[name] == info, name


def test_a_layer_asked_for_in_float_needs_no_search(
    outlier: Path, scenes: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    images, guard = scenes
    made = calibrate(
        outlier, tmp_path / "a.edgeseg", images, guard=Guard(guard, LIMIT), method="minmax", float_layers=["c"]
    )
    for outcome in made.outcomes:
        assert [(trial.method, trial.float_layers) for trial in outcome.trials] == [("minmax", ("c",))]
        assert outcome.holds
    with pytest.raises(InputError, match="no layer 'f' in this network"):
        calibrate(outlier, tmp_path / "b.edgeseg", images, float_layers=["f"])


@pytest.mark.parametrize(
    ("budget", "why"),
    [
        (600, r"up to all layers but one in float\): allow more loss; nothing"),
        (0, r"time ran out; no time for percentile-99.99, .*\): give more time than 0 s, or allow more loss; nothing"),
    ],
)
def test_a_limit_that_cannot_be_kept_writes_nothing(
    outlier: Path, scenes: tuple[Dataset, Dataset], tmp_path: Path, budget: float, why: str
) -> None:
    images, guard = scenes
    limit = Guard(guard, Limit(max_disagreement=0 if budget else 1), budget)
    with pytest.raises(CalibrationError, match=f"output stride 4 in encoding cpu loses too much: .*{why} was written"):
        calibrate(outlier, tmp_path / "a.edgeseg", images, guard=limit, encodings=["cpu"])
    assert not list(tmp_path.iterdir())


def test_no_time_still_measures_what_is_written(scenes: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    images, guard = scenes
    made = calibrate(TINY, tmp_path / "a.edgeseg", images, guard=Guard(guard, budget_s=0), output_strides=[16])
    for outcome in made.outcomes:
        assert outcome.holds
        assert [trial.method for trial in outcome.trials] == ["minmax"]
        assert outcome.notes[0] == "no time for percentile-99.99, percentile-99.9, mse, entropy"
    assert made.outcomes[0].notes[1:] == ["7 layers were not measured: no time"]


@pytest.mark.parametrize(
    ("tail", "channels", "settings", "said"),
    [
        ("sigmoid", 1, {}, ("sigmoid", "logits", 1)),
        ("softmax", 4, {}, ("softmax", "probabilities", 1)),
        ("none", 4, {"dynamic_batch": True}, ("softmax", "logits", None)),
    ],
)
def test_other_heads_and_any_batch(
    scenes: tuple[Dataset, Dataset],
    tmp_path: Path,
    tail: str,
    channels: int,
    settings: dict[str, bool],
    said: tuple[Any, ...],
) -> None:
    file = write_network(tmp_path / "net.onnx", channels, tail)
    base = edgeseg.export(file, tmp_path / "a.edgeseg", classes=list("wxyz")[: max(2, channels)], **INPUT, **settings)
    images, guard = scenes
    made = calibrate(base.path, tmp_path / "b.edgeseg", images, guard=Guard(guard, Limit(max_disagreement=5)))
    manifest = made.bundle.manifest
    assert (manifest.head, manifest.values, manifest.variants[-1].batch) == said
    assert all(check.ok for check in verify(made.bundle.path).golden if check.variant.precision == "int8")
    frames = [street_scene(seed, SIZE)[0] for seed in range(50, 53)]
    with (
        edgeseg.load(made.bundle.path, precision="fp32", backend="ort", cache=None) as fp32,
        edgeseg.load(made.bundle.path, precision="int8", backend="ort", cache=None) as int8,
    ):
        results = int8.batch(frames)
        same = [fp32(frame).class_map == result.class_map for frame, result in zip(frames, results, strict=True)]
        np.testing.assert_array_equal(int8(frames[2]).class_map, results[2].class_map)
    assert np.mean(same) > 0.95


@pytest.mark.parametrize(
    ("measured", "holds", "text"),
    [
        (Measured(9, None, 0.995), True, "0.50% of pixels changed on 9 guard images (limit 1%)"),
        (Measured(9, None, 0.9899), False, "1.01% of pixels changed on 9 guard images (limit 1%)"),
        (Measured(9, 0.1, 0.5), True, "+0.10 mIoU on 9 guard images (limit -0.2)"),
        (Measured(9, -0.2, 0.5), True, "-0.20 mIoU on 9 guard images (limit -0.2)"),
        (Measured(9, -0.21, 0.999), False, "-0.21 mIoU on 9 guard images (limit -0.2)"),
    ],
)
def test_labels_decide_where_there_are_any(measured: Measured, holds: bool, text: str) -> None:
    assert (Limit().holds(measured), Limit().text(measured)) == (holds, text)


def test_the_plot_has_a_panel_per_variant_that_was_searched(found: Calibrated) -> None:
    both = draw(found.outcomes, "a")
    cpu, tensorrt = (draw([outcome], "a") for outcome in found.outcomes)
    np.testing.assert_array_equal(both, np.concatenate([cpu, tensorrt[HEADING:]]))
    assert len(draw(found.outcomes[:1] * 5, "a")) - HEADING == 4 * (len(cpu) - HEADING)
    assert (cpu[HEADING:] == ORANGE).all(axis=2).any()  # c, in float
    with pytest.raises(InputError, match="nothing was measured, so there is nothing to plot"):
        draw([Outcome(16, "cpu", "mse")], "a")


def test_an_outlier_leaves_the_other_bars_to_be_seen() -> None:
    outcome = Outcome(8, "cpu", "mse", (), Limit(), Measured(9, -0.1, 0.99))
    lengths = []
    for worst in (-0.5, -50.0):
        outcome.trials = [Trial("mse", (), Measured(9, difference, 0.99)) for difference in (-0.1, worst)]
        lengths.append((draw([outcome], "a")[HEADING:] == BLUE).all(axis=2).any(axis=0).sum())
    assert lengths[0] == lengths[1] > 10


@pytest.mark.parametrize("labelled", [True, False])
def test_the_plot_holds_large_networks_and_long_searches(labelled: bool) -> None:
    difference = -0.1 if labelled else None
    measured = Measured(100, difference, 0.993)
    names = [f"a.network.of.very.many.{'long.' * (index % 7)}names.conv.{index}" for index in range(200)]
    outcome = Outcome(8, "cpu", "mse", tuple(names[:30]), Limit(), measured)
    outcome.trials = [Trial("percentile-99.99", tuple(names[:count]), measured, 9.0, 12.0) for count in range(31)]
    outcome.layers = [LayerCost(name, 1.5 - index / 100, difference, 12.5, 0.01) for index, name in enumerate(names)]
    plot = draw([outcome], "a")
    assert plot.dtype == np.uint8
    assert 500 < plot.shape[0] < 800
    for margin in (plot[2:, :10], plot[:, -10:], plot[-5:]):
        assert (margin == 255).all()
