"""The plan of a street: where its kerbs and walls run and how high it is built, drawn before anything is painted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FAR_M = 150.0
_START_M = 2.5
_SHORTEST_M = 6.0


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch from `start` to `end` metres ahead; `height` 0 is a garden behind a fence."""

    start: float
    end: float
    height: float
    seed: int


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the street: `sign` -1 left, +1 right; `kerb` and `wall` are x in metres, signed.

    `junction` is the stretch where a side road opens instead of pavement and buildings.
    """

    sign: int
    kerb: float
    wall: float
    blocks: tuple[Block, ...]
    junction: tuple[float, float]
    parked: bool

    def height_at(self, z: float) -> float:
        return next((block.height for block in self.blocks if block.start <= z < block.end), 0.0)


@dataclass(frozen=True, slots=True)
class Street:
    """Two sides; the camera drives in the left of two lanes divided at x = `middle`."""

    left: Side
    right: Side
    middle: float
    commercial: float
    """How likely a ground floor is a shop, 0..1."""

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.left, self.right


def _sample_blocks(
    rng: np.random.Generator, height: float, green: float, junction: tuple[float, float]
) -> tuple[Block, ...]:
    blocks, z = [], _START_M
    while z < FAR_M:
        garden = rng.uniform() < green
        length = rng.uniform(14, 40) if garden else rng.uniform(6, 19)
        end = z + length
        if z < junction[0] < end + _SHORTEST_M:
            end = junction[0]
        tall = 0.0 if garden else height * rng.uniform(0.75, 1.3)
        blocks.append(Block(z, end, tall, int(rng.integers(2**32))))
        z = junction[1] if end == junction[0] else end
    return tuple(blocks)


def sample_street(rng: np.random.Generator) -> Street:
    middle = rng.uniform(1.5, 2.0)
    commercial = rng.uniform(0, 1)
    height = rng.uniform(7.0, 14.0)
    sides = []
    for sign in (-1, 1):
        parked = bool(rng.uniform() < 0.5)
        lane = (rng.uniform(1.7, 2.6) if sign < 0 else middle + rng.uniform(3.0, 3.8)) + 2.1 * parked
        walk = rng.uniform(1.8, 4.5)
        start = rng.uniform(18, 70)
        junction = (start, start + rng.uniform(7, 11)) if rng.uniform() < 0.5 else (FAR_M, FAR_M)
        green = float(rng.choice([0.05, 0.35, 0.9], p=[0.5, 0.35, 0.15]))
        blocks = _sample_blocks(rng, height * rng.uniform(0.8, 1.2), green, junction)
        sides.append(Side(sign, sign * lane, sign * (lane + walk), blocks, junction, parked))
    return Street(sides[0], sides[1], middle, commercial)
