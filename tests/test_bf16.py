"""Precision bf16: OpenVINO's own bf16 where the CPU has it, a clear refusal elsewhere, and only by name."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeseg
from edgeseg import images, registry
from edgeseg._machine import processor
from edgeseg.backends.base import Backend, Options
from edgeseg.benchmarks.grid import grid
from edgeseg.benchmarks.raw import _OpenVino, open_raw
from edgeseg.bundle import Bundle, write
from edgeseg.calibration.verification import verify
from edgeseg.cli import main
from edgeseg.compiling import compile_bundle
from edgeseg.decode import usable_cpus
from edgeseg.errors import BackendError, BundleError, GoldenError, InputError
from edgeseg.manifest import TOLERANCES, Tuned, loads
from edgeseg.testing import TINY, BackendConformance, FakeBackend, street_scene

openvino = pytest.importorskip("openvino")

HERE = registry.get("openvino").computes_bf16("cpu")
needs_bf16 = pytest.mark.skipif(not HERE, reason="this CPU has no bf16")
TUNED = Tuned(processor(), usable_cpus(), "openvino", "cpu", "bf16", 8, 0, (64, 96), 1, "2026-01-02T03:04:05+00:00")


@needs_bf16
class TestOpenVinoBf16(BackendConformance):
    precision = "bf16"

    def make_backend(self) -> Backend:
        return registry.get("openvino")


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that has it not, as OpenVINO tells it."""
    asked = openvino.Core.get_property

    def get_property(core: Any, device: str, name: str) -> Any:
        found = asked(core, device, name)
        return [one for one in found if one != "BF16"] if name == "OPTIMIZATION_CAPABILITIES" else found

    monkeypatch.setattr(openvino.Core, "get_property", get_property)


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    bundle = Bundle.open(TINY)
    files = {name: (TINY / name).read_bytes() for name in bundle.manifest.files}
    return write(tmp_path / "tuned.edgeseg", dataclasses.replace(bundle.manifest, tuned=(TUNED,)), files).path


@needs_bf16
def test_it_is_what_openvino_computes_in_bf16(tmp_path: Path) -> None:
    bundle = Bundle.open(edgeseg.EMBEDDED)
    variant = bundle.variant(32, "fp32")
    batch = bundle.golden(variant).frame[None]
    graph = bundle.file(variant.file)
    config = {"INFERENCE_PRECISION_HINT": openvino.Type.bf16, "PERFORMANCE_HINT": "LATENCY"}
    oracle = openvino.Core().compile_model(graph, "CPU", config)(batch)[0]
    model, backend = bundle.model(variant), registry.get("openvino")
    found = {}
    for run, precision in (("cold", "bf16"), ("exact", "fp32"), ("warm", "bf16")):
        with backend.open(model, "cpu", Options(precision), tmp_path) as session:
            assert session.kept is not None
            assert session.kept.found == (run == "warm")
            info = session.describe()
            assert info.precision == precision
            found[run] = session.run(batch)
    np.testing.assert_array_equal(found["cold"], oracle)
    np.testing.assert_array_equal(found["warm"], oracle)
    error = float(np.abs(found["exact"] - oracle).max() / np.abs(found["exact"]).max())
    assert 1e-3 < error < TOLERANCES["bf16"].logits / 2
    raw = open_raw(graph, info, batch)
    assert isinstance(raw, _OpenVino)
    assert raw.request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT") == openvino.Type.bf16


@needs_bf16
def test_layers_and_the_choice_say_so() -> None:
    with edgeseg.load(TINY, backend="openvino", precision="bf16") as segmenter:
        assert "bf16" in segmenter.choice
        assert {layer.precision for layer in segmenter.execution().layers if layer.macs} == {"bf16"}


