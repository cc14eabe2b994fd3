"""Who and what stands or moves in a street, placed and painted from far to near."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from edgeseg.scene.buildings import draw_facing_house, draw_house
from edgeseg.scene.furniture import draw_bollard, draw_fence, draw_lamp_post, draw_sign, draw_traffic_light
from edgeseg.scene.light import rgb
from edgeseg.scene.people import draw_bicyclist, draw_pedestrian
from edgeseg.scene.stage import TREE, Stage, points
from edgeseg.scene.street import FAR_M, Block, Side, Street
from edgeseg.scene.trees import draw_bush, draw_tree
from edgeseg.scene.vehicles import draw_vehicle, sample_body

_Draw = Callable[[], None]
_Placed = list[tuple[float, _Draw]]
"""Depth in metres of the nearest point, and what paints the thing."""


def draw_town(stage: Stage, street: Street, rng: np.random.Generator) -> None:
    """Houses and gardens on both sides, and what closes the street far away."""
    leafless = bool(rng.uniform() < 0.5)
    _draw_far_end(stage, rng, leafless)
    for side in street.sides:
        if side.junction[0] < FAR_M:
            _draw_side_road(stage, side, rng)
    for side in street.sides:
        for block in reversed(side.blocks):
            if block.height:
                draw_house(stage, side, block, street.commercial)
            else:
                _draw_garden(stage, side, block, leafless)


def draw_traffic(stage: Stage, street: Street, rng: np.random.Generator) -> None:
    """Everything between the walls."""
    placed: _Placed = []
    for side in street.sides:
        _place_furniture(placed, stage, side, rng)
        _place_walkers(placed, stage, side, rng)
        if side.parked:
            _place_parked(placed, stage, side, rng)
    _place_moving(placed, stage, street, rng)
    for _, draw in sorted(placed, key=lambda thing: -thing[0]):
        draw()


def _own(rng: np.random.Generator) -> np.random.Generator:
    """A generator for one thing, so that what it draws moves nothing else."""
    return np.random.default_rng(int(rng.integers(2**63)))


def _draw_far_end(stage: Stage, rng: np.random.Generator, leafless: bool) -> None:
    hedge = stage.light.shade(rgb(70, 72, 60), (0, 0, -1), FAR_M)
    z = FAR_M + 65
    stage.fill(points((-400, 0, z), (400, 0, z), (400, 4, z), (-400, 4, z)), hedge, TREE)
    for _ in range(int(rng.integers(4, 8))):
        x, z = rng.uniform(-70, 60), FAR_M + rng.uniform(5, 60)
        draw_facing_house(stage, x, z, (rng.uniform(8, 20), rng.uniform(6, 14)), _own(rng))
    for _ in range(int(rng.integers(6, 14))):
        x, z = rng.uniform(-60, 60), FAR_M + rng.uniform(0, 5)
        draw_tree(stage, x, z, rng.uniform(7, 15), _own(rng), bare=leafless)


def _draw_side_road(stage: Stage, side: Side, rng: np.random.Generator) -> None:
    """Houses on the far side of a side road, beyond the one at the corner."""
    out = abs(side.wall) + 6.0
    for _ in range(3):
        width, height = rng.uniform(8, 14), rng.uniform(6, 10)
        x = out if side.sign > 0 else -out - width
        draw_facing_house(stage, x, side.junction[1] + 0.5, (width, height), _own(rng))
        out += width


def _draw_garden(stage: Stage, side: Side, block: Block, leafless: bool) -> None:
    """A lawn with a house, trees and bushes behind a fence."""
    rng = np.random.default_rng(block.seed)
    deep = rng.uniform(10, 22)
    if rng.uniform() < 0.6:
        x = side.wall + side.sign * deep
        size = (rng.uniform(8, 14), rng.uniform(5, 9))
        draw_facing_house(stage, x if side.sign > 0 else x - size[0], block.end, size, _own(rng))
    things: list[tuple[float, float, bool]] = []
    for _ in range(int(rng.integers(5, 10))):
        things.append((rng.uniform(block.start + 1, block.end), rng.uniform(2.0, deep), True))
    for _ in range(int(rng.integers(6, 14))):
        things.append((rng.uniform(block.start + 1, block.end), rng.uniform(0.8, deep), False))
    for z, out, tree in sorted(things, reverse=True):
        x = side.wall + side.sign * out
        if tree:
            draw_tree(stage, x, z, rng.uniform(6, 12), _own(rng), bare=leafless)
        else:
            draw_bush(stage, x, z, (rng.uniform(1.5, 5), rng.uniform(1.0, 2.6)), _own(rng))
    if rng.uniform() < 0.85:
        draw_fence(stage, side.wall, (block.start, block.end), rng.uniform(1.0, 1.8), _own(rng))


def _place_furniture(placed: _Placed, stage: Stage, side: Side, rng: np.random.Generator) -> None:
    def put(z: float, x: float, draw: Callable[[Stage, float, float, np.random.Generator], None]) -> None:
        own = _own(rng)
        if not side.junction[0] - 1 < z < side.junction[1] + 1:
            placed.append((z, partial(draw, stage, x, z, own)))

    behind_kerb = side.kerb + side.sign * 0.5
    spacing, phase = rng.uniform(22, 35), rng.uniform(0, 30)
    for z in np.arange(6 + phase, FAR_M, spacing).tolist():
        put(z, behind_kerb, lambda s, x, z, own: draw_lamp_post(s, x, z, -side.sign, own))
    for _ in range(int(rng.integers(1, 5))):
        put(rng.uniform(8, 60), behind_kerb, draw_sign)
    for _ in range(int(rng.integers(0, 3))):
        put(rng.uniform(9, 45), behind_kerb, draw_traffic_light)
    if rng.uniform() < 0.3:
        start = rng.uniform(7, 25)
        for index in range(int(rng.integers(3, 8))):
            put(start + 1.8 * index, behind_kerb, draw_bollard)
    if not side.parked and rng.uniform() < 0.45:
        _place_guard_rail(placed, stage, side, rng)
    if rng.uniform() < 0.4:  # street trees
        leafless, apart = bool(rng.uniform() < 0.6), rng.uniform(9, 16)
        for z in np.arange(rng.uniform(11, 25), 90, apart).tolist():
            put(z, behind_kerb, partial(_draw_street_tree, height=rng.uniform(5.5, 10), bare=leafless))


def _draw_street_tree(stage: Stage, x: float, z: float, rng: np.random.Generator, *, height: float, bare: bool) -> None:
    draw_tree(stage, x, z, height, rng, bare=bare)


def _place_guard_rail(placed: _Placed, stage: Stage, side: Side, rng: np.random.Generator) -> None:
    """A railing along the kerb, in lengths of its own depth: people walk behind it."""
    first, lengths, seed = rng.uniform(9, 25), int(rng.integers(3, 8)), int(rng.integers(2**63))
    x = side.kerb + side.sign * 0.35
    for start in (first + 2.2 * np.arange(lengths)).tolist():
        if start + 2.2 < side.junction[0] or start > side.junction[1]:
            # the same generator for each: they are one railing
            own = np.random.default_rng(seed)
            placed.append((start, partial(draw_fence, stage, x, (start, start + 2.2), 1.05, own)))


def _place_walkers(placed: _Placed, stage: Stage, side: Side, rng: np.random.Generator) -> None:
    inner, outer = sorted((side.kerb + side.sign * 0.7, side.wall - side.sign * 0.4))
    for _ in range(int(rng.integers(1, 8))):
        x = rng.uniform(inner, outer)
        z = rng.uniform(7, 16) if rng.uniform() < 0.25 else rng.uniform(16, 60)
        placed.append((z, partial(draw_pedestrian, stage, x, z, _own(rng))))


def _place_parked(placed: _Placed, stage: Stage, side: Side, rng: np.random.Generator) -> None:
    z = rng.uniform(5, 9)
    while z < 85:
        body = sample_body(rng, large=False)
        x = side.kerb - side.sign * (body.width / 2 + rng.uniform(0.1, 0.3))
        turn = rng.normal(0, 0.02) + np.pi * (rng.uniform() < (0.15 if side.sign < 0 else 0.8))
        middle = z + body.length / 2
        free = rng.uniform() < 0.2 or side.junction[0] - 3 < middle < side.junction[1] + 3
        if not free:
            placed.append((z, partial(draw_vehicle, stage, body, x, middle, _own(rng), turn=turn)))
        z += body.length + rng.uniform(0.6, 2.0)


def _place_moving(placed: _Placed, stage: Stage, street: Street, rng: np.random.Generator) -> None:
    ours = max(street.middle - 1.8, street.left.kerb + 1.1 + 2.1 * street.left.parked)
    theirs = min(street.middle + 1.6, street.right.kerb - 1.1 - 2.1 * street.right.parked)
    for lane, heading, first in ((ours, 0.0, rng.uniform(9, 35)), (theirs, np.pi, rng.uniform(8, 25))):
        z = first
        for _ in range(int(rng.integers(1, 5))):
            body = sample_body(rng)
            x, turn = lane + rng.normal(0, 0.15), heading + rng.normal(0, 0.015)
            placed.append((z, partial(draw_vehicle, stage, body, x, z + body.length / 2, _own(rng), turn=turn)))
            z += body.length + rng.uniform(5, 25)
    z = 6.0
    for _ in range(int(rng.integers(0, 4))):
        beside_kerb = street.left.kerb + 2.1 * street.left.parked + rng.uniform(0.4, 0.9)
        x = beside_kerb if rng.uniform() < 0.7 else theirs + rng.normal(0, 0.5)
        z += rng.uniform(1.5, 12)
        placed.append((z, partial(draw_bicyclist, stage, x, z, _own(rng))))
