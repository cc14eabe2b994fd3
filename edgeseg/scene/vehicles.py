"""Cars, vans and buses: a profile drawn out to the vehicle's width, with lamps, glass and wheels on its faces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgeseg.scene.bodies import BODIES, Body
from edgeseg.scene.camera import Points
from edgeseg.scene.light import Rgb, rgb
from edgeseg.scene.stage import CAR, Stage, ellipse, points

_PAINTS = (
    rgb(150, 153, 156),
    rgb(112, 116, 120),
    rgb(40, 42, 46),
    rgb(28, 28, 30),
    rgb(34, 46, 84),
    rgb(122, 24, 24),
    rgb(200, 200, 198),
    rgb(60, 84, 110),
    rgb(40, 70, 56),
    rgb(90, 92, 96),
)
_LIVERIES = (rgb(150, 40, 36), rgb(70, 110, 150), rgb(190, 188, 180), rgb(160, 140, 80))
_GLASS = rgb(30, 34, 38)
_TYRE = rgb(24, 24, 25)
_DETAIL_M = 40.0
"""Beyond this the smallest parts are left out: a distance, not a size in pixels, so that all frame sizes agree."""


_Place = Callable[[Points], Points]
"""From a vehicle's own (across, up, along) metres to the street."""


def sample_body(rng: np.random.Generator, large: bool = True) -> Body:
    share = [0.4, 0.22, 0.22, 0.1, 0.06] if large else [0.45, 0.27, 0.28, 0.0, 0.0]
    return BODIES[int(rng.choice(len(BODIES), p=share))]


def draw_vehicle(stage: Stage, body: Body, x: float, z: float, rng: np.random.Generator, *, turn: float) -> None:
    """A vehicle centred at (x, z); `turn` is its heading in radians: 0 drives away, pi towards the camera."""
    paints = _PAINTS if body.length < 6 else _LIVERIES
    paint = paints[int(rng.integers(len(paints)))] * rng.uniform(0.8, 1.15)
    braking, lamps_on = bool(rng.uniform() < 0.3), bool(rng.uniform() < 0.3)
    cos, sin = float(np.cos(turn)), float(np.sin(turn))

    def place(local: Points) -> Points:
        along = local[:, 2] - body.length / 2
        placed = np.empty_like(local)
        placed[:, 0] = x + cos * local[:, 0] + sin * along
        placed[:, 1] = local[:, 1]
        placed[:, 2] = z - sin * local[:, 0] + cos * along
        return placed

    _draw_underside(stage, body, place)
    faces = []
    for (a0, y0, _), (a1, y1, name) in zip(body.profile, body.profile[1:], strict=False):
        w0, w1 = body.half_width(y0), body.half_width(y1)
        faces.append((name, 0, place(points((-w0, y0, a0), (w0, y0, a0), (w1, y1, a1), (-w1, y1, a1)))))
    for hand in (-1, 1):
        outline = points(*[(hand * body.half_width(y), y, a) for a, y, _ in body.profile])
        faces.append(("side", hand, place(outline)))
    # the long sides first: the ends overlap them at the corners
    faces.sort(key=lambda face: (face[0] != "side", -float(face[2][:, 2].mean())))
    for name, hand, polygon in faces:
        normal = _facing(polygon, np.array([x, 0.7, z]), stage.camera.height_m)
        if normal is None:
            continue
        if hand:
            stage.fill(polygon, stage.light.shade(paint, normal, z), CAR)
            _draw_side(stage, body, paint, normal, hand=hand, z=z, place=place)
        else:
            _draw_end(stage, polygon, name, paint, normal=normal, z=z, lamps=(braking, lamps_on))


def _facing(polygon: Points, centre: Points, eye: float) -> tuple[float, float, float] | None:
    """The outward normal of a polygon that faces the camera; None of one that does not."""
    middle = polygon.mean(axis=0)
    around = polygon - middle
    normal = np.cross(around, np.roll(around, -1, axis=0)).sum(axis=0)
    normal /= np.linalg.norm(normal) + 1e-9
    if float(np.dot(normal, middle - centre)) < 0:
        normal = -normal
    if float(np.dot(normal, middle - (0, eye, 0))) >= 0:
        return None
    return float(normal[0]), float(normal[1]), float(normal[2])


def _draw_underside(stage: Stage, body: Body, place: _Place) -> None:
    """The shadow under the car, and what is seen of axles and tyres from either end."""
    w, end = body.width / 2, body.length
    stage.darken(
        place(points((-w - 0.15, 0, -0.3), (w + 0.15, 0, -0.3), (w + 0.15, 0, end), (-w - 0.15, 0, end))), 0.8, 0.12
    )
    for at in (end - 0.3, 0.3):
        low = points((-w + 0.1, 0.14, at), (w - 0.1, 0.14, at), (w - 0.1, 0.5, at), (-w + 0.1, 0.5, at))
        stage.fill(place(low), rgb(14, 14, 15), CAR)
        for inner, outer in ((-w + 0.02, -w + 0.24), (w - 0.24, w - 0.02)):
            tyre = points((inner, 0, at), (outer, 0, at), (outer, 0.5, at), (inner, 0.5, at))
            stage.fill(place(tyre), _TYRE * 0.8, CAR)


