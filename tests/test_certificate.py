"""Certificates against plain loops in float64: what int8 loses, and how sure that is."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import edgeseg
from edgeseg.bundle import Bundle
from edgeseg.calibration.certificate import Comparison, bootstrap, measure
from edgeseg.calibration.datasets import digest_of
from edgeseg.errors import BackendError, BundleError, InputError
from edgeseg.manifest import Certificate, dumps, loads
from edgeseg.testing import TINY, street_scene

CLASSES = 5


@dataclass(frozen=True)
class Named:
    name: str


class Scenes:
    """Drawn scenes, labelled with what TINY says of them in fp32, some of it wrong and some of it void."""

    def __init__(self, count: int = 7) -> None:
        self.samples = tuple(Named(f"scene{index}") for index in range(count))
        self.frames = [street_scene(index, (48 + index, 80))[0] for index in range(count)]
        rng = np.random.default_rng(1)
        with edgeseg.load(TINY, backend="ort", output_stride=16, cache=None) as segmenter:
            self.labels = [segmenter(frame).class_map for frame in self.frames]
        for label in self.labels:
            label[rng.random(label.shape) < 0.3] = rng.integers(CLASSES)
            label[rng.random(label.shape) < 0.1] = 255

    def frame(self, index: int) -> np.ndarray:
        return self.frames[index]

    def label(self, index: int, size: tuple[int, int]) -> np.ndarray:
        assert self.labels[index].shape == size
        return self.labels[index]

    def digests(self) -> dict[str, str]:
        return {hashlib.sha256(sample.name.encode()).hexdigest(): sample.name for sample in self.samples}


def plain_iou(masks: list[np.ndarray], labels: list[np.ndarray]) -> np.ndarray:
    """In percent per class over all images, pixel by pixel as the definition has it; NaN for what is nowhere."""
    iou = np.full(CLASSES, np.nan)
    for index in range(CLASSES):
        hits = union = 0
        for mask, label in zip(masks, labels, strict=True):
            seen, meant = (mask == index) & (label != 255), label == index
            hits += int((seen & meant).sum())
            union += int((seen | meant).sum())
        if union:
            iou[index] = 100 * hits / union
    return iou


@pytest.fixture(scope="module")
def scenes(tiny_int8: Path) -> Scenes:
    return Scenes()


@pytest.mark.parametrize(("backend", "encoding"), [("ort", "cpu"), ("openvino", "cpu"), ("simulate", "tensorrt")])
def test_a_certificate_says_what_plain_loops_count(
    tiny_int8: Path, scenes: Scenes, backend: str, encoding: edgeseg.types.Encoding
) -> None:
    bundle = Bundle.open(tiny_int8)
    found = measure(bundle, scenes, output_stride=16, backend=backend, encoding=encoding, limit=0.3)
    masks = []
    for variant in (bundle.variant(16, "fp32"), bundle.variant(16, "int8", encoding)):
        with edgeseg.loading.load_variant(bundle, variant, backend=backend) as segmenter:
            masks.append([segmenter(frame).class_map for frame in scenes.frames])
    fp32, int8 = (plain_iou(one, scenes.labels) for one in masks)
    assert not np.array_equal(fp32, int8), "int8 changes nothing: this proves nothing"
    assert found.miou_fp32 == pytest.approx(np.nanmean(fp32), abs=1e-4)
    assert found.miou == pytest.approx(np.nanmean(int8), abs=1e-4)
    assert found.difference == pytest.approx(np.nanmean(int8) - np.nanmean(fp32), abs=1e-4)
    names = [info.name for info in bundle.manifest.classes]
    expected = {name: value for name, value in zip(names, int8 - fp32, strict=True) if np.isfinite(value)}
    assert found.iou_difference == pytest.approx(expected, abs=1e-4)
    equal = [np.mean(a == b) for a, b in zip(*masks, strict=True)]
    assert found.agreement == pytest.approx(
        np.mean(np.concatenate([(a == b).ravel() for a, b in zip(*masks, strict=True)])), abs=1e-6
    )
    assert (found.worst_image, found.worst_agreement) == (
        f"scene{np.argmin(equal)}",
        pytest.approx(min(equal), abs=1e-6),
    )
    assert found.interval[0] <= found.difference <= found.interval[1]
    assert (found.backend, found.device, found.images, found.limit) == (backend, "cpu", 7, 0.3)
    assert found.data == digest_of(scenes.digests())
    assert found == measure(bundle, scenes, output_stride=16, backend=backend, encoding=encoding, limit=0.3)


def test_the_manifest_carries_it(tiny_int8: Path, scenes: Scenes) -> None:
    bundle = Bundle.open(tiny_int8)
    found = measure(bundle, scenes, output_stride=8, backend="ort", seed=3)
    variants = [dataclasses.replace(v, certificates=(found,)) for v in bundle.manifest.variants]
    manifest = dataclasses.replace(bundle.manifest, variants=tuple(variants))
    assert loads(dumps(manifest), "here") == manifest


def plain_bootstrap(fp32: np.ndarray, int8: np.ndarray, seed: int, resamples: int) -> tuple[float, float]:
    count = fp32.shape[1]
    drawn = np.random.default_rng(seed).integers(0, count, (resamples, count))
    differences = []
    for row in drawn:
        mious = []
        for table in (fp32, int8):
            hits, union = np.zeros(table.shape[2]), np.zeros(table.shape[2])
            for image in row:
                hits += table[0, image]
                union += table[1, image]
            mious.append(np.mean([100 * h / u for h, u in zip(hits, union, strict=True) if u]))
        differences.append(mious[1] - mious[0])
    return float(np.percentile(differences, 2.5)), float(np.percentile(differences, 97.5))


@pytest.mark.parametrize("seed", [0, 5])
def test_bootstrap_against_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    union = rng.integers(1, 90_000, (2, 13, 4))
    union[:, :-1, 2] = 0  # a class in one image only: many resamples have none of it
    union[0, :, 3] = 0  # and one that only int8 predicts
    hits = (union * rng.uniform(0.3, 1, union.shape)).astype(np.int64)
    fp32, int8 = np.stack([hits[0], union[0]]), np.stack([hits[1], union[1]])
    found = bootstrap(Comparison(fp32, int8, np.ones(13), np.ones(13, np.int64)), seed, 300)
    np.testing.assert_allclose(found, plain_bootstrap(fp32, int8, seed, 300), rtol=0, atol=1e-9)


def test_the_same_masks_lose_nothing() -> None:
    table = np.array([[[5, 1], [7, 0]], [[9, 4], [8, 0]]])
    assert bootstrap(Comparison(table, table, np.ones(2), np.ones(2, np.int64)), 0) == (0, 0)


def test_a_certificate_holds_up_to_its_limit() -> None:
    made = Certificate("ort", "cpu", "", 20, "", 60, 59.8, -0.2, (-0.3, 0), {}, 1, "", 1, 0.2)
    assert made.holds
    assert not dataclasses.replace(made, difference=-0.2001).holds
    few = dataclasses.replace(made, images=19)
    assert (few.within_limit, few.holds) == (True, False)


def test_what_cannot_be_measured_says_so(tiny_int8: Path, scenes: Scenes) -> None:
    bundle = Bundle.open(tiny_int8)
    with pytest.raises(BundleError, match=r"no output stride 8 in int8 \(tensorrt\): it has 8 fp32, 8 int8 \(cpu\)"):
        measure(bundle, scenes, output_stride=8, backend="simulate", encoding="tensorrt")
    with pytest.raises(BackendError, match="3 to 6 times slower"):
        measure(bundle, scenes, output_stride=16, backend="ort", encoding="tensorrt")
    void = Scenes(2)
    for label in void.labels:
        label[:] = 255
    with pytest.raises(InputError, match="none of the 2 images has a labelled pixel"):
        measure(bundle, void, output_stride=16, backend="ort")
