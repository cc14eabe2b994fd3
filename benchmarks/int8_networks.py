"""What the int8 benchmarks run on: the supplied checkpoint exported, drawn images, a bundle calibrated on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

import edgeseg
from edgeseg.bundle import Bundle
from edgeseg.calibration import recipe
from edgeseg.calibration.datasets import Dataset, open_dataset
from edgeseg.errors import InputError
from edgeseg.palette import CAMVID
from edgeseg.preprocess import Preprocessor
from edgeseg.types import Image, Size


def export(model: nn.Module, path: Path, size: Size, strides: Sequence[int]) -> Bundle:
    """The network as a bundle, for pixels scaled to -1..1."""
    half = (0.5, 0.5, 0.5)
    return edgeseg.export(
        model, path, input_size=size, classes=CAMVID, mean=half, std=half, output_strides=tuple(strides)
    )


def draw(bundle: Bundle, folder: Path, split: str | None, count: int) -> Dataset:
    """So many images of a folder, of a split where it has several."""
    found = open_dataset(folder, classes=bundle.manifest.classes, split=split)
    return found.take(min(count, len(found)), seed=0)


def int8_bundle(bundle: Bundle, images: Dataset, strides: Sequence[int], folder: Path) -> Bundle:
    """The bundle itself if it has these strides in the cpu encoding, else calibrated on the images without a guard."""
    there = {v.output_stride for v in bundle.manifest.variants if v.encoding == "cpu"}
    if there >= set(strides):
        return bundle
    output = folder / "int8.edgeseg"
    return recipe.calibrate(bundle.path, output, images, encodings=("cpu",), output_strides=tuple(strides)).bundle


def frames_of(bundle: Bundle, images: Dataset) -> list[Image]:
    """The images as the network takes them, uint8 (h, w, 3)."""
    preprocessor = Preprocessor(bundle.manifest.preprocess)
    return [preprocessor.prepare(images.frame(index))[0].copy() for index in range(len(images))]


def parse_strides(text: str) -> tuple[int, ...]:
    """8,16,32 as numbers. Raises InputError."""
    if not all(part.strip().isdigit() for part in text.split(",")):
        raise InputError(f"output strides are {text!r}: separate whole numbers by commas, as 8,16,32")
    return tuple(int(part) for part in text.split(","))
