"""The pinhole camera of the synthetic street: metres in (x right, y up, z ahead), pixels out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeseg.types import Size

Points = npt.NDArray[np.float64]
"""float64 (N, 3) in metres or (N, 2) in pixels (x right, y down)."""

_NEAR_M = 0.6


@dataclass(frozen=True, slots=True)
class Camera:
    """A dashboard camera looking along +z; `focal`, `horizon` and `pan` are in frame heights.

    Everything scales with the frame's height: a wider frame sees more of the same street.
    """

    size: Size
    focal: float
    horizon: float
    pan: float
    height_m: float

    def scale(self, z: float) -> float:
        """Pixels per metre at depth `z`."""
        return self.focal * self.size[0] / max(z, _NEAR_M)

    def project(self, points: Points) -> Points:
        """Pixels (N, 2) of points (N, 3), which lie in front of the camera."""
        scale = self.focal * self.size[0] / points[:, 2]
        pixels = np.empty((len(points), 2))
        pixels[:, 0] = self.size[1] / 2 + self.pan * self.size[0] + points[:, 0] * scale
        pixels[:, 1] = self.horizon * self.size[0] + (self.height_m - points[:, 1]) * scale
        return pixels

    def outline(self, polygon: Points) -> Points | None:
        """The polygon (N, 3) cut at the near plane, in pixels; None where nothing is left of it."""
        if polygon[:, 2].min() >= _NEAR_M:
            return self.project(polygon)
        kept = []
        for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            if a[2] >= _NEAR_M:
                kept.append(a)
            if (a[2] >= _NEAR_M) != (b[2] >= _NEAR_M):
                kept.append(a + (b - a) * (_NEAR_M - a[2]) / (b[2] - a[2]))
        return self.project(np.array(kept)) if len(kept) >= 3 else None

    def ground(self) -> tuple[int, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """First row below the horizon, and x and z in metres of the ground under each pixel from there on."""
        height, width = self.size
        first = int(self.horizon * height) + 1
        depth = self.focal * self.height_m * height / (np.arange(first, height) + 0.5 - self.horizon * height)
        column = (np.arange(width) + 0.5 - width / 2 - self.pan * height) / (self.focal * height)
        x = np.outer(depth, column).astype(np.float32)
        return first, x, np.broadcast_to(depth.astype(np.float32)[:, None], x.shape)
