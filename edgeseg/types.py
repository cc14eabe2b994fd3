"""What crosses the borders between edgeseg's modules: arrays by name, and frozen records.

Sizes are always (height, width). Units stand in the names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
"""uint8 (H, W, 3): a camera frame of any size, RGB unless said otherwise."""
Batch = npt.NDArray[np.uint8]
"""uint8 (N, h, w, 3) RGB at network size; normalisation lives inside the graph."""
Logits = npt.NDArray[np.float32]
"""float32 (N, C, ceil(h/s), ceil(w/s)) or one (C, h, w) of them; s is the output stride."""
ClassMap = npt.NDArray[np.uint8]
"""uint8 (H, W): one class index (0..254) per pixel; 255 is "ignore"."""

Size = tuple[int, int]
"""(height, width) in pixels."""
Color = Literal["rgb", "bgr"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
"""What a network is computed in. fp16 and bf16 are ways to compute the float32 graph; bf16 is used only by name."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
GraphPrecision = Literal["fp32", "fp16", "int8"]
"""What a graph is written in."""
Encoding = Literal["float", "cpu", "tensorrt", "tensorrt_fp16"]
"""How a variant's numbers are written: `float`, or for int8 which Q/DQ dialect.

`cpu`: uint8 activations, signed per-channel weights, int32 biases (ONNX Runtime, OpenVINO). `tensorrt`: signed and
symmetric throughout, float biases, for TensorRT's builders with precision flags; `tensorrt_fp16`: the same with every
float in half precision, for its strongly typed builders.
"""

IGNORE = 255
"""The class map's value for "no class": unlabelled, unknown, or left out by the caller."""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How a frame becomes network input.

    `mean` and `std` are per RGB channel for pixels scaled to 0..1; they are baked into the graph and kept
    here for the reader. `letterbox` keeps the aspect ratio and fills the rest with `pad` (a grey level).
    """

    input_size: Size
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "area"] = "bilinear"
    fit: Literal["stretch", "letterbox"] = "stretch"
    pad: int = 114


@dataclass(frozen=True, slots=True)
class Region:
    """Where in the network's input a frame lies: pixels of the input, `input_size` the whole of it."""

    top: float
    left: float
    height: float
    width: float
    input_size: Size


@dataclass(frozen=True, slots=True)
class Model:
    """One network file of a bundle, its hashes verified, as a backend gets it.

    `logits_shape` is (classes, height, width); `batch` is None where the graph takes any batch size. `name` and
    `bundle` are for messages: the file's name in its bundle, also where `path` is another form of it, and the bundle's.
    `digest` changes with every byte of the graph and its weights: the key for anything compiled from them.
    """

    path: Path
    digest: str
    precision: GraphPrecision
    encoding: Encoding
    input_size: Size
    logits_shape: tuple[int, int, int]
    batch: int | None = 1
    name: str = ""
    bundle: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.path.name)
        object.__setattr__(self, "bundle", self.bundle or self.path.absolute().parent.name)


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Where one frame's time went, in nanoseconds; `total_ns` runs from the call to the finished mask."""

    preprocess_ns: int
    network_ns: int
    decode_ns: int
    total_ns: int
