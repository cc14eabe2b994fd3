"""Measurements: each file is a command, `python -m edgeseg.benchmarks.NAME --help`, and takes --json."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

_EXTRAS = {
    "torch": "export",
    "safetensors": "export",
    "onnx": "export",
    "onnxruntime": "export",
    "openvino": "openvino",
    "cv2": "openvino",
    "mlperf_loadgen": "loadgen",
}


def _in_one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The files import what they measure first thing, so a missing package shows before any of their own code runs."""
    package = error.name.split(".")[0] if isinstance(error, ModuleNotFoundError) and error.name else ""
    if package in _EXTRAS:
        told = f'this needs the package {package}: pip install "edgeseg[{_EXTRAS[package]}]"'
    elif isinstance(error, KeyboardInterrupt):
        told = "interrupted"
    else:
        sys.__excepthook__(kind, error, trace)
        return
    print(f"{Path(sys.argv[0]).stem}: {told}", file=sys.stderr)


if sys.argv[0] == "-m":  # while Python looks for the module it was asked to run; never where this is imported
    sys.excepthook = _in_one_line
