"""Houses along the street: walls of several materials with windows, doors and shops, roofs and chimneys."""

from __future__ import annotations

import numpy as np

from edgeseg.scene.camera import Points
from edgeseg.scene.light import Rgb, rgb
from edgeseg.scene.noise import Field
from edgeseg.scene.stage import BUILDING, SIGN, Panel, Stage, points
from edgeseg.scene.street import Block, Side

_WALLS = (
    rgb(126, 84, 66),
    rgb(104, 70, 58),
    rgb(150, 132, 98),
    rgb(138, 122, 98),
    rgb(162, 150, 128),
    rgb(206, 202, 192),
    rgb(188, 178, 156),
    rgb(128, 127, 124),
    rgb(96, 84, 72),
    rgb(84, 64, 54),
)
_BRICK = {0, 1, 2, 3, 8, 9}
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
_ROOFS = (rgb(72, 70, 74), rgb(96, 66, 54), rgb(84, 78, 70))
_FRAMES = (rgb(214, 214, 210), rgb(200, 198, 190), rgb(62, 58, 54))
_GLASS = rgb(38, 42, 46)


def draw_house(stage: Stage, side: Side, block: Block, commercial: float) -> None:
    """The street front, the gable end that faces the camera, the roof and its chimneys."""
    rng = np.random.default_rng(block.seed)
    wall = int(rng.integers(len(_WALLS)))
    color = _WALLS[wall] * rng.uniform(0.72, 1.06)
    deep = rng.uniform(7, 12)
    rise = rng.uniform(1.5, 3.5) * (rng.uniform() < 0.65)
    ridge, out = side.wall + side.sign * deep / 2, side.wall + side.sign * deep
    top, near, far = block.height, block.start, block.end
    roof = _ROOFS[int(rng.integers(len(_ROOFS)))] * rng.uniform(0.75, 1.15)

    gable = points((side.wall, top, near), (ridge, top + rise, near), (out, top, near))
    end = stage.light.shade(color * 0.92, (0, 0, -1), near)
    if rise:
        slope = (-side.sign * rise / deep * 2, 1.0, 0.0)
        tilt = float(np.hypot(slope[0], 1.0))
        shade = stage.light.shade(roof, (slope[0] / tilt, 1 / tilt, 0.0), near)
        over = side.wall - side.sign * 0.3
        plane = points((over, top - 0.1, near), (ridge, top + rise, near), (ridge, top + rise, far), (over, top - 0.1, far))
        stage.fill(plane, shade, BUILDING)
        stage.fill(gable, end, BUILDING)
    gable_wall = _wall(stage, rng, color * 0.94, wall in _BRICK, (deep, top), near, (0, 0, -1), plain=True)
    inner, outer = sorted((side.wall, out))
    stage.hang(gable_wall, points((inner, top, near), (outer, top, near), (outer, 0, near), (inner, 0, near)))
    for _ in range(int(rng.integers(0, 4)) if rise else 0):
        _draw_chimney(stage, rng, color, ridge, top + rise, rng.uniform(near, far))

    front = _wall(stage, rng, color, wall in _BRICK, (far - near, top), near, (-side.sign, 0, 0), shop=commercial)
    _shade_front(stage, side, front)
    first, last = (far, near) if side.sign > 0 else (near, far)
    stage.hang(
        front,
        points((side.wall, top, first), (side.wall, top, last), (side.wall, 0, last), (side.wall, 0, first)),
    )


def draw_facing_house(stage: Stage, x: float, z: float, size: tuple[float, float], rng: np.random.Generator) -> None:
    """A house seen from the front, (width, height) metres, at the end of the street or behind gardens."""
    wall = int(rng.integers(len(_WALLS)))
    color = _WALLS[wall] * rng.uniform(0.7, 1.0)
    width, height = size
    panel = _wall(stage, rng, color, wall in _BRICK, size, z, (0, 0, -1))
    stage.hang(panel, points((x, height, z), (x + width, height, z), (x + width, 0, z), (x, 0, z)))
    rise = rng.uniform(1, 3)
    roof = stage.light.shade(_ROOFS[int(rng.integers(len(_ROOFS)))], (0, 0.7, -0.7), z)
    corners = ((x - 0.3, height, z), (x + width + 0.3, height, z), (x + width - 1, height + rise, z), (x + 1, height + rise, z))
    stage.fill(points(*corners), roof, BUILDING)


