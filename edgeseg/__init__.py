"""edgeseg: from a PyTorch segmentation network to a robot's camera loop.

    import edgeseg
    with edgeseg.load() as segmenter:          # the embedded street network
        result = segmenter(frame)              # numpy uint8 (H, W, 3), RGB
        result.class_map                       # numpy uint8 (H, W), the exact mask at the frame's own size

Importing this loads numpy, cv2 and nothing heavier: a runtime is imported by `load`, torch and onnx by `export`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    import cv2  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'edgeseg needs OpenCV, which comes with a runtime: pip install "edgeseg[openvino]" or "edgeseg[ort]", or by '
        "itself: pip install opencv-python-headless (on a Jetson use JetPack's own)",
        name="cv2",
    ) from error

from edgeseg.bundle import Bundle
from edgeseg.errors import EdgesegError
from edgeseg.loading import EMBEDDED, load
from edgeseg.manifest import ClassInfo
from edgeseg.result import Polygon, Segmentation
from edgeseg.segmenter import Segmenter
from edgeseg.sources.base import OnnxReading

if TYPE_CHECKING:
    from edgeseg.exporter import export
else:

    def export(*args: Any, **settings: Any) -> Bundle:
        """Export a network as a bundle: `edgeseg.exporter.export`, imported when it is called."""
        try:
            from edgeseg.exporter import export as run
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] not in ("onnx", "onnxruntime"):
                raise
            raise EdgesegError(f'export needs the package {error.name}: pip install "edgeseg[export]"') from error
        return run(*args, **settings)


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
    "export",
    "load",
]
