"""Trees in leaf or bare, bushes and hedges.

As CamVid's annotators do, the sky between bare twigs counts as the tree.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgeseg.scene.camera import Points
from edgeseg.scene.light import Rgb, rgb
from edgeseg.scene.stage import TREE, Stage, limb, points, upright
from edgeseg.types import IGNORE

_BARK = rgb(74, 66, 58)


def draw_tree(stage: Stage, x: float, z: float, height: float, rng: np.random.Generator, *, bare: bool) -> None:
    wide = height * rng.uniform(0.5, 0.8)
    base = height * rng.uniform(0.18, 0.3)
    girth = height * rng.uniform(0.025, 0.04)
    if not stage.sees(points((x - wide, 1.4 * height, z), (x + wide, 0, z))):
        return
    bark = stage.light.shade(_BARK * rng.uniform(0.6, 1.1), (0, 0, -1), z)
    trunk = limb((0, 0), (rng.normal(0, 0.1), base + 0.2 * height), girth * 1.2, girth * 0.7)
    stage.fill(upright(trunk, x, z), bark, TREE)
    if bare:
        _draw_crown(
            stage, (x, base, z), (wide, height - base), rng, rgb(82, 74, 66) * rng.uniform(0.7, 1.1), density=0.36
        )
        forks = 5 if z < 25 else 3 if z < 50 else 2  # by metres, not pixels: all frame sizes agree
        limbs = _branches((0.0, base * 0.9), np.pi / 2, (height - base) * 0.34, girth * 0.8, rng, forks=forks)
        for shape in limbs:
            stage.fill(upright(shape, x, z), bark, TREE)
        return
    leaf = rgb(62, 74, 40) + rng.uniform(-1, 1) * rgb(14, 4, -6)
    _draw_crown(stage, (x, base, z), (wide, height - base), rng, leaf * rng.uniform(0.7, 1.1), density=1.0)


def draw_bush(stage: Stage, x: float, z: float, size: tuple[float, float], rng: np.random.Generator) -> None:
    """A bush or a bit of hedge of (width, height) metres, standing on the ground."""
    leaf = rgb(58, 66, 38) + rng.uniform(-1, 1) * rgb(16, 4, 0)
    _draw_crown(
        stage, (x, -0.25 * size[1], z), (size[0], size[1] * 1.25), rng, leaf * rng.uniform(0.6, 1.1), density=1.0
    )


def _branches(
    start: tuple[float, float], angle: float, length: float, girth: float, rng: np.random.Generator, *, forks: int
) -> Iterator[Points]:
    """A branch and, `forks` times over, those that grow from its end, as flat shapes."""
    end = (start[0] + length * float(np.cos(angle)), start[1] + length * float(np.sin(angle)))
    yield limb(start, end, girth, girth * 0.7)
    if forks:
        for turn in (-0.9, 0.9) if rng.uniform() < 0.7 else (-1.0, 0.0, 1.0):
            to = angle + turn * rng.uniform(0.25, 0.65) + 0.08 * (np.pi / 2 - angle)
            yield from _branches(end, to, length * rng.uniform(0.62, 0.85), girth * 0.62, rng, forks=forks - 1)


def _draw_crown(
    stage: Stage,
    base: tuple[float, float, float],
    size: tuple[float, float],
    rng: np.random.Generator,
    color: Rgb,
    *,
    density: float,
) -> None:
    """A noisy ellipse of (width, height) above `base` (x, y, z); below density 1 the background shows through."""
    x, y, z = base
    shift, bare = float(rng.uniform(0, 500)), density < 1
    corners = np.array([[x - size[0] / 2, y + size[1], z], [x + size[0] / 2, y, z]])
    (left, top), (right, bottom) = np.rint(stage.camera.project(corners)).astype(int).tolist()
    height, width = stage.camera.size
    rows, columns = np.arange(max(top, 0), min(bottom, height)), np.arange(max(left, 0), min(right, width))
    if not len(rows) or not len(columns):
        return
    # unit coordinates of the crown, v upwards; the noise is tied to them, not to pixels
    u = ((columns + 0.5 - left) / (right - left) * 2 - 1).astype(np.float32)[None, :]
    v = (1 - (rows + 0.5 - top) / (bottom - top) * 2).astype(np.float32)[:, None]
    coarse, middle = (stage.noise.sample(u + shift, v + shift, period) for period in (5.0, 1.3))
    fine = stage.noise.sample(u + shift, v + shift, 3.0, grain=True)
    edge = 1 - u * u - v * v * np.where(v > 0, np.float32(1.0), np.float32(1.25))
    inside = edge + 0.16 * coarse + (0.10 if bare else 0.13) * middle + 0.05 * fine > 0.12
    classes = np.where(inside, np.uint8(TREE), np.uint8(IGNORE))
    lit = stage.light.shade(color, (0, 0.5, -0.5), z).astype(np.float32)
    relief = (
        1 + 0.2 * middle + 0.14 * fine + 0.17 * coarse + 0.2 * v + 0.1 * u * np.float32(np.sign(stage.light.sun[0]))
    )
    paint = np.empty((*inside.shape, 4), np.uint8)
    for channel in range(3):
        paint[..., channel] = np.clip(lit[channel] * np.maximum(relief, 0.15), 0, 255)
    thin = np.clip(density + 0.3 * fine + 0.12 * middle + 0.3 * np.minimum(edge, 0.6), 0.08, 0.95)
    paint[..., 3] = np.clip(thin * 255, 0, 255) if bare else 255
    stage.paste(paint, classes, int(rows[0]), int(columns[0]))