def _draw_chimney(stage: Stage, rng: np.random.Generator, color: Rgb, x: float, y: float, z: float) -> None:
    wide, tall = rng.uniform(0.5, 1.1), rng.uniform(0.8, 1.8)
    base = y - 0.8
    shade = stage.light.shade(color * 0.8, (0, 0, -1), z)
    stack: Points = points((x - wide, base, z), (x + wide, base, z), (x + wide, y + tall, z), (x - wide, y + tall, z))
    stage.fill(stack, shade, BUILDING)
    for pot in (-0.6, 0.0, 0.6):
        left, right = x + pot * wide - 0.12, x + pot * wide + 0.12
        stage.fill(
            points((left, y + tall, z), (right, y + tall, z), (right, y + tall + 0.45, z), (left, y + tall + 0.45, z)),
            shade * 0.8,
            BUILDING,
        )


def _wall(
    stage: Stage,
    rng: np.random.Generator,
    color: Rgb,
    brick: bool,
    size: tuple[float, float],
    z: float,
    normal: tuple[float, float, float],
    shop: float = 0.0,
    plain: bool = False,
) -> Panel:
    """A lit elevation of (width, height) metres; `plain` has few windows and no door."""
    width, height = size
    sharp = min(0.62 * stage.camera.scale(max(z, 7.0)), 2000 / max(size))
    # seen along the street a wall is narrower than it is high: so is its texture
    squeeze = 1.0 if normal[2] else float(np.clip(12.0 / max(z, 7.0), 0.25, 1.0))
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
    style = _WindowStyle(rng, storey)
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
        panel.rect(at, high, at + rng.uniform(0.6, 1.6), high + rng.uniform(0.6, 1.2), board, SIGN)
    lit = stage.light.shade(rgb(1, 1, 1), normal, 0) * np.exp(-z / 600) + stage.light.skyline * 0.004 * (1 - np.exp(-z / 600))
    grime: Field = np.clip(0.78 + 0.22 * up / 2.0, 0, 1).astype(np.float32)
    panel.paint[..., :3] = np.clip(panel.paint[..., :3] * (lit.astype(np.float32) * grime[..., None]), 0, 255)
    return panel


class _WindowStyle:
    """Windows of one house are alike."""

    def __init__(self, rng: np.random.Generator, storey: float) -> None:
        self.wide, self.tall = rng.uniform(0.38, 0.7), storey * rng.uniform(0.42, 0.58)
        self.frame = _FRAMES[int(rng.integers(len(_FRAMES)))]
        self.bars = int(rng.integers(0, 3))
        self.surround = rng.uniform(0.7, 1.35)
        self.glow = rng.uniform(0.0, 0.5)

    def draw(self, panel: Panel, rng: np.random.Generator, u: float, v: float, bay: float) -> None:
        half = min(self.wide * bay / 2, 0.95)
        left, right, top = u - half, u + half, v + self.tall
        wall = panel.paint[panel.window(left - 0.1, v, left, top)][..., :3].reshape(-1, 3)
        around = wall.mean(axis=0) * self.surround if len(wall) else self.frame
        panel.rect(left - 0.12, top, right + 0.12, top + 0.22, around)
        panel.rect(left - 0.12, v - 0.14, right + 0.12, v, around * 1.1)
        panel.rect(left - 0.06, v, right + 0.06, top, self.frame)
        panel.rect(left - 0.06, top - 0.1, right + 0.06, top, self.frame * 0.5)
        inside = _GLASS * rng.uniform(0.6, 1.3)
        sky = rgb(150, 165, 178) * rng.uniform(0.2, 0.9) * (0.3 + self.glow)
        steps = 4
        for step in range(steps):
            low, high = v + 0.07 + (top - v - 0.17) * np.array([step, step + 1]) / steps
            panel.rect(left + 0.03, low, right - 0.03, high, inside + (sky * step / (steps - 1)) * (rng.uniform() < 0.8))
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


def _shade_front(stage: Stage, side: Side, panel: Panel) -> None:
    """The houses across the street take the sun from the lower part of a front that faces it."""
    light = stage.light
    if light.sun_gain[1] <= 0 or light.run * side.sign <= 0:
        return
    across = 2 * abs(side.wall)
    edge = panel.height * 0.95 - across / max(abs(light.run), 0.05)
    shadow = light.shade(rgb(1, 1, 1), (0, 0, 0), 0, sunlit=False)
    full = light.shade(rgb(1, 1, 1), (-side.sign, 0, 0), 0)
    at = panel.window(0, 0, panel.width, max(0.0, edge))
    view = panel.paint[(*at, slice(3))]
    view[:] = np.clip(view * (shadow / full), 0, 255)
