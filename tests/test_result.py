"""Overlay, contours and labels: every pixel accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from edgeseg.errors import InputError
from edgeseg.labels import Labels, choose
from edgeseg.manifest import ClassInfo
from edgeseg.palette import CAMVID
from edgeseg.result import Polygon, Segmentation
from edgeseg.types import StageTimes

TIMES = StageTimes(1, 2, 3, 6)
RNG = np.random.default_rng(0)


def segmentation(class_map: np.ndarray) -> Segmentation:
    return Segmentation(class_map, CAMVID, TIMES)


# overlay


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.7, 1.0, 1])
def test_overlay_mixes_colours_and_leaves_the_unlabelled(alpha: float) -> None:
    frame = RNG.integers(0, 256, (50, 61, 3), np.uint8)
    class_map = RNG.integers(0, len(CAMVID), (50, 61)).astype(np.uint8)
    class_map[10:20, 5:50] = 255
    kept = frame.copy()
    found = segmentation(class_map).overlay(frame, alpha)
    colors = np.array([info.color for info in CAMVID] + [(0, 0, 0)] * 245, np.float64)[class_map]
    expected = np.where((class_map == 255)[..., None], frame, (1 - alpha) * frame + alpha * colors)
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 0.5 + 1e-4, "not the nearest level"
    np.testing.assert_array_equal(found[class_map == 255], frame[class_map == 255])
    np.testing.assert_array_equal(frame, kept)
    assert not np.shares_memory(found, frame)


def test_overlay_of_any_memory_layout() -> None:
    frame = RNG.integers(0, 256, (40, 30, 3), np.uint8)
    class_map = RNG.integers(0, len(CAMVID), (40, 30)).astype(np.uint8)
    expected = segmentation(class_map).overlay(frame)
    odd = np.asfortranarray(class_map)
    odd.flags.writeable = False
    flipped = np.ascontiguousarray(frame[::-1, ::-1, ::-1])[::-1, ::-1, ::-1]
    flipped.flags.writeable = False
    np.testing.assert_array_equal(segmentation(odd).overlay(flipped), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("value", [0, 255])
def test_overlay_of_tiny_frames(size: tuple[int, int], value: int) -> None:
    frame = np.full((*size, 3), 200, np.uint8)
    found = segmentation(np.full(size, value, np.uint8)).overlay(frame, 1)
    np.testing.assert_array_equal(found, frame if value == 255 else np.broadcast_to(CAMVID[0].color, frame.shape))


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 6, 3), np.uint8),
        np.zeros((5, 4, 3), np.uint8),
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((4, 5, 3), np.float32),
        np.zeros((0, 5, 3), np.uint8),
        None,
        [[0]],
    ],
)
def test_overlay_refuses_another_frame(frame: Any) -> None:
    with pytest.raises(InputError) as caught:
        segmentation(np.zeros((4, 5), np.uint8)).overlay(frame)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("alpha", [-0.01, 1.01, 50, float("nan"), float("inf")])
def test_overlay_refuses_another_alpha(alpha: float) -> None:
    with pytest.raises(InputError, match="0 to 1"):
        segmentation(np.zeros((4, 5), np.uint8)).overlay(np.zeros((4, 5, 3), np.uint8), alpha)


# contours


def area(polygon: Polygon, shape: tuple[int, ...]) -> np.ndarray:
    """The polygon's pixels: the exterior filled, every hole's inside cut out, the hole's own points kept."""
    filled = np.zeros(shape, np.uint8)
    cv2.fillPoly(filled, [polygon.exterior], 1)
    for hole in polygon.holes:
        cut = np.zeros(shape, np.uint8)
        cv2.fillPoly(cut, [hole], 1)
        cv2.polylines(cut, [hole], True, 0)
        filled[cut > 0] = 0
    return filled > 0


def check_contours(class_map: np.ndarray) -> None:
    """Drawn again, the polygons give exactly the map; each is one whole 8-connected area, none is drawn twice."""
    contours = segmentation(class_map).contours()
    assert list(contours) == [info.name for info in CAMVID]
    drawn = np.full(class_map.shape, 255, np.uint8)
    for index, info in enumerate(CAMVID):
        count, labelled = cv2.connectedComponents((class_map == index).astype(np.uint8), connectivity=8)
        assert len(contours[info.name]) == count - 1
        for polygon in contours[info.name]:
            for points in (polygon.exterior, *polygon.holes):
                assert points.dtype == np.int32
                assert points.ndim == 2
                assert points.shape[1] == 2
            pixels = area(polygon, class_map.shape)
            assert (drawn[pixels] == 255).all(), "two polygons share a pixel"
            assert len(np.unique(labelled[pixels])) == 1
            drawn[pixels] = index
    np.testing.assert_array_equal(drawn, np.where(class_map < len(CAMVID), class_map, 255))


@settings(max_examples=200, deadline=None)
@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, 2, 255]))
)
def test_contours_of_small_maps(class_map: np.ndarray) -> None:
    check_contours(class_map)


