"""A made-up street with its exact class map: for demos, documentation, golden frames and tests.

Nothing measured on these pictures says anything about accuracy on real ones.
"""

from __future__ import annotations

import numpy as np

from edgeseg.errors import InputError
from edgeseg.scene.camera import Camera
from edgeseg.scene.ground import draw_ground
from edgeseg.scene.light import sample_light
from edgeseg.scene.noise import Noise
from edgeseg.scene.sensor import develop, draw_sky
from edgeseg.scene.stage import Stage
from edgeseg.scene.street import sample_street
from edgeseg.scene.traffic import draw_town, draw_traffic
from edgeseg.types import ClassMap, Image, Size

_SMALLEST, _LARGEST = 32, 8192
_TWICE_BELOW_PIXELS = 600_000


def street_scene(seed: int, size: Size = (360, 480)) -> tuple[Image, ClassMap]:
    """A street seen from a car: RGB frame and its class map in CamVid's 11 classes (0..10, no void).

    Both are painted by the same masks. Frames below 0.6 megapixels are painted at twice their size: the image is
    then averaged down, and the class map takes every second pixel, so it has hard edges where the image has soft
    ones. As in CamVid, gaps in railings, bare crowns and wheels belong to the fence, the tree and the bicyclist,
    and lawns to the trees.

    One seed is one street at every size; a wider frame sees more of it. Same seed and size give the same bytes
    with the same NumPy and OpenCV builds. Others round differently, at edges mostly: NumPy 1.26 with OpenCV 4.5
    and NumPy 2.4 with OpenCV 5.0 disagree on 0.02 % of the classes.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        raise InputError(f"seed must be a whole number from 0 to 2**63 - 1, got {seed!r}")
    height, width = _checked(size)
    rng = np.random.default_rng([int(seed), 1])
    twice = 2 if height * width < _TWICE_BELOW_PIXELS else 1
    camera = Camera(
        size=(height * twice, width * twice),
        focal=rng.uniform(1.25, 1.5),
        horizon=rng.uniform(0.44, 0.52),
        pan=rng.uniform(-0.08, 0.08),
        height_m=rng.uniform(1.25, 1.5),
    )
    stage = Stage(camera, sample_light(rng), Noise(rng))
    street = sample_street(rng)
    draw_sky(stage, rng)
    draw_ground(stage, street, rng)
    draw_town(stage, street, rng)
    draw_traffic(stage, street, rng)
    mirrored = rng.uniform() < 0.25
    image = develop(stage.image, camera, (height, width), stage.noise, rng)
    classes = stage.classes[::twice, ::twice]
    if mirrored:  # where people drive on the right
        image, classes = image[:, ::-1], classes[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(classes)


def _checked(size: Size) -> Size:
    message = f"size must be (height, width), each from {_SMALLEST} to {_LARGEST} pixels, got {size!r}"
    try:
        height, width = size
    except (TypeError, ValueError) as error:
        raise InputError(message) from error
    for side in (height, width):
        if isinstance(side, bool) or not isinstance(side, (int, np.integer)) or not _SMALLEST <= side <= _LARGEST:
            raise InputError(message)
    return int(height), int(width)
