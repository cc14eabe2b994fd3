"""edgeseg: from a PyTorch segmentation network to a robot's camera loop.

    import edgeseg
    with edgeseg.load() as segmenter:          # the embedded street network
        result = segmenter(frame)              # numpy uint8 (H, W, 3), RGB
        result.class_map                       # numpy uint8 (H, W), the exact mask at the frame's own size

Names are imported when they are first used: numpy and cv2 with the first of them, a runtime by `load`, torch and onnx
by `export` and `calibrate`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeseg.bundle import Bundle
    from edgeseg.calibration.recipe import calibrate
    from edgeseg.calibration.verification import verify
    from edgeseg.errors import EdgesegError
    from edgeseg.exporter import export
    from edgeseg.loading import EMBEDDED, load
    from edgeseg.manifest import ClassInfo
    from edgeseg.rasters import segment_file
    from edgeseg.result import Polygon, Segmentation
    from edgeseg.segmenter import Segmenter
    from edgeseg.sources.base import OnnxReading

__version__ = "0.1.0"
__all__ = [
    "EMBEDDED",
    "Bundle",
    "ClassInfo",
    "EdgesegError",
    "OnnxReading",
    "Polygon",
    "Segmentation",
    "Segmenter",
    "calibrate",
    "export",
    "load",
    "segment_file",
    "verify",
]

_HOMES = {
    "EMBEDDED": "edgeseg.loading",
    "Bundle": "edgeseg.bundle",
    "ClassInfo": "edgeseg.manifest",
    "EdgesegError": "edgeseg.errors",
    "OnnxReading": "edgeseg.sources.base",
    "Polygon": "edgeseg.result",
    "Segmentation": "edgeseg.result",
    "Segmenter": "edgeseg.segmenter",
    "load": "edgeseg.loading",
    "segment_file": "edgeseg.rasters",
    "verify": "edgeseg.calibration.verification",
}


_WITH_ONNX = {
    "calibrate": ("edgeseg.calibration.recipe", "calibrate"),
    "export": ("edgeseg.exporter", "export"),
}
"""Functions that need more than a device has: their homes, and the extra that installs it."""


def _with_onnx(name: str) -> Any:
    """The function, or where a package is missing one that says so when it is called."""
    from edgeseg.errors import EdgesegError

    home, extra = _WITH_ONNX[name]
    try:
        return getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.split(".")[0] not in ("onnx", "onnxruntime"):
            raise

    def absent(*arguments: Any, **settings: Any) -> Any:
        raise EdgesegError(f'{name} needs the package {missing}: pip install "edgeseg[{extra}]"')

    return absent


def __getattr__(name: str) -> Any:
    if name in _WITH_ONNX:
        return _with_onnx(name)
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeseg' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        raise ModuleNotFoundError(
            'edgeseg needs OpenCV, which comes with a runtime: pip install "edgeseg[openvino]" or "edgeseg[ort]", or '
            "by itself: pip install opencv-python-headless (on a Jetson use JetPack's own)",
            name="cv2",
        ) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
