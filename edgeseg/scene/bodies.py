"""The shapes of cars, vans and buses, as numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Body:
    """Metres. `profile` runs from the rear bumper over the roof to the front bumper: (along, up, name of the face
    that ends there); `side_glass` are polygons of (along, up); above `belt` the body narrows to `roof` of its width.
    """

    length: float
    width: float
    belt: float
    roof: float
    profile: tuple[tuple[float, float, str], ...]
    side_glass: tuple[tuple[tuple[float, float], ...], ...]
    axles: tuple[float, float]
    wheel: float = 0.31

    def half_width(self, up: float) -> float:
        top = max(y for _, y, _ in self.profile)
        over = min(max((up - self.belt) / (top - self.belt), 0.0), 1.0)
        return self.width / 2 * (1 - (1 - self.roof) * over)


HATCH = Body(
    3.9, 1.70, 0.95, 0.78,
    (
        (0.05, 0.26, ""), (0.0, 0.55, "bumper"), (0.05, 0.95, "tail"), (0.45, 1.40, "glass"), (1.9, 1.46, "roof"),
        (2.85, 0.98, "windscreen"), (3.7, 0.80, "bonnet"), (3.88, 0.58, "grille"), (3.88, 0.24, "bumper"),
    ),
    (((0.35, 1.0), (0.62, 1.32), (1.1, 1.37), (1.1, 1.0)), ((1.18, 1.0), (1.18, 1.37), (1.85, 1.38), (2.6, 1.0))),
    (0.72, 3.1),
)  # fmt: skip
SALOON = Body(
    4.4, 1.75, 0.95, 0.74,
    (
        (0.05, 0.26, ""), (0.0, 0.55, "bumper"), (0.08, 0.95, "tail"), (0.7, 1.0, "bonnet"), (1.4, 1.37, "glass"),
        (2.4, 1.42, "roof"), (3.3, 0.98, "windscreen"), (4.2, 0.78, "bonnet"), (4.38, 0.58, "grille"),
        (4.38, 0.24, "bumper"),
    ),
    (((1.0, 1.0), (1.4, 1.3), (1.85, 1.35), (1.85, 1.0)), ((1.93, 1.0), (1.93, 1.35), (2.4, 1.35), (3.05, 1.0))),
    (0.85, 3.55),
)  # fmt: skip
ESTATE = Body(
    4.5, 1.80, 1.05, 0.82,
    (
        (0.05, 0.3, ""), (0.0, 0.6, "bumper"), (0.04, 1.05, "tail"), (0.3, 1.60, "glass"), (2.5, 1.68, "roof"),
        (3.3, 1.10, "windscreen"), (4.3, 0.95, "bonnet"), (4.5, 0.65, "grille"), (4.5, 0.28, "bumper"),
    ),
    (((0.3, 1.1), (0.45, 1.5), (1.3, 1.56), (1.3, 1.1)), ((1.4, 1.1), (1.4, 1.56), (2.45, 1.58), (3.05, 1.1))),
    (0.85, 3.6), 0.34,
)  # fmt: skip
VAN = Body(
    5.0, 1.95, 1.2, 0.92,
    (
        (0.05, 0.3, ""), (0.0, 0.62, "bumper"), (0.03, 1.2, "tail"), (0.1, 1.85, "glass"), (0.25, 2.2, "panel"),
        (3.5, 2.25, "roof"), (4.25, 1.25, "windscreen"), (4.9, 1.0, "bonnet"), (5.0, 0.65, "grille"),
        (5.0, 0.3, "bumper"),
    ),
    (((3.0, 1.25), (3.0, 1.95), (3.6, 1.95), (4.1, 1.25)),),
    (1.0, 4.0), 0.35,
)  # fmt: skip
BUS = Body(
    10.0, 2.5, 1.2, 1.0,
    (
        (0.0, 0.35, ""), (0.0, 0.8, "bumper"), (0.0, 1.35, "tail"), (0.05, 2.5, "glass"), (0.1, 3.1, "panel"),
        (9.9, 3.1, "roof"), (9.95, 2.8, "panel"), (10.0, 1.2, "windscreen"), (10.0, 0.7, "grille"),
        (10.0, 0.35, "bumper"),
    ),
    (((0.4, 1.3), (0.4, 2.45), (5.0, 2.45), (5.0, 1.3)), ((5.2, 1.3), (5.2, 2.45), (9.7, 2.45), (9.7, 1.3))),
    (2.2, 7.6), 0.48,
)  # fmt: skip

BODIES = (HATCH, SALOON, ESTATE, VAN, BUS)
