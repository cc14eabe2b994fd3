"""Lamp posts, traffic signs and lights, bollards, railings and fences."""

from __future__ import annotations

import numpy as np

from edgeseg.scene.light import Rgb, rgb
from edgeseg.scene.stage import FENCE, POLE, SIGN, Panel, Stage, ellipse, limb, points, upright

_FACING = (0.0, 0.2, -0.98)
_METAL = (rgb(120, 122, 124), rgb(64, 66, 68), rgb(40, 48, 44))


def _post(stage: Stage, rng: np.random.Generator, x: float, z: float, *, height: float, wide: float) -> Rgb:
    color = stage.light.shade(_METAL[int(rng.integers(3))] * rng.uniform(0.7, 1.2), _FACING, z)
    stage.fill(upright(limb((0, 0), (0, height), wide, wide * 0.75), x, z), color, POLE)
    stage.fill(upright(limb((wide * 0.25, 0), (wide * 0.2, height), wide * 0.5, wide * 0.4), x, z), color * 0.7, POLE)
    return color


def draw_lamp_post(stage: Stage, x: float, z: float, towards: int, rng: np.random.Generator) -> None:
    """A street lamp whose arm reaches over the road, in direction `towards` (-1 left, +1 right)."""
    height, arm = rng.uniform(6, 9.5), rng.uniform(0.8, 1.8) * towards
    color = _post(stage, rng, x, z, height=height, wide=0.17)
    stage.fill(upright(limb((0, 0), (0, 1.2), 0.26, 0.26), x, z), color * 0.9, POLE)
    stage.fill(upright(limb((0, height), (arm, height + 0.35), 0.11, 0.09), x, z), color, POLE)
    head = limb((arm * 0.8, height + 0.3), (arm * 1.35, height + 0.42), 0.16, 0.2)
    stage.fill(upright(head, x, z), color * 1.1, POLE)


def draw_sign(stage: Stage, x: float, z: float, rng: np.random.Generator) -> None:
    """A round, three-cornered or square traffic sign, seen from the front or from behind."""
    height = rng.uniform(2.1, 3.0)
    _post(stage, rng, x, z, height=height, wide=0.09)
    size = rng.uniform(0.3, 0.42)
    red, white, blue = (
        stage.light.shade(color, _FACING, z) for color in (rgb(160, 34, 36), rgb(200, 200, 196), rgb(36, 64, 140))
    )
    kind = int(rng.integers(4))
    if kind == 0:
        rings = [(ellipse(0, height, size, size), red), (ellipse(0, height, size * 0.7, size * 0.7), white)]
        rings.append((limb((-size * 0.35, height), (size * 0.35, height), 0.16, 0.16), white * 0.2))
    elif kind == 1:
        wide = np.array([(-size, -0.58 * size), (size, -0.58 * size), (0, 1.15 * size)])
        rings = [(wide + np.array([0, height]), red), (wide * 0.62 + np.array([0, height]), white)]
        rings.append((limb((0, height - size * 0.2), (0, height + size * 0.3), 0.08, 0.08), white * 0.2))
    elif kind == 2:
        board = rng.uniform(0.4, 0.9)
        if rng.uniform() < 0.5:
            blue, white = white, blue
        rings = [
            (limb((0, height - size), (0, height + size), 2 * board, 2 * board), blue),
            (limb((0, height + size * 0.25), (0, height + size * 0.45), 1.4 * board, 1.4 * board), white),
            (limb((0, height - size * 0.45), (0, height - size * 0.25), 1.1 * board, 1.1 * board), white),
        ]
    else:
        rings = [(ellipse(0, height, size, size), stage.light.shade(rgb(112, 114, 116), _FACING, z))]
    for shape, color in rings:
        stage.fill(upright(shape, x, z), color, SIGN)


def draw_traffic_light(stage: Stage, x: float, z: float, rng: np.random.Generator) -> None:
    height = rng.uniform(2.8, 3.3)
    _post(stage, rng, x, z, height=height, wide=0.12)
    box = limb((0, height - 0.55), (0, height + 0.55), 0.46, 0.46)
    stage.fill(upright(box, x, z), stage.light.shade(rgb(22, 23, 24), _FACING, z), SIGN)
    on = int(rng.integers(3))
    for index, color in enumerate((rgb(60, 235, 160), rgb(255, 180, 60), rgb(255, 70, 50))):
        lamp = color if index == on else color * 0.14
        stage.fill(upright(ellipse(0, height - 0.33 + 0.33 * index, 0.11, 0.11), x, z), lamp, SIGN)


def draw_bollard(stage: Stage, x: float, z: float, rng: np.random.Generator) -> None:
    _post(stage, rng, x, z, height=rng.uniform(0.9, 1.1), wide=0.15)


def draw_fence(stage: Stage, x: float, span: tuple[float, float], height: float, rng: np.random.Generator) -> None:
    """A railing, boards, or a low wall with a railing along the street, over a `span` of z.

    As in CamVid, what is seen through a railing counts as the fence.
    """
    start, end = span
    facing = (-float(np.sign(x)), 0.0, 0.0)
    sharp = min(0.6 * stage.camera.scale(max(start, 7.0)), 3000 / (end - start))
    squeeze = float(np.clip(14.0 / max(start, 7.0), 0.3, 1.0))
    long = end - start
    panel = Panel(long, height, (sharp * squeeze, sharp), FENCE)
    kind = int(rng.choice(3, p=[0.45, 0.2, 0.35]))
    tint = rng.uniform(0.7, 1.1)
    wood = stage.light.shade(rgb(98, 84, 68) * tint, facing, start)
    metal = stage.light.shade(rgb(46, 50, 50) * tint, facing, start)
    stone = stage.light.shade(rgb(122, 104, 86) * tint, facing, start)
    panel.paint[..., :3] = np.clip(wood if kind == 1 else metal, 0, 255).astype(np.uint8)
    low = 0.45 * height if kind == 2 else 0.0
    if kind == 1:
        for u in np.arange(0, long, 0.28).tolist():
            panel.rect(u, 0, u + 0.04, height, wood * 0.6)
    else:
        gaps = panel.window(0, low + 0.12, long, height - 0.08)
        panel.paint[..., 3][gaps] = 60
        for u in np.arange(0, long, 0.16).tolist():
            panel.paint[..., 3][panel.window(u, low, u + 0.045, height)] = 255
        for u in np.arange(0, long, 2.2).tolist():
            panel.paint[..., 3][panel.window(u, 0, u + 0.1, height)] = 255
        if kind == 2:
            panel.rect(0, 0, long, low, stone)
            panel.rect(0, low - 0.08, long, low, stone * 1.15)
    panel.modulate(1 + 0.13 * stage.noise.grid(panel.classes.shape, (height, long), 9.0, float(rng.uniform(0, 90))))
    first, last = (end, start) if x > 0 else (start, end)
    stage.hang(panel, points((x, height, first), (x, height, last), (x, 0, last), (x, 0, first)))
