"""The picture and its class map, painted together by the same masks."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from edgeseg.scene.camera import Camera, Points
from edgeseg.scene.light import Light, Rgb
from edgeseg.scene.noise import Noise
from edgeseg.types import IGNORE, ClassMap, Image

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)

_SUBPIXEL_BITS = 4


def points(*xyz: Sequence[float]) -> Points:
    """(N, 3) metres from N triples."""
    return np.array(xyz, np.float64)


def upright(shape: Points, x: float, z: float) -> Points:
    """A flat shape (N, 2) of (right, up) metres, facing the camera at (x, z)."""
    placed = np.empty((len(shape), 3))
    placed[:, 0], placed[:, 1], placed[:, 2] = shape[:, 0] + x, shape[:, 1], z
    return placed


def ellipse(x: float, y: float, rx: float, ry: float, corners: int = 20) -> Points:
    angle = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def limb(a: tuple[float, float], b: tuple[float, float], wide_a: float, wide_b: float) -> Points:
    """A tapered bar (4, 2) from a to b; widths at each end."""
    along = np.subtract(b, a)
    side = np.array([-along[1], along[0]]) / (np.hypot(*along) + 1e-9) / 2
    return np.array([a + side * wide_a, b + side * wide_b, b - side * wide_b, a - side * wide_a])


def color_of(color: Rgb) -> tuple[int, int, int]:
    red, green, blue = color.tolist()
    return min(max(int(red), 0), 255), min(max(int(green), 0), 255), min(max(int(blue), 0), 255)


class Panel:
    """A flat texture in metres (u right, v up) to be hung into the street.

    `paint` is uint8 (h, w, 4): RGB and opacity; `classes` is IGNORE where the panel is cut out.
    """

    def __init__(self, width: float, height: float, per_m: tuple[float, float], cls: int) -> None:
        self.width, self.height = width, height
        shape = (int(np.clip(height * per_m[1], 2, 4000)), int(np.clip(width * per_m[0], 2, 4000)))
        self.paint = np.full((*shape, 4), 255, np.uint8)
        self.classes: ClassMap = np.full(shape, cls, np.uint8)

    def window(self, u0: float, v0: float, u1: float, v1: float) -> tuple[slice, slice]:
        """Rows and columns of a rectangle."""
        rows, columns = self.classes.shape
        top, bottom = round((1 - v1 / self.height) * rows), round((1 - v0 / self.height) * rows)
        left, right = round(u0 / self.width * columns), round(u1 / self.width * columns)
        return slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0))

    def rect(self, u0: float, v0: float, u1: float, v1: float, color: Rgb, *, cls: int | None = None) -> None:
        at = self.window(u0, v0, u1, v1)
        self.paint[..., :3][at] = color_of(color)
        if cls is not None:
            self.classes[at] = cls

    def modulate(self, factor: npt.NDArray[np.float32]) -> None:
        """Multiply the colours by a field (h, w) or (h, 1)."""
        for channel in range(3):
            self.paint[..., channel] = np.minimum(self.paint[..., channel] * factor, 255)


class Stage:
    """What is being painted, through which camera, in which light."""

    def __init__(self, camera: Camera, light: Light, noise: Noise) -> None:
        self.camera, self.light, self.noise = camera, light, noise
        self.image: Image = np.zeros((*camera.size, 3), np.uint8)
        self.classes: ClassMap = np.full(camera.size, SKY, np.uint8)

    def fill(self, polygon: Points, color: Rgb, cls: int | None, opacity: float = 1.0) -> None:
        """Paint a polygon (N, 3) in metres; `cls` None leaves the class map as it is."""
        outline = self.camera.outline(polygon)
        if outline is not None:
            self.fill_pixels(outline, color, cls, opacity)

    def fill_pixels(self, outline: Points, color: Rgb, cls: int | None, opacity: float = 1.0) -> None:
        height, width = self.camera.size
        low, high = outline.min(axis=0), outline.max(axis=0)
        if high[0] < 0 or high[1] < 0 or low[0] > width or low[1] > height:
            return
        # half a pixel less: OpenCV puts whole numbers on pixel centres
        fixed = np.clip(np.rint((outline - 0.5) * (1 << _SUBPIXEL_BITS)), -(1 << 20), 1 << 20).astype(np.int32)
        if cls is not None:
            cv2.fillPoly(self.classes, [fixed], (cls,), shift=_SUBPIXEL_BITS)
        if opacity >= 1:
            cv2.fillPoly(self.image, [fixed], color_of(color), shift=_SUBPIXEL_BITS)
            return
        (top, left), (bottom, right) = self._box(low, high, 1)
        if bottom > top and right > left:
            view = self.image[top:bottom, left:right]
            painted = view.copy()
            offset = np.array([left, top], np.int32) << _SUBPIXEL_BITS
            cv2.fillPoly(painted, [fixed - offset], color_of(color), shift=_SUBPIXEL_BITS)
            view[:] = cv2.addWeighted(painted, opacity, view, 1 - opacity, 0)

    def darken(self, polygon: Points, amount: float, soft: float) -> None:
        """A shadow over a polygon (N, 3) lying on the ground, blurred by `soft` metres; classes stay."""
        outline = self.camera.outline(polygon)
        if outline is None:
            return
        blur = max(1.0, soft * self.camera.scale(float(np.median(polygon[:, 2]))))
        (top, left), (bottom, right) = self._box(outline.min(axis=0), outline.max(axis=0), int(2 * blur))
        if bottom <= top or right <= left:
            return
        mask = np.zeros((bottom - top, right - left), np.float32)
        shifted = np.clip(np.rint((outline - (left, top)) * 16), -(1 << 20), 1 << 20).astype(np.int32)
        cv2.fillPoly(mask, [shifted], (amount,), shift=4)
        kernel = 2 * int(blur) + 1
        factor = 1 - cv2.blur(cv2.blur(mask, (kernel, kernel)), (kernel, kernel))
        view = self.image[top:bottom, left:right]
        view[:] = view * factor[..., None]

    def sees(self, corners: Points) -> bool:
        """Whether a polygon (N, 3) ahead of the camera may touch the frame."""
        height, width = self.camera.size
        pixels = self.camera.project(corners)
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        return bool(high[0] > 0 and high[1] > 0 and low[0] < width and low[1] < height)

    def hang(self, panel: Panel, corners: Points) -> None:
        """Paste a panel on the quad of `corners` (4, 3): top left, top right, bottom right, bottom left."""
        target = self.camera.project(corners)
        (top, left), (bottom, right) = self._box(target.min(axis=0), target.max(axis=0), 1)
        if bottom <= top or right <= left:
            return
        rows, columns = panel.classes.shape
        # integer coordinates are pixel centres, on both sides
        source = np.array([[0, 0], [columns, 0], [columns, rows], [0, rows]], np.float32) - 0.5
        local = (target - (left + 0.5, top + 0.5)).astype(np.float32)
        matrix = cv2.getPerspectiveTransform(source, local)
        box = (right - left, bottom - top)
        classes = cv2.warpPerspective(
            panel.classes, matrix, box, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=(IGNORE,)
        )
        paint = cv2.warpPerspective(panel.paint, matrix, box, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        self.paste(np.asarray(paint, np.uint8), np.asarray(classes, np.uint8), top, left)

    def paste(self, paint: npt.NDArray[np.uint8], classes: ClassMap, top: int, left: int) -> None:
        """Blend `paint` (h, w, 4) in at a pixel position where `classes` (h, w) is not IGNORE."""
        at = np.s_[top : top + classes.shape[0], left : left + classes.shape[1]]
        seen = classes != IGNORE
        np.copyto(self.classes[at], classes, where=seen)
        view = self.image[at]
        if (paint[..., 3] == 255).all():
            np.copyto(view, paint[..., :3], where=seen[..., None])
            return
        alpha = np.where(seen, paint[..., 3], 0).astype(np.float32)[..., None] / 255
        view[:] = np.rint(view + (paint[..., :3] - view.astype(np.float32)) * alpha)

    def _box(self, low: Points, high: Points, margin: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(top, left), (bottom, right) of a box of pixels grown by `margin` and cut to the frame."""
        height, width = self.camera.size
        x0, y0 = np.clip(np.floor(low) - margin, 0, (width, height)).astype(int).tolist()
        x1, y1 = np.clip(np.ceil(high) + margin, 0, (width, height)).astype(int).tolist()
        return (y0, x0), (y1, x1)
