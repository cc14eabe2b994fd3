"""street_scene: one seed is one street, and the class map is the picture's own."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from edgeseg.errors import InputError
from edgeseg.scene import street_scene
from edgeseg.types import ClassMap, Image

SKY, BUILDING, ROAD, CAR = 0, 1, 3, 8
CLASSES = 11
SEEDS = range(12)
SMALL = (180, 240)


@pytest.fixture(scope="module")
def scenes() -> list[tuple[Image, ClassMap]]:
    return [street_scene(seed, SMALL) for seed in SEEDS]


def shares(classes: ClassMap) -> npt.NDArray[np.float64]:
    return np.bincount(classes.ravel(), minlength=CLASSES) / classes.size


def test_the_default_is_a_camvid_frame() -> None:
    image, classes = street_scene(0)
    assert image.shape == (360, 480, 3)
    assert classes.shape == (360, 480)
    assert image.dtype == classes.dtype == np.uint8
    assert image.flags.c_contiguous
    assert classes.flags.c_contiguous


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_the_same_seed_gives_the_same_bytes(seed: int) -> None:
    first, again = street_scene(seed, SMALL), street_scene(np.int64(seed), SMALL)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])


def test_the_thread_count_changes_nothing() -> None:
    threads = cv2.getNumThreads()
    first = street_scene(3, SMALL)
    try:
        cv2.setNumThreads(1)
        alone = street_scene(3, SMALL)
    finally:
        cv2.setNumThreads(threads)
    np.testing.assert_array_equal(first[0], alone[0])
    np.testing.assert_array_equal(first[1], alone[1])


def test_other_seeds_are_other_streets(scenes: list[tuple[Image, ClassMap]]) -> None:
    for (_, one), (_, other) in pairwise(scenes):
        assert (one != other).mean() > 0.05


@pytest.mark.parametrize("size", [(96, 96), (97, 333), (300, 180), (720, 960)])
def test_any_size_is_served(size: tuple[int, int]) -> None:
    image, classes = street_scene(5, size)
    assert image.shape == (*size, 3)
    assert classes.shape == size
    assert classes.max() < CLASSES


@pytest.mark.parametrize("seed", [0, 4, 9])
@pytest.mark.parametrize("size", [(96, 128), (720, 960)])  # painted at twice the size, and at the size itself
def test_the_street_is_the_same_at_every_size(seed: int, size: tuple[int, int]) -> None:
    here, there = street_scene(seed, (360, 480)), street_scene(seed, size)
    np.testing.assert_allclose(shares(there[1]), shares(here[1]), atol=0.025)
    scaled = cv2.resize(there[1], (480, 360), interpolation=cv2.INTER_NEAREST)
    assert (scaled == here[1]).mean() > (0.88 if size[0] < 360 else 0.97)
    mean = [image.reshape(-1, 3).mean(axis=0) for image in (here[0], there[0])]
    np.testing.assert_allclose(mean[0], mean[1], atol=3)


def test_a_wider_frame_sees_more_of_the_same_street() -> None:
    narrow, wide = street_scene(2, SMALL)[1], street_scene(2, (180, 320))[1]
    assert (wide[:, 40:-40] == narrow).mean() > 0.999


def test_every_class_appears_and_no_other(scenes: list[tuple[Image, ClassMap]]) -> None:
    seen = set(np.concatenate([classes.ravel() for _, classes in scenes]).tolist())
    assert seen == set(range(CLASSES))


def test_no_seed_fails() -> None:
    for seed in range(100, 124):
        image, classes = street_scene(seed, (32, 48))
        assert image.std() > 10, seed
        assert {SKY, ROAD} <= set(classes.ravel().tolist()), seed


def test_every_street_has_sky_houses_and_a_road_of_plausible_size(scenes: list[tuple[Image, ClassMap]]) -> None:
    for _, classes in scenes:
        share = shares(classes)
        assert 0.03 < share[SKY] < 0.45
        assert 0.005 < share[BUILDING] < 0.6
        assert 0.2 < share[ROAD] < 0.5
        assert share[CAR] < 0.3
    mean = np.mean([shares(classes) for _, classes in scenes], axis=0)
    assert 0.08 < mean[SKY] < 0.25
    assert 0.1 < mean[BUILDING] < 0.4
    assert 0.02 < mean[CAR] < 0.15


def test_sky_is_above_and_road_below(scenes: list[tuple[Image, ClassMap]]) -> None:
    rows = np.arange(SMALL[0])
    for _, classes in scenes:
        sky, road = ((classes == index) @ np.ones(SMALL[1]) @ rows / (classes == index).sum() for index in (SKY, ROAD))
        assert sky < 0.35 * SMALL[0] < 0.65 * SMALL[0] < road
        assert not (classes[: SMALL[0] // 3] == ROAD).any()


def test_the_sky_is_the_brightest(scenes: list[tuple[Image, ClassMap]]) -> None:
    for image, classes in scenes:
        brightness = {index: image[classes == index].mean() for index in (SKY, BUILDING, ROAD)}
        assert brightness[SKY] > brightness[ROAD] + 20
        assert brightness[SKY] > brightness[BUILDING] + 20


def test_the_class_borders_lie_on_the_pictures_edges(scenes: list[tuple[Image, ClassMap]]) -> None:
    """Moving the class map by a few pixels must lose contrast across its borders: they are the same masks."""

    def contrast(image: Image, classes: ClassMap) -> float:
        step = np.abs(np.diff(image.astype(np.float32).mean(axis=2), axis=1))
        return float(step[classes[:, 1:] != classes[:, :-1]].mean())

    for image, classes in scenes:
        there = contrast(image, classes)
        assert there > 1.25 * contrast(image, np.roll(classes, 4, axis=1))
        assert there > 1.25 * contrast(image, np.roll(classes, -4, axis=1))


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "1", None, True])
def test_a_bad_seed_is_refused(seed: object) -> None:
    with pytest.raises(InputError, match=r"^seed must be a whole number from 0 to 2\*\*63 - 1, got "):
        street_scene(seed, SMALL)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "size", [(0, 480), (360, -1), (8, 8), (360, 100_000), (360.0, 480), (True, 480), 360, (1, 2, 3)]
)
def test_a_bad_size_is_refused(size: object) -> None:
    with pytest.raises(InputError, match=r"^size must be \(height, width\), each from 32 to 8192 pixels, got "):
        street_scene(0, size)  # type: ignore[arg-type]
