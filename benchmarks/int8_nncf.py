"""Quantizes a network by NNCF's defaults: PYTHON int8_nncf.py MODEL.onnx FRAMES.npy OUTPUT.xml

A script for another environment (nncf, openvino), which `edgeseg.benchmarks.int8` runs: it imports nothing of edgeseg.
"""

from __future__ import annotations

import sys
from importlib import import_module

import numpy as np


def main(source: str, frames: str, output: str) -> None:
    """`frames` are uint8 (images, h, w, 3), network-sized."""
    nncf, openvino = import_module("nncf"), import_module("openvino")
    images = nncf.Dataset([frame[None] for frame in np.load(frames)])
    openvino.save_model(nncf.quantize(openvino.Core().read_model(source), images), output, compress_to_fp16=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
