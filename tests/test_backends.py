"""One conformance suite, bound to every backend; and a third party's, found by its entry point."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import edgeseg
from edgeseg import registry
from edgeseg.backends.base import Backend
from edgeseg.errors import BackendError, BackendMissing, DeviceError
from edgeseg.testing import TINY, BackendConformance, FakeBackend, street_scene

PLUGIN_WORKS = int(cv2.__version__.split(".")[0]) >= 5


class TestOrt(BackendConformance):
    def make_backend(self) -> Backend:
        return registry.get("ort")


class TestOpenVino(BackendConformance):
    def make_backend(self) -> Backend:
        return registry.get("openvino")


class TestOpenVinoAuto(TestOpenVino):
    device = "auto:cpu"


class TestReference(BackendConformance):
    def make_backend(self) -> Backend:
        return registry.get("reference")


@pytest.mark.parametrize("device", ["gpu", "npu"])
def test_openvino_accelerators(device: str) -> None:
    """On a machine that has one, its golden frames; elsewhere, the reason and what to install."""
    here = {found.name.split(".")[0]: found for found in registry.get("openvino").devices()}
    if not here[device].available:
        with pytest.raises(DeviceError, match="driver"):
            edgeseg.load(TINY, backend="openvino", device=device)
        pytest.skip(f"no {device.upper()} here: {here[device].reason}")
    with edgeseg.load(TINY, backend="openvino", device=device) as segmenter:
        assert segmenter.info.device == device


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs tests/plugin_opencv.py the way pip would: a module and a dist-info with an entry point."""
    (tmp_path / "edgeseg_opencv.py").write_text((Path(__file__).parent / "plugin_opencv.py").read_text())
    (tmp_path / "edgeseg_broken.py").write_text("import no_such_vendor\n")
    info = tmp_path / "edgeseg_opencv-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edgeseg-opencv\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[edgeseg.backends]\nopencv = edgeseg_opencv:OpenCvBackend\nbroken = edgeseg_broken:Backend\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "edgeseg_opencv", raising=False)


@pytest.mark.skipif(not PLUGIN_WORKS, reason=f"OpenCV {cv2.__version__}: its network runtime needs 5.0")
@pytest.mark.usefixtures("plugin")
class TestPlugin(BackendConformance):
    def make_backend(self) -> Backend:
        return registry.get("opencv")

    def test_loads_by_name(self) -> None:
        frame = street_scene(1)[0]
        with edgeseg.load(TINY, backend="opencv") as ours, edgeseg.load(TINY, backend="ort") as theirs:
            assert ours.info.runtime.startswith("opencv")
            assert np.mean(ours(frame).class_map == theirs(frame).class_map) > 0.9999


@pytest.mark.usefixtures("plugin")
def test_a_broken_plugin_shows_its_own_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_vendor"):
        registry.get("broken")
    assert "no_such_vendor" in registry.status("broken").reason


def test_an_absent_vendor_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "edgeseg.backends.ov", raising=False)
    with pytest.raises(BackendMissing, match=r'pip install "edgeseg\[openvino\]"'):
        registry.get("openvino")
    with pytest.warns(RuntimeWarning, match=r"fell back from openvino to ort: .*pip install"):
        segmenter = edgeseg.load(TINY)
    assert segmenter.info.backend == "ort"
    with pytest.raises(BackendMissing):
        edgeseg.load(TINY, backend="openvino")


def test_all_reasons_at_once_where_nothing_works(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, vendor in (("ov", "openvino"), ("ort", "onnxruntime")):
        monkeypatch.setitem(sys.modules, vendor, None)
        monkeypatch.delitem(sys.modules, f"edgeseg.backends.{module}", raising=False)
    with pytest.raises(BackendError, match=r"openvino: .*ort: "):
        edgeseg.load(TINY)


def test_another_import_error_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the vendor's absence becomes advice; a bug inside a backend must be seen."""
    monkeypatch.setitem(sys.modules, "edgeseg.backends.base", None)
    monkeypatch.delitem(sys.modules, "edgeseg.backends.ort", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"edgeseg\.backends\.base"):
        registry.get("ort")


def test_unknown_backend_lists_the_known() -> None:
    with pytest.raises(BackendError, match=r"unknown backend 'tensorflow'.*openvino, ort, reference"):
        registry.get("tensorflow")


def test_fp16_is_refused_where_the_cpu_would_compute_fp32() -> None:
    for name in ("ort", "openvino"):
        with pytest.raises(BackendError, match="fp16"):
            edgeseg.load(TINY, backend=name, precision="fp16")


def test_fake_backend_sees_brightness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTIN, "fake", registry._Entry("edgeseg.testing", "FakeBackend", "", ""))
    assert isinstance(registry.get("fake"), FakeBackend)
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:, 48:] = 255
    with edgeseg.load(TINY, backend="fake") as segmenter:
        found = segmenter(frame).class_map
    assert (found[:, :40] == 0).all()
    assert (found[:, 56:] == 4).all()
