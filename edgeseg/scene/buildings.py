"""Houses along the street and at its end: fronts, gables, roofs and chimneys."""

from __future__ import annotations

import numpy as np

from edgeseg.scene.camera import Points
from edgeseg.scene.facades import draw_wall, sample_material
from edgeseg.scene.light import Rgb, rgb
from edgeseg.scene.stage import BUILDING, Panel, Stage, points
from edgeseg.scene.street import Block, Side

_ROOFS = (rgb(72, 70, 74), rgb(96, 66, 54), rgb(84, 78, 70))


def draw_house(stage: Stage, side: Side, block: Block, commercial: float) -> None:
    """The street front, the gable end that faces the camera, the roof and its chimneys."""
    rng = np.random.default_rng(block.seed)
    material = sample_material(rng)
    deep = rng.uniform(7, 12)
    rise = rng.uniform(1.5, 3.5) * (rng.uniform() < 0.65)
    ridge, out = side.wall + side.sign * deep / 2, side.wall + side.sign * deep
    top, near, far = block.height, block.start, block.end
    roof = _ROOFS[int(rng.integers(len(_ROOFS)))] * rng.uniform(0.75, 1.15)

    gable = points((side.wall, top, near), (ridge, top + rise, near), (out, top, near))
    end = stage.light.shade(material.color * 0.92, (0, 0, -1), near)
    if rise:
        slope = (-side.sign * rise / deep * 2, 1.0, 0.0)
        tilt = float(np.hypot(slope[0], 1.0))
        shade = stage.light.shade(roof, (slope[0] / tilt, 1 / tilt, 0.0), near)
        over = side.wall - side.sign * 0.3
        plane = points(
            (over, top - 0.1, near), (ridge, top + rise, near), (ridge, top + rise, far), (over, top - 0.1, far)
        )
        stage.fill(plane, shade, BUILDING)
        stage.fill(gable, end, BUILDING)
    inner, outer = sorted((side.wall, out))
    corners = points((inner, top, near), (outer, top, near), (outer, 0, near), (inner, 0, near))
    # every wall has its own generator: what is not seen and not drawn must not change what is
    if side.height_at(near - 0.01) < top and stage.sees(corners):
        drawn = np.random.default_rng([block.seed, 1])
        stage.hang(draw_wall(stage, drawn, material, (deep, top), z=near, normal=(0, 0, -1), plain=True), corners)
    for _ in range(int(rng.integers(0, 4)) if rise else 0):
        _draw_chimney(stage, rng, material.color, (ridge, top + rise, rng.uniform(near, far)))

    first, last = (far, near) if side.sign > 0 else (near, far)
    corners = points((side.wall, top, first), (side.wall, top, last), (side.wall, 0, last), (side.wall, 0, first))
    if stage.sees(corners):
        drawn, normal = np.random.default_rng([block.seed, 2]), (-side.sign, 0, 0)
        front = draw_wall(stage, drawn, material, (far - near, top), z=near, normal=normal, shop=commercial)
        _shade_front(stage, side, front)
        stage.hang(front, corners)


def draw_facing_house(stage: Stage, x: float, z: float, size: tuple[float, float], rng: np.random.Generator) -> None:
    """A house seen from the front, (width, height) metres, at the end of the street or behind gardens."""
    material = sample_material(rng)
    width, height = size
    rise = rng.uniform(1, 3)
    roof = stage.light.shade(_ROOFS[int(rng.integers(len(_ROOFS)))], (0, 0.7, -0.7), z)
    left, right, ridge = x - 0.3, x + width + 0.3, height + rise
    stage.fill(
        points((left, height, z), (right, height, z), (right - 1.3, ridge, z), (left + 1.3, ridge, z)), roof, BUILDING
    )
    corners = points((x, height, z), (x + width, height, z), (x + width, 0, z), (x, 0, z))
    if stage.sees(corners):
        stage.hang(draw_wall(stage, rng, material, size, z=z, normal=(0, 0, -1)), corners)


def _draw_chimney(stage: Stage, rng: np.random.Generator, color: Rgb, top: tuple[float, float, float]) -> None:
    x, y, z = top
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
    view = panel.paint[..., :3][at]
    view[:] = np.clip(view * (shadow / full), 0, 255)
