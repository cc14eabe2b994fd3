"""Accuracy against plain loops over pixels: IoU, boundaries, agreement, and what a run keeps for comparing."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass

import numpy as np
import pytest

import edgeseg
from edgeseg.benchmarks.quality import BOUNDARY_SHARE, boundary_score, measure, remembered, unpack
from edgeseg.calibration.datasets import digest_of
from edgeseg.errors import InputError
from edgeseg.segmenter import Segmenter
from edgeseg.testing import TINY, street_scene

pytest.importorskip("onnxruntime")

CLASSES = 5


@dataclass(frozen=True)
class Named:
    name: str


class Scenes:
    """Drawn scenes with their exact labels, a part of it void."""

    def __init__(self, count: int = 4, seed: int = 0) -> None:
        self.samples = tuple(Named(f"scene{index}") for index in range(count))
        rng = np.random.default_rng(seed)
        scenes = [street_scene(seed + index, (32 + index, 44)) for index in range(count)]
        self.frames = [frame for frame, _ in scenes]
        self.labels = [np.where(label < CLASSES, label, 255).astype(np.uint8) for _, label in scenes]
        for label in self.labels:
            label[rng.random(label.shape) < 0.02] = 255

    def frame(self, index: int) -> np.ndarray:
        return self.frames[index]

    def label(self, index: int, size: tuple[int, int]) -> np.ndarray:
        assert self.labels[index].shape == size
        return self.labels[index]

    def digests(self) -> dict[str, str]:
        return {hashlib.sha256(sample.name.encode()).hexdigest(): sample.name for sample in self.samples}


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return edgeseg.load(TINY, backend="ort", output_stride=8, cache=None)


def plain_edges(classes: np.ndarray, void: np.ndarray, index: int) -> list[tuple[int, int]]:
    """The boundary pixels of one class, looked at one by one."""
    height, width = classes.shape
    found = []
    for y, x in np.argwhere((classes == index) & ~void):
        beside = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inside = [(a, b) for a, b in beside if 0 <= a < height and 0 <= b < width and not void[a, b]]
        if any(classes[place] != index for place in inside):
            found.append((int(y), int(x)))
    return found


def plain_distance(shape: tuple[int, ...], places: list[tuple[int, int]]) -> np.ndarray:
    """The distance transform by its definition: from every pixel to the nearest of the places, float64."""
    if not places:
        return np.full(shape, np.inf)
    pixels = np.stack(np.indices(shape), axis=-1).astype(np.float64)[:, :, None]
    return np.sqrt(((pixels - np.array(places, np.float64)) ** 2).sum(axis=-1)).min(axis=-1)


def plain_boundary_score(mask: np.ndarray, label: np.ndarray, tolerance: float) -> float:
    """As the definition has it, by distances from one boundary's pixels to the other and to what is void."""
    void, nothing = label == 255, np.zeros(label.shape, bool)
    known = plain_distance(label.shape, [(int(y), int(x)) for y, x in np.argwhere(void)]) > tolerance
    scores = []
    for index in range(255):
        sides = plain_edges(mask, nothing, index), plain_edges(label, void, index)
        judged = [[place for place in side if known[place]] for side in sides]
        if not any(judged):
            continue
        shares = []
        for side, others in zip(judged, sides[::-1], strict=True):
            distance = plain_distance(label.shape, others)
            shares.append(sum(distance[place] <= tolerance for place in side) / len(side) if side else 1.0)
        scores.append(100 * 2 * shares[0] * shares[1] / sum(shares) if sum(shares) else 0.0)
    return float(np.mean(scores)) if scores else 100.0


@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 2.3, 5])
def test_the_boundary_score_is_the_plain_loops(tolerance: float) -> None:
    rng = np.random.default_rng(int(10 * tolerance))
    for voids in (0, 0.01, 0.3):
        label = np.repeat(np.repeat(rng.integers(0, 3, (4, 5)), 4, axis=0), 4, axis=1).astype(np.uint8)
        mask = np.roll(label, (1, 2), (0, 1))
        mask[rng.random(mask.shape) < 0.05] = 4  # a class that the label has not
        mask[:3, :3] = 255
        label[rng.random(label.shape) < voids] = 255
        found = boundary_score(mask, label, tolerance)
        assert found == pytest.approx(plain_boundary_score(mask, label, tolerance), abs=1e-9)
        assert voids or 0 < found < 100


