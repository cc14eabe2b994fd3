"""Road, pavements, markings, and the shadows the houses throw on them."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from edgeseg.scene.camera import Points
from edgeseg.scene.light import Rgb, rgb
from edgeseg.scene.noise import Field
from edgeseg.scene.stage import PAVEMENT, ROAD, TREE, Stage, points
from edgeseg.scene.street import FAR_M, Side, Street

_KERB_M = 0.16
_WHITE = rgb(205, 205, 200)
_YELLOW = rgb(170, 150, 85)


def draw_ground(stage: Stage, street: Street, rng: np.random.Generator) -> None:
    ground = stage.camera.ground()
    first, x, z = ground
    light = stage.light
    view = stage.image[first:]
    grey = rng.uniform(80, 106)
    asphalt = light.shade(rgb(grey, grey * 1.01, grey * 1.03), (0, 1, 0), 0, sunlit=False)
    view[:] = np.clip(asphalt, 0, 255).astype(np.uint8)
    stage.classes[first:] = ROAD
    _draw_wear(stage, street, rng, asphalt)
    _draw_markings(stage, street, rng)
    for side in street.sides:
        _draw_pavement(stage, side, rng, ground)
    factor = _texture(stage, x, z) * _sunlight(stage, street, x, z)
    hazy = (1 - np.exp(-z[:, 0] / 600.0)).astype(np.float32)[:, None]
    for channel in range(3):
        lit = view[..., channel] * factor * (1 - hazy) + hazy * np.float32(light.skyline[channel] * 0.75)
        view[..., channel] = np.clip(lit, 0, 255)


def _strip(x0: float, x1: float, z0: float, z1: float) -> Points:
    return points((x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1))


def _draw_wear(stage: Stage, street: Street, rng: np.random.Generator, asphalt: Rgb) -> None:
    """Mended rectangles, cracks and manhole covers."""
    left, right = street.left.kerb, street.right.kerb
    for _ in range(int(rng.integers(2, 7))):
        x, z = rng.uniform(left, right), rng.uniform(4, 40)
        wide, long = rng.uniform(0.4, 2.2), rng.uniform(1, 12)
        stage.fill(_strip(x, x + wide, z, z + long), asphalt * rng.uniform(0.8, 1.1), ROAD)
    for _ in range(int(rng.integers(1, 4))):
        x, z = rng.uniform(left + 0.5, right - 0.5), rng.uniform(5, 25)
        angle = np.arange(16) * (np.pi / 8)
        cover = np.column_stack([x + 0.33 * np.cos(angle), np.zeros(16), z + 0.33 * np.sin(angle)])
        stage.fill(cover, asphalt * 0.66, ROAD)
    for _ in range(int(rng.integers(1, 5))):
        x, z = rng.uniform(left, right), rng.uniform(4, 12)
        for _ in range(9):
            to_x, to_z = x + rng.normal(0, 0.12), z + rng.uniform(0.2, 0.9)
            stage.fill(
                points((x, 0, z), (x + 0.03, 0, z), (to_x + 0.03, 0, to_z), (to_x, 0, to_z)), asphalt * 0.7, ROAD
            )
            x, z = to_x, to_z


def _draw_markings(stage: Stage, street: Street, rng: np.random.Generator) -> None:
    light = stage.light
    fresh = rng.uniform(0.62, 1.0)
    white = light.shade(_WHITE * fresh, (0, 1, 0), 0, sunlit=False)
    yellow = light.shade(_YELLOW * fresh, (0, 1, 0), 0, sunlit=False)
    dash, gap = ((2.0, 4.0), (4.0, 2.0), (1.0, 5.0), (60.0, 1.0))[int(rng.integers(4))]
    half = rng.uniform(0.05, 0.08)
    z = rng.uniform(-dash, gap)
    while z < FAR_M:
        stage.fill(_strip(street.middle - half, street.middle + half, z, z + dash), white, ROAD)
        z += dash + gap
    lines = int(rng.integers(0, 3))
    for side in street.sides:
        for line in range(lines):
            x = side.kerb - side.sign * (0.25 + 0.2 * line)
            until = side.junction[0]
            stage.fill(_strip(x - 0.045, x + 0.045, 0.7, until), yellow, ROAD)
    if rng.uniform() < 0.3:  # a zebra crossing, or a stop line
        z = rng.uniform(9, 30)
        stripes = np.arange(street.left.kerb + 0.3, street.right.kerb - 0.5, 1.1)
        for x in stripes.tolist():
            stage.fill(_strip(x, x + 0.55, z, z + 2.8), white, ROAD)
    elif rng.uniform() < 0.4:
        z = rng.uniform(8, 25)
        stage.fill(_strip(street.left.kerb + 0.3, street.middle - 0.1, z, z + 0.3), white, ROAD)
    if rng.uniform() < 0.35:  # an arrow ahead
        z, x = rng.uniform(6, 16), (street.left.kerb + street.middle) / 2
        stage.fill(_strip(x - 0.09, x + 0.09, z, z + 2.5), white, ROAD)
        stage.fill(points((x - 0.4, 0, z + 2.4), (x + 0.4, 0, z + 2.4), (x, 0, z + 4.2)), white, ROAD)


def _draw_pavement(stage: Stage, side: Side, rng: np.random.Generator, ground: tuple[int, Field, Field]) -> None:
    """Slabs behind a kerb stone; grass beyond the fence line; nothing where a side road opens."""
    first, x, z = ground
    light = stage.light
    tint = rng.uniform(-1, 1)
    grey = rng.uniform(92, 128)
    slab = light.shade(rgb(grey + 5 * tint, grey, grey - 5 * tint), (0, 1, 0), 0, sunlit=False)
    away = (x - np.float32(side.kerb)) * side.sign
    opening = (z > side.junction[0]) & (z < side.junction[1])
    walk = (away >= 0) & ~opening
    view, classes = stage.image[first:], stage.classes[first:]
    rows, columns = _span(walk)
    if rows.stop == 0:
        return
    view, classes = view[rows, columns], classes[rows, columns]
    walk, away, z = walk[rows, columns], away[rows, columns], z[rows, columns]
    view[walk] = np.clip(slab, 0, 255).astype(np.uint8)
    classes[walk] = PAVEMENT
    near = z < 25
    size = float(rng.uniform(0.45, 0.9))
    joint = near & (np.mod(z, size) < 0.04) | near & (np.mod(away, size) < 0.03)
    view[walk & joint] = np.clip(slab * 0.86, 0, 255).astype(np.uint8)
    stone = walk & (away < _KERB_M)
    view[stone] = np.clip(slab * 1.12, 0, 255).astype(np.uint8)
    gutter = (away < 0) & (away > -0.09) & (z < 60)
    view[gutter] = np.clip(slab * 0.55, 0, 255).astype(np.uint8)
    gardens = [block for block in side.blocks if block.height == 0]
    behind = walk & (away > abs(side.wall - side.kerb))
    for garden in gardens:
        lawn = behind & (z > garden.start) & (z < garden.end)
        grass = light.shade(rgb(78, 96, 50) * rng.uniform(0.8, 1.1), (0, 1, 0), 0, sunlit=False)
        view[lawn] = np.clip(grass, 0, 255).astype(np.uint8)
        classes[lawn] = TREE


def _span(mask: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    """The rows and columns a mask needs, so that the rest of the frame is left alone."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _texture(stage: Stage, x: Field, z: Field) -> Field:
    """Grain, tyre tracks and stains; each octave fades where a pixel covers more than it."""
    footprint = z * z / np.float32(stage.camera.focal * stage.camera.size[0] * stage.camera.height_m)
    fine = np.minimum(1, np.float32(0.06) / footprint)
    middle = np.minimum(1, np.float32(0.6) / footprint)
    total = 1 + np.float32(0.04) * stage.noise.sample(x, z * np.float32(0.3), 31.0)
    total += np.float32(0.02) * middle * stage.noise.sample(x, z * np.float32(0.5), 5.3)
    total += np.float32(0.075) * fine * stage.noise.sample(x, z * np.float32(0.6), 2.3, grain=True)
    lane = np.float32(0.035) * np.cos(x * np.float32(2 * np.pi / 1.6))
    return np.asarray(np.maximum(total - lane, 0.3), np.float32)


def _sunlight(stage: Stage, street: Street, x: Field, z: Field) -> Field:
    """Gain of direct sun on the ground, where the row of houses on the sun's side lets it through."""
    light = stage.light
    gain = float(light.sun_gain[1] / light.ambient[1] * light.sun[1])
    if gain <= 0:
        return np.ones_like(x)
    side = street.left if light.run > 0 else street.right
    heights = np.array([side.height_at(0.5 * step) for step in range(int(FAR_M) * 2)], np.float32)
    slant = float(-light.sun[2] / light.sun[1])
    reach = abs(light.run)
    back = np.abs(x - np.float32(side.wall)) / np.float32(max(reach, 0.05))
    index = np.clip((z - back * np.float32(slant)) * 2, 0, len(heights) - 1)
    shaded = (heights[index.astype(np.int32)] > back).astype(np.float32)
    soft = cv2.blur(shaded, (5, 3))
    return np.asarray(1 + np.float32(gain) * (1 - soft), np.float32)