@pytest.mark.parametrize("seed", range(6))
def test_contours_of_blobs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = cv2.resize(rng.random((12, 16, len(CAMVID) + 1)), (96, 71), interpolation=cv2.INTER_CUBIC)
    class_map = noise.argmax(2).astype(np.uint8)
    class_map[class_map == len(CAMVID)] = 255
    class_map[rng.random(class_map.shape) < 0.05 * seed] = seed
    check_contours(class_map)


def test_contours_of_islands_in_holes() -> None:
    class_map = np.zeros((31, 31), np.uint8)
    for ring in range(1, 15, 2):
        class_map[ring : 31 - ring, ring : 31 - ring] = ring % 4 // 2 * 3
    check_contours(class_map)
    target = (np.maximum(*np.abs(np.mgrid[-15:16, -15:16])) // 3 % 2).astype(np.uint8)
    check_contours(target)
    rings = segmentation(target).contours()[CAMVID[1].name]
    assert [len(polygon.holes) for polygon in rings] == [1] * len(rings)
    assert len(rings) > 1


def test_contours_at_the_frame_s_edge() -> None:
    polygons = segmentation(np.zeros((7, 9), np.uint8)).contours()
    (whole,) = polygons["sky"]
    assert {tuple(point) for point in whole.exterior.tolist()} == {(0, 0), (8, 0), (8, 6), (0, 6)}
    assert whole.holes == ()
    assert all(not found for name, found in polygons.items() if name != "sky")


def test_save_writes_indices_and_colours(tmp_path: Path) -> None:
    class_map = RNG.integers(0, len(CAMVID), (20, 31)).astype(np.uint8)
    class_map[3] = 255
    segmentation(class_map).save(str(tmp_path / "map.png"))
    with Image.open(tmp_path / "map.png") as image:
        np.testing.assert_array_equal(np.asarray(image), class_map)
        colors = np.array([info.color for info in CAMVID] + [(0, 0, 0)] * 245)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colors[class_map])


# labels

CLASSES = tuple(ClassInfo(name, (index, 0, 0)) for index, name in enumerate(["sky", "road", "car", "pole"]))


def test_all_classes_as_they_are() -> None:
    assert choose(CLASSES, None) == Labels(CLASSES)


@pytest.mark.parametrize("choice", [["car", "road"], ("road", "car"), {"car", "road"}])
def test_a_subset_keeps_its_indices(choice: Any) -> None:
    assert choose(CLASSES, choice) == Labels(CLASSES, (255, 1, 2, 255))


def test_merging_numbers_anew_in_the_order_given() -> None:
    found = choose(CLASSES, {"thing": ["pole", "car"], "free": "road"})
    assert found == Labels((ClassInfo("thing", (3, 0, 0)), ClassInfo("free", (1, 0, 0))), (255, 1, 0, 0))
    assert choose(CLASSES, {"sky": ["road"]}).lut == (255, 0, 255, 255)


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (["tree"], "no class 'tree' in this bundle: it has sky, road, car, pole"),
        (["Sky"], "no class 'Sky'"),
        ({"x": ["tree"]}, "no class 'tree'"),
        ({"x": "tree"}, "no class 'tree'"),
        (["car", "car"], "'car' is named twice"),
        ({"x": ["car", "car"]}, "'car' is merged twice"),
        ({"x": ["car"], "y": "car"}, "'car' is merged twice"),
        ({"x": []}, "'x' merges nothing"),
        ({}, "classes is empty"),
        ([], "classes is empty"),
        ("car", "classes is the text 'car'"),
        ("", "classes is the text ''"),
        ([1], "no class 1"),
        ([["car"]], "no class ['car']"),
        ({"x": 3}, "'x': 3"),
        ({"x": None}, "'x': None"),
        ({3: "car"}, "3: 'car'"),
    ],
)
def test_choices_that_make_no_sense(choice: Any, says: str) -> None:
    with pytest.raises(InputError) as caught:
        choose(CLASSES, choice)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("choice", [None, ["car", "sky"], {"free": ["road", "sky"], "thing": "car"}])
def test_named_counts_add_up(choice: Any) -> None:
    labels = choose(CLASSES, choice)
    channels = RNG.integers(0, 4, 1000)
    written = channels if labels.lut is None else np.array(labels.lut)[channels]
    counts = labels.named(np.bincount(written, minlength=256))
    assert sum(counts.values()) == 1000
    assert ("unlabelled" in counts) == bool((written == 255).any())
    for index, info in enumerate(labels.classes):
        assert counts[info.name] == np.count_nonzero(written == index)


def test_a_class_called_unlabelled_loses_no_pixel() -> None:
    labels = Labels((ClassInfo("unlabelled", (0, 0, 0)), ClassInfo("road", (0, 0, 0))))
    counts = np.zeros(256, np.int64)
    counts[[0, 1, 255]] = 5, 7, 11
    assert labels.named(counts) == {"unlabelled": 16, "road": 7}
