"""The weather and the hour: what colour a surface has, and how bright the sky is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rgb = npt.NDArray[np.float64]
"""float64 (3,): red, green, blue, 0..255 (reflectance as well as brightness)."""


def rgb(red: float, green: float, blue: float) -> Rgb:
    return np.array([red, green, blue], np.float64)


@dataclass(frozen=True, slots=True)
class Light:
    """`sun` points to the sun; `sun_gain` and `ambient` are RGB factors on reflectances; gain 0 is overcast."""

    sun: Rgb
    sun_gain: Rgb
    ambient: Rgb
    zenith: Rgb
    skyline: Rgb
    cloud: Rgb
    cover: float

    def shade(self, color: Rgb, normal: tuple[float, float, float], z: float, sunlit: bool = True) -> Rgb:
        """Brightness of a surface of reflectance `color` at depth `z` (metres)."""
        up = self.ambient * (0.82 + 0.26 * normal[1])
        direct = max(0.0, float(np.dot(self.sun, normal))) if sunlit else 0.0
        haze = 1.0 - np.exp(-z / 600.0)
        lit: Rgb = color * (up + self.sun_gain * direct) * (1 - haze) + self.skyline * 0.75 * haze
        return lit

    @property
    def run(self) -> float:
        """Metres a shadow reaches across the street per metre of height; negative towards the left."""
        return float(-self.sun[0] / self.sun[1])


def sample_light(rng: np.random.Generator) -> Light:
    azimuth = rng.uniform(-1.0, 1.0) * np.pi
    elevation = np.deg2rad(rng.uniform(22, 50))
    sun = rgb(np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation))
    warm = rng.uniform(0.0, 1.0)
    kind = rng.choice(3, p=[0.45, 0.4, 0.15])
    if kind == 0:  # sun with a pale blue sky
        gain, ambient, cover = rng.uniform(0.6, 1.0), rng.uniform(0.5, 0.68), rng.uniform(0.0, 0.6)
        zenith, skyline = rgb(150, 195, 236), rgb(232, 242, 250)
        cloud = rgb(250, 251, 252)
    elif kind == 1:  # white overcast, burnt out
        gain, ambient, cover = 0.0, rng.uniform(0.75, 0.95), rng.uniform(0.4, 1.0)
        zenith, skyline = rgb(236, 240, 245), rgb(250, 251, 252)
        cloud = rgb(225, 229, 233)
    else:  # heavy grey cloud, late
        gain, ambient, cover = 0.0, rng.uniform(0.42, 0.55), rng.uniform(0.6, 1.2)
        zenith, skyline = rgb(160, 180, 192), rgb(205, 218, 222)
        cloud = rgb(112, 124, 134)
    return Light(
        sun=sun,
        sun_gain=gain * rgb(1.04 + 0.06 * warm, 1.0, 0.94 - 0.12 * warm),
        ambient=ambient * rgb(0.97 + 0.03 * warm, 1.0, 1.06 - 0.06 * warm),
        zenith=zenith,
        skyline=skyline,
        cloud=cloud,
        cover=cover,
    )
