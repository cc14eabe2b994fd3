"""Walls of several materials, with windows, doors and shops, as flat textures."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgeseg.scene.light import Rgb, rgb
from edgeseg.scene.noise import Field
from edgeseg.scene.stage import BUILDING, SIGN, Panel, Stage


class Material(NamedTuple):
    """What a wall is made of."""

    color: Rgb
    brick: bool


_MATERIALS = (
    Material(rgb(126, 84, 66), True),
    Material(rgb(104, 70, 58), True),
    Material(rgb(150, 132, 98), True),
    Material(rgb(138, 122, 98), True),
    Material(rgb(96, 84, 72), True),
    Material(rgb(84, 64, 54), True),
    Material(rgb(162, 150, 128), False),
    Material(rgb(206, 202, 192), False),
    Material(rgb(188, 178, 156), False),
    Material(rgb(128, 127, 124), False),
)
_SHOPS = (
    rgb(40, 60, 110),
    rgb(120, 36, 34),
    rgb(36, 74, 56),
    rgb(34, 34, 38),
    rgb(150, 120, 60),
    rgb(190, 188, 182),
    rgb(70, 44, 36),
    rgb(60, 90, 140),
)
_FRAMES = (rgb(214, 214, 210), rgb(200, 198, 190), rgb(62, 58, 54))
_GLASS = rgb(38, 42, 46)
_DETAIL_M = 45.0
"""Beyond this windows are two rectangles: a distance, not a size in pixels, so that all frame sizes agree."""


def sample_material(rng: np.random.Generator) -> Material:
    material = _MATERIALS[int(rng.integers(len(_MATERIALS)))]
    return material._replace(color=material.color * rng.uniform(0.76, 1.08))


def draw_wall(
    stage: Stage,
    rng: np.random.Generator,
    material: Material,
    size: tuple[float, float],
    *,
    z: float,
    normal: tuple[float, float, float],
    shop: float = 0.0,
    plain: bool = False,
) -> Panel:
    """A lit elevation of (width, height) metres; `plain` has few windows and no door."""
    (color, brick), (width, height) = material, size
    sharp = min(0.5 * stage.camera.scale(max(z, 7.0)), 2000 / max(size))
    # seen along the street a wall is narrower than it is high: so is its texture
    squeeze = 1.0 if normal[2] else float(np.clip(9.0 / max(z, 7.0), 0.25, 1.0))
    panel = Panel(width, height, (sharp * squeeze, sharp), BUILDING)
    panel.paint[..., :3] = np.clip(color, 0, 255).astype(np.uint8)
    rows, columns = panel.classes.shape
    up = (height - (np.arange(rows, dtype=np.float32) + 0.5) * np.float32(height / rows))[:, None]
    shift = float(rng.uniform(0, 50))
    texture = 1 + 0.11 * stage.noise.grid((rows, columns), (height, width), 26.0, shift)
    texture += 0.07 * stage.noise.grid((rows, columns), (height * 0.35, width), 4.1, shift)
    if brick and sharp > 14:
        texture -= 0.10 * (np.mod(up, 0.3) < 0.09)
    panel.modulate(texture.astype(np.float32))

    storeys = max(1, round(height / rng.uniform(2.8, 3.5)))
    storey = height / storeys
    is_shop = not plain and rng.uniform() < shop
    style = _WindowStyle(rng, storey, color, detailed=z < _DETAIL_M)
    bays = max(1, round(width / rng.uniform(1.9, 3.4)))
    bay = width / bays
    chance = 0.25 if plain else 0.97
    for floor in range(storeys):
        if floor == 0 and is_shop:
            _draw_shop(panel, rng, min(storey, 3.6))
            continue
        for index in range(bays):
            if rng.uniform() < chance:
                style.draw(panel, rng, (index + 0.5) * bay, floor * storey + 0.3 * storey, bay)
    if not plain and not is_shop:
        _draw_door(panel, rng, (int(rng.integers(bays)) + 0.5) * bay)
    trim = color * rng.uniform(0.85, 1.3)
    panel.rect(0, height - 0.35, width, height, trim)
    panel.rect(0, height - 0.45, width, height - 0.35, color * 0.45)
    if rng.uniform() < 0.4:
        for floor in range(1, storeys):
            panel.rect(0, floor * storey - 0.1, width, floor * storey + 0.08, trim)
    panel.rect(0.08, 0, 0.2, height - 0.4, color * 0.4)
    if not plain and rng.uniform() < 0.35:
        at, high = rng.uniform(0.1, 0.8) * width, rng.uniform(2.6, 4.0)
        board = _SHOPS[int(rng.integers(len(_SHOPS)))] * 1.3
        panel.rect(at, high, at + rng.uniform(0.6, 1.6), high + rng.uniform(0.6, 1.2), board, cls=SIGN)
    _light_wall(stage, panel, normal, z, up)
    return panel


def _light_wall(stage: Stage, panel: Panel, normal: tuple[float, float, float], z: float, up: Field) -> None:
    """Sun, haze, and grime towards the ground; `up` is the height (rows, 1) in metres."""
    haze = 1 - np.exp(-z / 600)
    lit = stage.light.shade(rgb(1, 1, 1), normal, 0) * (1 - haze) + stage.light.skyline * 0.004 * haze
    grime = np.clip(0.78 + 0.11 * up, 0, 1)
    for channel in range(3):
        view = panel.paint[..., channel]
        view[:] = np.minimum(view * (grime * np.float32(lit[channel])), 255)


class _WindowStyle:
    """Windows of one house are alike."""

    def __init__(self, rng: np.random.Generator, storey: float, wall: Rgb, detailed: bool) -> None:
        self.detailed = detailed
        self.wide, self.tall = rng.uniform(0.38, 0.7), storey * rng.uniform(0.42, 0.58)
        self.frame = _FRAMES[int(rng.integers(len(_FRAMES)))]
        self.bars = int(rng.integers(0, 3))
        self.surround = wall * rng.uniform(0.7, 1.35)
        self.glow = rng.uniform(0.0, 0.5)

    def draw(self, panel: Panel, rng: np.random.Generator, u: float, v: float, bay: float) -> None:
        half = min(self.wide * bay / 2, 0.95)
        left, right, top = u - half, u + half, v + self.tall
        inside = _GLASS * rng.uniform(0.6, 1.3)
        sky = rgb(150, 165, 178) * rng.uniform(0.2, 0.9) * (0.3 + self.glow)
        if not self.detailed:
            panel.rect(left - 0.06, v, right + 0.06, top, self.frame * 0.8)
            panel.rect(left + 0.03, v + 0.07, right - 0.03, top - 0.1, inside + sky * 0.4)
            return
        panel.rect(left - 0.12, top, right + 0.12, top + 0.22, self.surround)
        panel.rect(left - 0.12, v - 0.14, right + 0.12, v, self.surround * 1.1)
        panel.rect(left - 0.06, v, right + 0.06, top, self.frame)
        panel.rect(left - 0.06, top - 0.1, right + 0.06, top, self.frame * 0.5)
        steps = 4
        for step in range(steps):
            low, high = v + 0.07 + (top - v - 0.17) * np.array([step, step + 1]) / steps
            panel.rect(
                left + 0.03, low, right - 0.03, high, inside + (sky * step / (steps - 1)) * (rng.uniform() < 0.8)
            )
        if rng.uniform() < 0.25:
            panel.rect(left + 0.03, (v + top) / 2, right - 0.03, top - 0.1, rgb(150, 146, 136) * rng.uniform(0.5, 1))
        panel.rect(left, (v + top) / 2 - 0.03, right, (v + top) / 2 + 0.03, self.frame)
        for bar in range(self.bars):
            at = left + (right - left) * (bar + 1) / (self.bars + 1)
            panel.rect(at - 0.025, v, at + 0.025, top, self.frame)


def _draw_door(panel: Panel, rng: np.random.Generator, u: float) -> None:
    color = _SHOPS[int(rng.integers(len(_SHOPS)))] * rng.uniform(0.5, 1.0)
    panel.rect(u - 0.62, 0, u + 0.62, 2.6, rgb(150, 146, 138))
    panel.rect(u - 0.5, 0.12, u + 0.5, 2.15, color)
    panel.rect(u - 0.45, 2.2, u + 0.45, 2.5, _GLASS)


def _draw_shop(panel: Panel, rng: np.random.Generator, top: float) -> None:
    """Shop windows under a lettered fascia."""
    color = _SHOPS[int(rng.integers(len(_SHOPS)))] * rng.uniform(0.6, 1.1)
    panel.rect(0.1, 0, panel.width - 0.1, top, color * 0.7)
    panel.rect(0.1, top - 0.8, panel.width - 0.1, top - 0.15, color)
    letter = rgb(200, 196, 180) if color.mean() < 110 else rgb(50, 46, 44)
    u, end = panel.width * rng.uniform(0.15, 0.35), panel.width * rng.uniform(0.6, 0.85)
    while u < end:
        wide = rng.uniform(0.12, 0.3)
        panel.rect(u, top - 0.62, u + wide, top - 0.32, letter)
        u += wide + rng.uniform(0.06, 0.2)
    u = 0.3
    while u < panel.width - 0.8:
        wide = min(rng.uniform(0.9, 2.4), panel.width - 0.3 - u)
        low = 0.1 if rng.uniform() < 0.25 else 0.55
        panel.rect(u, low, u + wide, top - 0.95, _GLASS * rng.uniform(0.6, 1.3))
        panel.rect(u, top - 1.5, u + wide, top - 0.95, _GLASS * rng.uniform(1.0, 2.4))
        for _ in range(int(rng.integers(0, 4))):  # goods and posters behind the glass
            at, high = u + rng.uniform(0, 0.7) * wide, rng.uniform(0.6, 1.6)
            poster = rng.uniform(40, 190, 3)
            panel.rect(at, high, at + 0.28 * wide, high + rng.uniform(0.2, 0.6), poster)
        u += wide + 0.12
