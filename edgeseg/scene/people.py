"""Pedestrians and bicyclists: flat figures facing the camera or seen from the side."""

from __future__ import annotations

import numpy as np

from edgeseg.scene.camera import Points
from edgeseg.scene.light import Rgb, rgb
from edgeseg.scene.stage import BICYCLIST, PEDESTRIAN, Stage, ellipse, limb, points, upright

_CLOTHES = (
    rgb(30, 30, 34),
    rgb(44, 46, 58),
    rgb(60, 56, 52),
    rgb(84, 82, 80),
    rgb(70, 34, 34),
    rgb(40, 54, 84),
    rgb(112, 104, 88),
    rgb(128, 128, 130),
    rgb(56, 66, 48),
)
_SKIN = (rgb(180, 134, 112), rgb(150, 106, 84), rgb(96, 66, 50))
_HAIR = (rgb(34, 28, 24), rgb(70, 50, 34), rgb(120, 96, 66))
_FACING = (0.0, 0.25, -0.97)


class _Figure:
    """Clothes, skin and hair of one person, in the light at depth z."""

    def __init__(self, stage: Stage, rng: np.random.Generator, x: float, z: float, cls: int) -> None:
        self._stage, self._x, self._z, self._cls = stage, x, z, cls
        self.coat, self.legs, self.skin, self.hair = (
            self.lit(colors[int(rng.integers(len(colors)))] * rng.uniform(0.75, 1.15))
            for colors in (_CLOTHES, _CLOTHES[:6], _SKIN, _HAIR)
        )
        self.shoe = self.lit(rgb(24, 22, 22))

    def lit(self, color: Rgb) -> Rgb:
        return self._stage.light.shade(color, _FACING, self._z)

    def paint(self, shape: Points, color: Rgb, opacity: float = 1.0) -> None:
        self._stage.fill(upright(shape, self._x, self._z), color, self._cls, opacity)


def draw_pedestrian(stage: Stage, x: float, z: float, rng: np.random.Generator) -> None:
    tall = rng.uniform(1.55, 1.88)
    step, swing, lean = rng.uniform(0.06, 0.26), rng.uniform(0.0, 0.12), rng.normal(0, 0.02)
    broad = tall * rng.uniform(0.2, 0.26)
    hip, neck = 0.5 * tall, 0.84 * tall
    _cast(stage, x, z, 0.3)
    body = _Figure(stage, rng, x, z, PEDESTRIAN)
    for foot in (-step, step):
        knee = (foot * 0.6 + 0.04 * np.sign(foot), 0.27 * tall)
        body.paint(limb((0.07 * np.sign(foot), hip), knee, 0.19, 0.14), body.legs * 0.95)
        body.paint(limb(knee, (foot, 0.05), 0.14, 0.10), body.legs)
        body.paint(ellipse(foot + 0.03, 0.05, 0.11, 0.055), body.shoe)
    long = rng.uniform(0.0, 0.16) * tall
    body.paint(limb((lean, neck), (0, hip - long), broad * 0.95, broad * 0.85), body.coat)
    body.paint(limb((lean + broad * 0.2, neck), (broad * 0.25, hip - long), broad * 0.4, broad * 0.3), body.coat * 0.82)
    for hand in (-1, 1):
        elbow = (hand * (broad * 0.55 + swing * 0.4), 0.63 * tall)
        body.paint(limb((lean + hand * broad * 0.42, neck - 0.03), elbow, 0.13, 0.11), body.coat * 0.88)
        body.paint(limb(elbow, (hand * (broad * 0.5 + swing), 0.47 * tall), 0.11, 0.08), body.coat * 0.95)
        body.paint(ellipse(hand * (broad * 0.5 + swing), 0.455 * tall, 0.045, 0.055), body.skin)
    body.paint(ellipse(lean, neck, broad * 0.46, 0.07), body.coat)
    _draw_head(body, lean, 0.925 * tall, 0.075 * tall, bool(rng.uniform() < 0.5))
    if rng.uniform() < 0.35:
        bag = body.lit(_CLOTHES[int(rng.integers(len(_CLOTHES)))])
        at = float(rng.choice([-1, 1])) * (broad * 0.5 + swing)
        body.paint(limb((at, 0.45 * tall), (at, 0.3 * tall), 0.2, 0.26), bag)


