"""One tile of 1/f noise per scene: the texture of everything natural, and of most that is built."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]
_TILE = 512


class Noise:
    """Tileable noise with zero mean and unit deviation, looked up by world coordinates.

    A fixed tile rather than fresh draws per pixel: the same texture at every frame size.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        white = np.fft.rfft2(rng.standard_normal((_TILE, _TILE)))
        frequency = np.hypot(np.fft.fftfreq(_TILE)[:, None], np.fft.rfftfreq(_TILE)[None, :])
        frequency[0, 0] = np.inf
        tile = np.fft.irfft2(white / frequency**1.15, s=(_TILE, _TILE))
        self._tile = ((tile - tile.mean()) / tile.std()).astype(np.float32)

    def sample(self, u: Field, v: Field, period: float) -> Field:
        """The noise at (u, v), same shape; it repeats after `period` in their unit."""
        scale = np.float32(_TILE / period)
        u, v = np.broadcast_arrays(u * scale, v * scale)
        wrapped = cv2.remap(
            self._tile, np.ascontiguousarray(u), np.ascontiguousarray(v), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
        )
        return np.asarray(wrapped, np.float32)

    def grid(self, shape: tuple[int, int], extent: tuple[float, float], period: float, at: float = 0.0) -> Field:
        """The noise over a rectangle of `extent` (height, width) units at `shape` samples, shifted by `at`."""
        v = (np.arange(shape[0], dtype=np.float32) + 0.5) * np.float32(extent[0] / shape[0]) + np.float32(at)
        u = (np.arange(shape[1], dtype=np.float32) + 0.5) * np.float32(extent[1] / shape[1]) + np.float32(at * 1.7)
        return self.sample(u[None, :], v[:, None], period)
