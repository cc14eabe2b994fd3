"""edgeseg: from a PyTorch segmentation network to a robot's camera loop.

    import edgeseg
    with edgeseg.load() as segmenter:          # the embedded street network
        result = segmenter(frame)              # numpy uint8 (H, W, 3), RGB
        result.class_map                       # numpy uint8 (H, W), the exact mask at the frame's own size

Importing this loads numpy, cv2 and nothing heavier: a runtime is imported by `load`, torch and onnx by `export`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeseg.bundle import Bundle
from edgeseg.errors import EdgesegError
from edgeseg.loading import EMBEDDED, load
from edgeseg.manifest import ClassInfo
from edgeseg.result import Polygon, Segmentation
from edgeseg.segmenter import Segmenter

if TYPE_CHECKING:
    from edgeseg.exporter import export as export

__version__ = "0.1.0"
__all__ = [
    "EMBEDDED",
    "Bundle",
    "ClassInfo",
    "EdgesegError",
    "Polygon",
    "Segmentation",
    "Segmenter",
    "export",
    "load",
]


def __getattr__(name: str) -> Any:
    if name != "export":
        raise AttributeError(f"module 'edgeseg' has no attribute {name!r}")
    try:
        from edgeseg.exporter import export
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("torch", "onnx", "onnxscript", "onnxruntime"):
            raise
        raise EdgesegError(f'export needs the package {error.name}: pip install "edgeseg[export]"') from error
    return export
