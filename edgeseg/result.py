"""What a Segmenter gives back for one frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from edgeseg import images
from edgeseg.errors import InputError
from edgeseg.manifest import ClassInfo
from edgeseg.preprocess import check_frame
from edgeseg.types import IGNORE, ClassMap, Color, Image, StageTimes


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """One connected area: `exterior` and each of `holes` int32 (n, 2) as (x, y) pixel centres, not closed.

    Filling the exterior and then cutting the holes (whose points belong to the area) gives the area's pixels back.
    """

    exterior: npt.NDArray[np.int32]
    holes: tuple[npt.NDArray[np.int32], ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Segmentation:
    """The mask of one frame, at the frame's own size.

    `class_map` uint8 (H, W): index into `classes`, 255 where no class was given. `confidence` float32 (H, W), the
    largest softmax value, and `pixel_counts` (class name -> pixels) are there when they were asked for. `color` is the
    channel order of the frame it came from.
    """

    class_map: ClassMap
    classes: tuple[ClassInfo, ...]
    times: StageTimes
    confidence: npt.NDArray[np.float32] | None = None
    pixel_counts: dict[str, int] | None = None
    color: Color = "rgb"

    def __repr__(self) -> str:
        height, width = self.class_map.shape
        return f"<Segmentation {height}x{width}, {len(self.classes)} classes, {self.times.total_ns / 1e6:.1f} ms>"

    def overlay(self, frame: Image, alpha: float = 0.5) -> Image:
        """The frame (uint8 (H, W, 3), in the channel order it was segmented in) with the classes' colours laid over it.

        `alpha` is the colours' share; 255 stays as the frame is.
        Raises InputError where the frame is no frame, or its size is not the mask's.
        """
        check_frame(frame)
        if frame.shape != (*self.class_map.shape, 3):
            raise InputError(f"frame has shape {frame.shape}, the mask is {self.class_map.shape}: give the same frame")
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha is {alpha}: give the colours' share, 0 to 1")
        lut = np.zeros((256, 1, 3), np.uint8)
        for index, info in enumerate(self.classes):
            lut[index] = info.color if self.color == "rgb" else info.color[::-1]
        colors = cv2.applyColorMap(self.class_map, lut)
        mixed = cv2.addWeighted(frame, 1 - alpha, colors, alpha, 0)
        unlabelled = self.class_map == IGNORE
        if unlabelled.any():
            mixed[unlabelled] = frame[unlabelled]
        return np.asarray(mixed, np.uint8)

    def contours(self) -> dict[str, tuple[Polygon, ...]]:
        """Every class's areas as polygons with holes; a class that is not in the frame has none."""
        return {info.name: _polygons(self.class_map == index) for index, info in enumerate(self.classes)}

    def save(self, path: str | Path) -> None:
        """Write the class map as an indexed PNG with the classes' colours; raises ImageError."""
        images.write_class_map(path, self.class_map, tuple(info.color for info in self.classes))


def _polygons(mask: npt.NDArray[np.bool_]) -> tuple[Polygon, ...]:
    outlines, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if tree is None:
        return ()
    polygons = []
    for index, (_, _, first_child, parent) in enumerate(tree[0]):
        if parent >= 0:
            continue
        holes, child = [], first_child
        while child >= 0:
            holes.append(np.asarray(outlines[child][:, 0], np.int32))
            child = tree[0][child][0]
        polygons.append(Polygon(np.asarray(outlines[index][:, 0], np.int32), tuple(holes)))
    return tuple(polygons)
