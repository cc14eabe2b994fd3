"""What a benchmark feeds: drawn streets, or images from a folder at the frame size; and pictures of what comes out."""

from __future__ import annotations

import base64
import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from edgeseg import images as image_files
from edgeseg.benchmarks.results import Frames, Sample
from edgeseg.calibration.datasets import Dataset
from edgeseg.manifest import ClassInfo
from edgeseg.scene import street_scene
from edgeseg.segmenter import Segmenter
from edgeseg.types import ClassMap, Image, Size

_FRAMES = 4
_SEED = 64
_PICTURES = 3
_WIDEST = 640


def frames_of(images: Dataset | None, size: Size) -> tuple[list[Image], Frames]:
    """Four frames (H, W, 3) of `size`: of the images, resized, or drawn."""
    if images is None:
        frames = [street_scene(_SEED + index, size)[0] for index in range(_FRAMES)]
        source = f"drawn scenes {_SEED} to {_SEED + _FRAMES - 1}"
    else:
        chosen = images.take(min(_FRAMES, len(images)), 0)
        frames = [_resized(chosen.frame(index), size) for index in range(len(chosen))]
        source = f"{len(chosen)} image{'s' * (len(chosen) != 1)} of {_plain(str(images.source))}, resized"
    digest = hashlib.sha256(b"".join(hashlib.sha256(frame.tobytes()).digest() for frame in frames)).hexdigest()
    return frames, Frames(*size, source, digest)


def pictures(
    images: Dataset | None,
    frames: Sequence[Image],
    segmenters: Mapping[str, Segmenter],
    classes: Sequence[ClassInfo],
    tell: Callable[[str], object] = lambda step: None,
) -> tuple[Sample, ...]:
    """Three of the images, their labels and every segmenter's masks (by name), 640 pixels wide at most.

    Without images of the drawn `frames`.
    """
    found = []
    for index in range(min(_PICTURES, len(frames))):
        tell(f"picture {index + 1}")
        label: ClassMap | None = None
        if images is None:
            frame, name = frames[index], f"drawn scene {_SEED + index}"
        else:
            chosen = images.take(index + 1, 0)
            frame, name = chosen.frame(index), _plain(chosen.samples[index].name)
            if images.labelled:
                label = chosen.label(index, (frame.shape[0], frame.shape[1]))
        size = (max(1, round(frame.shape[0] * _WIDEST / frame.shape[1])), _WIDEST)
        if frame.shape[1] > _WIDEST:
            frame = _resized(frame, size)
            label = None if label is None else _nearest(label, size)
        masks = {key: _map_png(segmenter(frame).class_map, classes) for key, segmenter in segmenters.items()}
        found.append(Sample(name, _frame_png(frame), "" if label is None else _map_png(label, classes), masks))
    return tuple(found)


def _plain(name: str) -> str:
    """File names may be any bytes."""
    return "".join(sign if sign.isprintable() else "?" for sign in name)


def _resized(frame: Image, size: Size) -> Image:
    height, width = size
    smaller = height < frame.shape[0] and width < frame.shape[1]
    way = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(frame, (width, height), interpolation=way), np.uint8)


def _nearest(label: ClassMap, size: Size) -> ClassMap:
    return np.asarray(cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)


def _frame_png(frame: Image) -> str:
    return base64.b64encode(cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1].tobytes()).decode()


def _map_png(class_map: ClassMap, classes: Sequence[ClassInfo]) -> str:
    """An indexed PNG with the classes' colours."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mask.png"
        image_files.write_class_map(file, class_map, tuple(info.color for info in classes))
        return base64.b64encode(file.read_bytes()).decode()