@pytest.mark.parametrize(
    ("backend", "device"), [("ort", "cpu"), ("simulate", "cpu"), ("openvino", "gpu"), ("openvino", "auto:cpu")]
)
def test_elsewhere_it_is_refused(backend: str, device: str) -> None:
    if backend != "openvino":
        pytest.importorskip("onnxruntime")
    told = rf"backend {backend} does not compute bf16 on {device} \(.*\): choose precision fp32$"
    with pytest.raises(BackendError, match=told):
        edgeseg.load(TINY, backend=backend, device=device, precision="bf16")


def test_where_the_cpu_has_it_not_everyone_refuses(
    without_bf16: None, tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = r"does not compute bf16 on cpu \(OpenVINO does on CPUs that have it, .*choose precision fp32"
    refused: tuple[Callable[[], object], ...] = (
        lambda: edgeseg.load(TINY, precision="bf16"),
        lambda: edgeseg.load(TINY, backend="openvino", precision="bf16"),
        lambda: compile_bundle(TINY, backend="openvino", precision="bf16"),
        lambda: grid(Bundle.open(TINY), None, ["openvino"], ["bf16"], 0),
        lambda: verify(TINY, backend="openvino", precision="bf16"),
    )
    for action in refused:
        with pytest.raises(BackendError, match=told) as caught:
            action()
        assert "\n" not in str(caught.value)
    with pytest.warns(RuntimeWarning, match=f"fell back from what was tuned here: .*{told}"):
        assert edgeseg.load(tuned).info.precision == "fp32"
    assert main(["verify", str(TINY), "--precision", "bf16"]) == 1
    assert "nothing here can run" in capsys.readouterr().err


def test_only_by_name_or_by_labels() -> None:
    bundle = Bundle.open(TINY)
    assert edgeseg.load(TINY).info.precision == "fp32"
    assert {run.precision for run in verify(TINY, backend="openvino").golden} == {"fp32"}
    for named, offered in ((False, {"fp32"}), (True, {"fp32", "bf16"} if HERE else {"fp32"})):
        assert {one.precision for one in grid(bundle, None, ["openvino"], None, 0, bf16=named)} == offered


@needs_bf16
def test_load_goes_by_what_was_tuned(tuned: Path) -> None:
    with edgeseg.load(tuned) as segmenter:
        assert (segmenter.info.precision, segmenter.output_stride) == ("bf16", 8)


def test_a_variant_is_not_written_in_it() -> None:
    text = (TINY / "manifest.json").read_text(encoding="utf-8").replace('"precision": "fp32"', '"precision": "bf16"')
    with pytest.raises(BundleError, match=r"manifest.variants\[0\].precision is 'bf16'"):
        loads(text, "here")


def test_what_computes_it_wrong_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTIN, "fake", registry._Entry("edgeseg.testing", "FakeBackend", "", ""))
    monkeypatch.setattr(FakeBackend, "computes_bf16", lambda backend, device: True)
    monkeypatch.setattr(FakeBackend, "self_test", True)
    with pytest.raises(GoldenError, match=r"limit 10\.00%.*limit 98\.00%"):
        edgeseg.load(TINY, backend="fake", precision="bf16")


@needs_bf16
def test_what_it_loses_is_measured_and_certifies_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = Path(shutil.copytree(TINY, tmp_path / "tiny.edgeseg"))
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    with edgeseg.load(TINY) as segmenter:
        for seed in range(3):
            frame = street_scene(seed, (64, 96))[0]
            images.write(tmp_path / "images" / f"{seed}.png", frame)
            segmenter(frame).save(tmp_path / "labels" / f"{seed}.png")
    data = ["--data", tmp_path / "images", "--labels", tmp_path / "labels", "--max-drop", 10]
    assert main(["verify", *map(str, [bundle, "--precision", "bf16", *data])]) == 0
    out = capsys.readouterr().out
    assert out.count("float as bf16  openvino cpu") == 2
    assert "os16-fp32.onnx as bf16 on openvino cpu: mIoU 100.00 -> " in out
    with pytest.raises(InputError, match="certificates are of int8, and precision is bf16"):
        verify(bundle, tmp_path, precision="bf16", certify=True)