def draw_bicyclist(stage: Stage, x: float, z: float, rng: np.random.Generator) -> None:
    """A rider from behind or ahead, or, one in three, from the side; the wheels count whole, as CamVid has them."""
    _cast(stage, x, z, 0.4)
    body = _Figure(stage, rng, x, z, BICYCLIST)
    metal = body.lit(rgb(60, 60, 64))
    helmet = bool(rng.uniform() < 0.6)
    if rng.uniform() < 0.33:
        _draw_from_side(body, metal, float(rng.choice([-1, 1])), helmet)
        return
    body.paint(ellipse(0, 0.34, 0.045, 0.34), body.lit(rgb(22, 22, 23)))
    body.paint(limb((0, 0.6), (0, 0.95), 0.05, 0.05), metal)
    pedal = rng.uniform(-0.12, 0.12)
    for hand in (-1, 1):
        foot = 0.30 + hand * pedal
        knee = (hand * 0.17, 0.62 + hand * pedal * 0.5)
        body.paint(limb((hand * 0.1, 0.98), knee, 0.2, 0.15), body.legs)
        body.paint(limb(knee, (hand * 0.13, foot), 0.15, 0.1), body.legs * 0.9)
        body.paint(ellipse(hand * 0.13, foot - 0.03, 0.055, 0.06), body.shoe)
    body.paint(ellipse(0, 1.0, 0.2, 0.16), body.legs)
    body.paint(limb((0, 1.5), (0, 0.98), 0.42, 0.34), body.coat)
    body.paint(limb((0.09, 1.5), (0.09, 0.98), 0.2, 0.12), body.coat * 0.82)
    body.paint(ellipse(0, 1.5, 0.21, 0.07), body.coat)
    for hand in (-1, 1):
        body.paint(limb((hand * 0.2, 1.48), (hand * 0.32, 1.2), 0.13, 0.1), body.coat * 0.9)
        body.paint(limb((hand * 0.32, 1.2), (hand * 0.27, 1.05), 0.1, 0.08), body.coat)
    if rng.uniform() < 0.4:
        body.paint(limb((0, 1.45), (0, 1.08), 0.28, 0.3), body.lit(_CLOTHES[int(rng.integers(len(_CLOTHES)))] * 1.2))
    if rng.uniform() < 0.3:
        body.paint(limb((-0.2, 1.22), (0.2, 1.22), 0.08, 0.08), body.lit(rgb(190, 200, 60)))
    _draw_head(body, 0.0, 1.66, 0.125, True)
    if helmet:
        body.paint(ellipse(0, 1.72, 0.12, 0.09), body.lit(rgb(150, 150, 155)))


def _draw_from_side(body: _Figure, metal: Rgb, ahead: float, helmet: bool) -> None:
    tyre = body.lit(rgb(24, 24, 25))
    rear, front, crank = (-0.52 * ahead, 0.34), (0.52 * ahead, 0.34), (-0.05 * ahead, 0.3)
    seat, bar = (-0.22 * ahead, 0.9), (0.38 * ahead, 1.0)
    for hub in (rear, front):
        body.paint(ellipse(*hub, 0.34, 0.34), tyre, 0.35)
        ring = ellipse(*hub, 0.325, 0.325)
        for a, b in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            body.paint(limb((a[0], a[1]), (b[0], b[1]), 0.05, 0.05), tyre)
    for a, b in ((rear, crank), (crank, seat), (seat, rear), (crank, bar), (seat, bar), (bar, front)):
        body.paint(limb(a, b, 0.045, 0.045), metal)
    knee, foot = (0.2 * ahead, 0.72), (0.0, 0.22)
    body.paint(limb(seat, knee, 0.2, 0.15), body.legs)
    body.paint(limb(knee, foot, 0.14, 0.1), body.legs * 0.9)
    body.paint(ellipse(0.05 * ahead, 0.2, 0.12, 0.05), body.shoe)
    shoulder = (0.1 * ahead, 1.44)
    body.paint(limb(shoulder, (-0.2 * ahead, 0.92), 0.26, 0.28), body.coat)
    body.paint(ellipse(0.08 * ahead, 1.43, 0.13, 0.1), body.coat)
    body.paint(limb(shoulder, (0.3 * ahead, 1.18), 0.12, 0.1), body.coat * 0.85)
    body.paint(limb((0.3 * ahead, 1.18), bar, 0.1, 0.07), body.coat * 0.9)
    _draw_head(body, 0.17 * ahead, 1.62, 0.12, False)
    if helmet:
        body.paint(ellipse(0.16 * ahead, 1.69, 0.14, 0.08), body.lit(rgb(150, 150, 155)))


def _draw_head(body: _Figure, x: float, y: float, radius: float, from_behind: bool) -> None:
    body.paint(limb((x, y), (x, y - radius * 1.4), radius * 0.9, radius * 0.9), body.skin * 0.8)
    body.paint(ellipse(x, y, radius * 0.78, radius), body.hair if from_behind else body.skin)
    body.paint(ellipse(x, y + radius * 0.45, radius * 0.82, radius * 0.62), body.hair)


def _cast(stage: Stage, x: float, z: float, wide: float) -> None:
    stage.darken(
        points((x - wide, 0, z - 0.15), (x + wide, 0, z - 0.15), (x + wide, 0, z + 0.4), (x - wide, 0, z + 0.4)),
        0.45,
        0.1,
    )
