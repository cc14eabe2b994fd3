"""Two tiles of noise per scene: the texture of everything natural, and of most that is built."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]
_TILE = 512
_GRAIN_CYCLES = 24


class Noise:
    """Tileable noise with zero mean and unit deviation, looked up by world coordinates: 1/f, or fine grain only.

    A fixed tile rather than fresh draws per pixel: the same texture at every frame size.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        white = np.fft.rfft2(rng.standard_normal((_TILE, _TILE)))
        frequency = np.hypot(np.fft.fftfreq(_TILE)[:, None], np.fft.rfftfreq(_TILE)[None, :])
        frequency[0, 0], white[0, 0] = 1, 0
        cloud = white / frequency**1.15
        self._cloud = _tile(cloud)
        self._grain = _tile(cloud * (frequency > _GRAIN_CYCLES / _TILE) * frequency**0.5)

    def sample(self, u: Field, v: Field, period: float, *, grain: bool = False) -> Field:
        """The noise at (u, v), same shape; it repeats after `period` in their unit."""
        tile = self._grain if grain else self._cloud
        # wrapped here: OpenCV's own BORDER_WRAP is many times slower
        u, v = (np.float32(_TILE) * (turns - np.floor(turns)) for turns in (u / period, v / period))
        u, v = (np.ascontiguousarray(part) for part in np.broadcast_arrays(u, v))
        return np.asarray(cv2.remap(tile, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32)

    def grid(self, shape: tuple[int, int], extent: tuple[float, float], period: float, at: float = 0.0) -> Field:
        """The noise over a rectangle of `extent` (height, width) units at `shape` samples, shifted by `at`."""
        v = (np.arange(shape[0], dtype=np.float32) + 0.5) * np.float32(extent[0] / shape[0]) + np.float32(at)
        u = (np.arange(shape[1], dtype=np.float32) + 0.5) * np.float32(extent[1] / shape[1]) + np.float32(at * 1.7)
        return self.sample(u[None, :], v[:, None], period)


def _tile(spectrum: npt.NDArray[np.complex128]) -> Field:
    tile = np.fft.irfft2(spectrum, s=(_TILE, _TILE))
    return np.pad(((tile - tile.mean()) / tile.std()).astype(np.float32), (0, 2), mode="wrap")