def test_what_a_boundary_score_is() -> None:
    label = np.zeros((20, 20), np.uint8)
    label[:, 10:] = 1
    moved = np.zeros((20, 20), np.uint8)
    moved[:, 13:] = 1
    assert boundary_score(label, label, 0) == 100
    assert (boundary_score(moved, label, 2.99), boundary_score(moved, label, 3)) == (0, 100)
    assert boundary_score(np.zeros_like(label), label, 3) == 0  # it has no boundary at all
    assert boundary_score(np.zeros_like(label), np.zeros_like(label), 3) == 100
    hidden = label.copy()
    hidden[:, 8:12] = 255  # the boundary lies where nobody looked: nothing to judge
    assert boundary_score(moved, hidden, 3) == 100
    assert boundary_score(np.zeros_like(label), hidden, 3) == 100
    moved[:, 13:] = 0
    moved[:, 17:] = 1  # and this one lies where somebody did
    assert boundary_score(moved, hidden, 3) == 0


def test_accuracy_is_what_plain_loops_count(segmenter: Segmenter) -> None:
    scenes = Scenes()
    other = edgeseg.load(TINY, backend="ort", output_stride=16, cache=None)
    calls = []

    def predict(frame: np.ndarray) -> np.ndarray:
        calls.append(1)
        return other(frame).class_map

    reference = remembered(predict)
    found = measure(segmenter, scenes, reference=reference, reference_name="stride 16")
    masks = [segmenter(frame).class_map for frame in scenes.frames]
    hits, union = np.zeros((4, CLASSES), int), np.zeros((4, CLASSES), int)
    right = known = same = 0
    for image, (mask, label) in enumerate(zip(masks, scenes.labels, strict=True)):
        theirs = other(scenes.frames[image]).class_map
        for said, meant, there in zip(mask.flat, label.flat, theirs.flat, strict=True):
            same += said == there
            if meant != 255:
                known, right = known + 1, right + (said == meant)
                for index in {int(said), int(meant)}:
                    union[image, index] += 1
                    hits[image, index] += said == meant
    seen = union.sum(axis=0) > 0
    iou = 100 * hits.sum(axis=0)[seen] / union.sum(axis=0)[seen]
    assert found.miou == pytest.approx(iou.mean(), abs=1e-4)
    assert [value for value in found.iou.values() if value is not None] == pytest.approx(list(iou), abs=1e-4)
    assert [value is not None for value in found.iou.values()] == list(seen)
    assert list(found.iou) == [info.name for info in segmenter.classes]
    assert found.pixel_accuracy == pytest.approx(100 * right / known, abs=1e-4)
    assert found.agreement == pytest.approx(same / sum(mask.size for mask in masks), abs=1e-8)
    assert 0 < found.agreement < 1
    assert (found.images, found.data, found.reference) == (4, digest_of(scenes.digests()), "stride 16")
    tolerances = [BOUNDARY_SHARE * math.hypot(*mask.shape) for mask in masks]
    boundary = [plain_boundary_score(*three) for three in zip(masks, scenes.labels, tolerances, strict=True)]
    assert found.boundary_f == pytest.approx(np.mean(boundary), abs=1e-4)
    assert found.boundary_pixels == pytest.approx(np.mean(tolerances), abs=1e-4)
    drawn = np.random.default_rng(0).integers(0, 4, (2000, 4))
    kept = unpack(found)
    assert kept is not None
    order = sorted(range(4), key=lambda index: hashlib.sha256(scenes.samples[index].name.encode()).hexdigest())
    np.testing.assert_array_equal(kept, [hits[order], union[order]])
    mious = [np.mean([100 * h / u for h, u in zip(*kept[:, row].sum(axis=1), strict=True) if u]) for row in drawn]
    assert found.interval == pytest.approx(np.percentile(mious, [2.5, 97.5]), abs=1e-4)
    assert measure(segmenter, scenes, reference=reference, reference_name="stride 16") == found
    assert len(calls) == 4


def test_settings(segmenter: Segmenter) -> None:
    scenes = Scenes(2)
    alone = measure(segmenter, scenes)
    assert (alone.agreement, alone.reference) == (1, "")
    wide = measure(segmenter, scenes, boundary_pixels=3, seed=1)
    assert wide.boundary_pixels == 3
    assert wide.boundary_f >= alone.boundary_f
    with pytest.raises(InputError, match="boundary_pixels is nan"):
        measure(segmenter, scenes, boundary_pixels=math.nan)
    for label in scenes.labels:
        label[:] = 255
    with pytest.raises(InputError, match="none of the 2 images has a labelled pixel"):
        measure(segmenter, scenes)


def test_overlaps_that_are_damaged_or_missing(segmenter: Segmenter) -> None:
    found = measure(segmenter, Scenes(2))
    assert unpack(dataclasses.replace(found, overlaps="")) is None
    for wrong in ("x", "AAAA", found.overlaps[:-8]):
        with pytest.raises(InputError, match="overlaps of an accuracy are damaged"):
            unpack(dataclasses.replace(found, overlaps=wrong))
    with pytest.raises(InputError, match="damaged"):
        unpack(dataclasses.replace(found, images=3))