def _draw_side(
    stage: Stage, body: Body, paint: Rgb, normal: tuple[float, float, float], *, hand: int, z: float, place: _Place
) -> None:
    light = stage.light

    def on(flat: Points) -> Points:
        """From (along, up) on the side to the street."""
        across = [hand * body.half_width(y) for y in flat[:, 1].tolist()]
        return place(np.column_stack([across, flat[:, 1], flat[:, 0]]))

    def bar(y0: float, y1: float, color: Rgb) -> None:
        stage.fill(on(np.array([(0.08, y0), (body.length - 0.1, y0), (body.length - 0.1, y1), (0.08, y1)])), color, CAR)

    bottom = body.profile[0][1]
    bar(bottom, bottom + 0.14, light.shade(paint * 0.35, normal, z))
    shoulder = min(body.belt, body.profile[-3][1])
    bar(shoulder - 0.17, shoulder - 0.06, light.shade(np.minimum(paint * 1.25 + 8, 225), normal, z))
    bar(shoulder - 0.30, shoulder - 0.28, light.shade(paint * 0.6, normal, z))
    glass = light.shade(_GLASS, normal, z)
    for pane in body.side_glass:
        outline = np.array(pane)
        stage.fill(on(outline), glass, CAR)
        low, high = outline[:, 1].min(), outline[:, 1].max()
        upper = np.column_stack([outline[:, 0], np.maximum(outline[:, 1], low + 0.6 * (high - low))])
        stage.fill(on(upper), glass + light.skyline * 0.18, CAR)
    for axle in body.axles:
        rims = [(0.07, rgb(16, 16, 17)), (0.0, light.shade(_TYRE, normal, z))]
        rims.append((-0.38 * body.wheel, light.shade(rgb(125, 126, 128), normal, z)))
        if z < _DETAIL_M:
            rims.append((-0.7 * body.wheel, light.shade(rgb(60, 60, 62), normal, z)))
        for more, color in rims:
            stage.fill(on(ellipse(axle, body.wheel, body.wheel + more, body.wheel + more)), color, CAR)
    if z > _DETAIL_M:
        return
    for pane in body.side_glass:
        at = pane[-1][0]
        seam = np.array(
            [(at - 0.015, bottom + 0.15), (at + 0.015, bottom + 0.15), (at + 0.015, body.belt), (at - 0.015, body.belt)]
        )
        stage.fill(on(seam), light.shade(paint * 0.45, normal, z), CAR)


def _draw_end(
    stage: Stage,
    quad: Points,
    name: str,
    paint: Rgb,
    *,
    normal: tuple[float, float, float],
    z: float,
    lamps: tuple[bool, bool],
) -> None:
    """One face across the vehicle, with what belongs on it; `lamps` are the brake and the head lamps."""
    light = stage.light

    def part(a0: float, b0: float, a1: float, b1: float, color: Rgb) -> None:
        """A rectangle at (across -1..1, up the face 0..1)."""
        ab = np.array([(a0, b0), (a1, b0), (a1, b1), (a0, b1)])
        across, up = (ab[:, :1] + 1) / 2, ab[:, 1:]
        low, high = quad[0] + (quad[1] - quad[0]) * across, quad[3] + (quad[2] - quad[3]) * across
        stage.fill(low + (high - low) * up, color, CAR)

    body = light.shade(paint, normal, z)
    part(-1, 0, 1, 1, body)
    if name == "bumper":
        part(-1, 0, 1, 0.4, light.shade(paint * 0.3, normal, z))
        part(-0.93, 0.75, 0.93, 0.95, light.shade(np.minimum(paint * 1.2 + 6, 225), normal, z))
    elif name == "tail":
        part(-1, 0.82, 1, 1, light.shade(np.minimum(paint * 1.2 + 6, 225), normal, z))
        red = rgb(205, 42, 34) if lamps[0] else light.shade(rgb(120, 22, 20), normal, z)
        for inner, outer in ((-0.96, -0.72), (0.72, 0.96)):
            part(inner, 0.2, outer, 0.9, red)
            part(inner, 0.2, outer, 0.38, light.shade(rgb(190, 130, 90), normal, z))
        part(-0.32, 0.12, 0.32, 0.42, light.shade(rgb(190, 165, 60), normal, z))
    elif name in ("glass", "windscreen"):
        pane = light.shade(_GLASS, normal, z)
        part(-0.9, 0.06, 0.9, 0.93, pane)
        part(-0.9, 0.55, 0.9, 0.93, pane + light.skyline * (0.10 if name == "glass" else 0.2))
        for seat in (-0.45, 0.45) if quad[2, 1] < 2 else ():
            part(seat - 0.16, 0.1, seat + 0.16, 0.62, pane * 0.55)
    elif name == "grille":
        part(-0.5, 0.25, 0.5, 0.8, light.shade(rgb(30, 30, 32), normal, z))
        lamp = rgb(252, 250, 240) if lamps[1] else light.shade(rgb(190, 194, 198), normal, z)
        for inner, outer in ((-0.95, -0.58), (0.58, 0.95)):
            part(inner, 0.2, outer, 0.9, light.shade(rgb(80, 82, 86), normal, z))
            part(inner + 0.06, 0.3, outer - 0.06, 0.85, lamp)
        part(-0.3, -0.25, 0.3, 0.12, light.shade(rgb(205, 205, 200), normal, z))
