"""What int8 or bf16 loses on labelled images: beside fp32 on one backend, and how sure the difference is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edgeseg._terminal import progress
from edgeseg.bundle import Bundle
from edgeseg.calibration.datasets import digest_of
from edgeseg.errors import InputError
from edgeseg.loading import device_kind, load_variant
from edgeseg.manifest import Certificate
from edgeseg.scoring import Counts, Percent, confusion, means, overlaps
from edgeseg.segmenter import Segmenter
from edgeseg.types import ClassMap, Encoding, Image, Size

MAX_DROP = 0.2
"""The loss that is allowed unless another is asked for, in points of mIoU."""
RESAMPLES = 2000
"""Draws of a bootstrap."""


class Named(Protocol):
    """An image's name, for messages."""

    @property
    def name(self) -> str: ...


@runtime_checkable
class LabelledImages(Protocol):
    """What is measured on; `edgeseg.calibration.datasets.Dataset` is one."""

    @property
    def samples(self) -> tuple[Named, ...]: ...
    def frame(self, index: int) -> Image: ...
    def label(self, index: int, size: Size) -> ClassMap: ...
    def digests(self) -> dict[str, str]: ...


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two ways to segment the same images: `fp32` and `other` are int64 (2, images, classes), see `scoring.overlaps`.

    `agreement` float64 (images,) is the share of each image's pixels on which both masks agree.
    """

    fp32: Counts
    other: Counts
    agreement: npt.NDArray[np.float64]
    pixels: npt.NDArray[np.int64]


def measure(
    bundle: Bundle,
    images: LabelledImages,
    *,
    output_stride: int,
    backend: str,
    device: str = "cpu",
    encoding: Encoding = "cpu",
    precision: Literal["int8", "bf16"] = "int8",
    limit: float = MAX_DROP,
    seed: int = 0,
    threads: int = 0,
) -> Certificate:
    """Run the fp32 and the int8 variant on one backend over all images and state what int8 loses.

    Or with `precision="bf16"` the fp32 variant in both, in the form of a certificate, which it is not: none is written.
    Masks are compared at the labels' size, through the exact decode. `limit` is the loss allowed, in points of mIoU,
    which is written down and not enforced; `seed` draws the bootstrap. The images must not have been used for
    calibration, which the caller sees to. Raises BundleError where a variant is missing, BackendError (GoldenError)
    where the backend cannot run one, InputError where nothing is labelled.
    """
    floats = bundle.variant(output_stride, "fp32")
    variant = floats if precision == "bf16" else bundle.variant(output_stride, "int8", encoding)
    names = [info.name for info in bundle.manifest.classes]
    with (
        load_variant(bundle, floats, backend=backend, device=device, threads=threads) as fp32,
        load_variant(bundle, variant, backend=backend, device=device, precision=precision, threads=threads) as other,
    ):
        runtime = other.info.runtime
        found = compare(fp32, other, images, len(names), f"output stride {output_stride} on {backend}")
    if not found.fp32[1].any():
        raise InputError(f"none of the {len(images.samples)} images has a labelled pixel: give labels")
    (iou_fp32, miou_fp32), (iou, miou) = means(found.fp32.sum(axis=1)), means(found.other.sum(axis=1))
    low, high = bootstrap(found, seed)
    worst = int(found.agreement.argmin())
    return Certificate(
        backend=backend,
        device=device_kind(device),
        runtime=runtime,
        images=len(images.samples),
        data=digest_of(images.digests()),
        miou_fp32=_rounded(miou_fp32),
        miou=_rounded(miou),
        difference=_rounded(miou - miou_fp32),
        interval=(_rounded(low), _rounded(high)),
        iou_difference={
            name: _rounded(value) for name, value in zip(names, iou - iou_fp32, strict=True) if np.isfinite(value)
        },
        agreement=_rounded(np.average(found.agreement, weights=found.pixels), 6),
        worst_image=images.samples[worst].name,
        worst_agreement=_rounded(found.agreement[worst], 6),
        limit=limit,
    )


def compare(fp32: Segmenter, other: Segmenter, images: LabelledImages, classes: int, label: str = "") -> Comparison:
    """Segment every image twice and count, image by image."""
    rows, agreement, pixels = [], [], []
    with progress(range(len(images.samples)), label) as bar:
        for index in bar:
            frame = images.frame(index)
            size = (frame.shape[0], frame.shape[1])
            wanted = images.label(index, size)
            masks = [segmenter(frame).class_map for segmenter in (fp32, other)]
            rows.append([overlaps(confusion(mask, wanted, classes)) for mask in masks])
            agreement.append(float(np.mean(masks[0] == masks[1])))
            pixels.append(wanted.size)
    counted = np.array(rows, np.int64).transpose(1, 2, 0, 3)  # (mask, hits or union, image, class)
    return Comparison(counted[0], counted[1], np.array(agreement), np.array(pixels))


def bootstrap(found: Comparison, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95 % interval of mIoU minus that of fp32, in points: images drawn with replacement, the same for both."""
    other, fp32 = resampled_mious((found.other, found.fp32), seed, resamples)
    return interval_of(other - fp32)


def resampled_mious(tables: Sequence[Counts], seed: int, resamples: int = RESAMPLES) -> tuple[Percent, ...]:
    """Per table, int64 (2, images, classes) of the same images, its mIoU (resamples,) on images drawn with replacement.

    The draws are the same for all tables, so that their differences are paired.
    """
    count = tables[0].shape[1]
    drawn = np.random.default_rng(seed).integers(0, count, (resamples, count))
    flat = (drawn + count * np.arange(resamples)[:, None]).ravel()
    times = np.bincount(flat, minlength=resamples * count).reshape(resamples, count).astype(np.float64)
    # counts stay below 2**53, so float64 adds them exactly
    return tuple(means(times @ table.astype(np.float64))[1] for table in tables)


def interval_of(resampled: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of resampled values; those that are NaN are left out."""
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def _rounded(value: float | npt.NDArray[np.float64], digits: int = 4) -> float:
    return round(float(value), digits)
