"""How right a Segmenter's masks are on labelled images: IoU, boundaries, and agreement with a reference's masks."""

from __future__ import annotations

import base64
import hashlib
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from edgeseg._terminal import progress
from edgeseg.benchmarks.results import Accuracy
from edgeseg.bundle import Bundle
from edgeseg.calibration.certificate import LabelledImages, interval_of, resampled_mious
from edgeseg.calibration.datasets import digest_of
from edgeseg.errors import InputError
from edgeseg.scoring import Counts, confusion, overlaps, score
from edgeseg.segmenter import Segmenter
from edgeseg.types import IGNORE, ClassMap, Image

Predict = Callable[[Image], ClassMap]
"""A frame to its class map at the frame's own size."""

BOUNDARY_SHARE = 0.0075
"""Of the image's diagonal: the tolerance of Csurka, Larlus, Perronnin, "What is a good evaluation measure for semantic
segmentation?", BMVC 2013 (4.5 pixels at 360x480). DAVIS (Perazzi et al., CVPR 2016) takes 0.008, rounded up."""


def measure(
    segmenter: Segmenter,
    images: LabelledImages,
    *,
    reference: Predict | None = None,
    reference_name: str = "",
    boundary_pixels: float | None = None,
    seed: int = 0,
) -> Accuracy:
    """Segment all images and count, at the labels' own size; pixels whose label is 255 are ignored.

    The Segmenter has the bundle's own classes, as the labels do. mIoU, IoU and pixel accuracy are of all images' pixels
    together; the interval is of images drawn with replacement by `seed`. `boundary_f` is the mean over images of
    `boundary_score`, within `boundary_pixels` (None: `BOUNDARY_SHARE`; what is reported is then the images' mean).
    `agreement` is the share of all pixels, labelled or not, whose class is `reference`'s; without one the Segmenter is
    its own. Wrap one that several Segmenters share in `remembered`.
    Raises InputError where nothing is labelled, or for a tolerance that is none.
    """
    if boundary_pixels is not None and not 0 <= boundary_pixels < math.inf:  # NaN is not
        raise InputError(f"boundary_pixels is {boundary_pixels}: give the pixels a boundary may be off, 0 or more")
    names = [info.name for info in segmenter.classes]
    total = np.zeros((len(names), len(names) + 1), np.int64)
    rows, boundaries, tolerances, equal, pixels = list[Counts](), list[float](), list[float](), 0, 0
    with progress(range(len(images.samples)), segmenter.choice.partition(" (")[0]) as bar:
        for index in bar:
            frame = images.frame(index)
            size = (frame.shape[0], frame.shape[1])
            label, mask = images.label(index, size), segmenter(frame).class_map
            counts = confusion(mask, label, len(names))
            total += counts
            rows.append(overlaps(counts))
            tolerances.append(BOUNDARY_SHARE * math.hypot(*size) if boundary_pixels is None else boundary_pixels)
            boundaries.append(boundary_score(mask, label, tolerances[-1]))
            equal += mask.size if reference is None else int(np.count_nonzero(mask == reference(frame)))
            pixels += mask.size
    if not total.any():
        raise InputError(f"none of the {len(images.samples)} images has a labelled pixel: give labels")
    digests = images.digests()
    by_name = {name: digest for digest, name in digests.items()}
    keys = [(by_name.get(sample.name, ""), sample.name) for sample in images.samples]
    # by content, so that two runs of the same images agree on which is which
    table = np.stack([rows[index] for index in sorted(range(len(rows)), key=keys.__getitem__)], axis=1)
    found = score(total)
    low, high = interval_of(resampled_mious([table], seed)[0])
    return Accuracy(
        images=len(rows),
        data=digest_of(digests),
        miou=round(found.miou, 4),
        interval=(round(low, 4), round(high, 4)),
        pixel_accuracy=round(found.pixel_accuracy, 4),
        iou={name: round(iou, 4) if math.isfinite(iou) else None for name, iou in zip(names, found.iou, strict=True)},
        boundary_f=round(float(np.mean(boundaries)), 4),
        boundary_pixels=round(float(np.mean(tolerances)), 4),
        agreement=round(equal / pixels, 8),
        reference=reference_name,
        overlaps=pack(table),
    )


def boundary_score(mask: ClassMap, label: ClassMap, tolerance: float) -> float:
    """The boundary F-score of one mask, 0 to 100: BF of Csurka et al. (see `BOUNDARY_SHARE`), with void left out.

    As there, F is of one class in one image, averaged over the image's classes and then (`measure`) over the images.
    A boundary pixel of a class is one beside (4-neighbours) a pixel of another class; the image's edge is no boundary.
    Precision is the share of the mask's boundary pixels with one of the label's of the same class within `tolerance`
    pixels (Euclidean, inclusive), recall the same the other way round, F their harmonic mean. The classes are those
    with a boundary in either, so that one which the mask invents counts 0; SegNet (Badrinarayanan et al., PAMI 2017)
    takes the label's classes only, which forgives it. Only pixels with nothing unlabelled within `tolerance` are
    judged, since there the label's boundary may be anywhere. 100 where neither has a boundary.
    """
    kernel = _disk(tolerance)
    unlabelled = label == IGNORE
    judged = ~_near(unlabelled, kernel)
    sides = (mask, _edges(mask, np.zeros_like(unlabelled))), (label, _edges(label, unlabelled))
    classes = {int(index) for side, edge in sides for index in np.unique(side[edge & judged])} - {IGNORE}
    scores = []
    for index in sorted(classes):
        ours, theirs = (edge & (side == index) for side, edge in sides)
        precision, recall = _share(ours & judged, _near(theirs, kernel)), _share(theirs & judged, _near(ours, kernel))
        scores.append(200 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return float(np.mean(scores)) if scores else 100.0


def _edges(classes: ClassMap, void: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pixels beside one of another class, where neither is void."""
    edges = np.zeros(classes.shape, np.bool_)
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (classes[here] != classes[there]) & ~void[here] & ~void[there]
        edges[here] |= differ
        edges[there] |= differ
    return edges


def _disk(radius: float) -> npt.NDArray[np.uint8]:
    offsets = np.arange(-math.floor(radius), math.floor(radius) + 1)
    return (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.uint8)


def _near(pixels: npt.NDArray[np.bool_], disk: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    return np.asarray(cv2.dilate(pixels.view(np.uint8), disk)).view(np.bool_)


def _share(pixels: npt.NDArray[np.bool_], near: npt.NDArray[np.bool_]) -> float:
    """Of none, all."""
    count = np.count_nonzero(pixels)
    return float(np.count_nonzero(pixels & near) / count) if count else 1.0


def remembered(predict: Predict) -> Predict:
    """The same masks, computed once per frame however often they are asked for; they stay in memory."""
    masks: dict[bytes, ClassMap] = {}

    def recall(frame: Image) -> ClassMap:
        key = hashlib.sha256(f"{frame.shape}".encode() + frame.tobytes()).digest()
        if key not in masks:
            masks[key] = predict(frame)
        return masks[key]

    return recall


def torch_masks(bundle: Bundle, weights: Path, output_stride: int) -> Predict:
    """torch's own pipeline: float normalisation, the network, F.interpolate, argmax; of edgeseg only the network."""
    import torch

    from edgeseg.benchmarks.checkpoints import read_checkpoint

    settings = bundle.manifest.preprocess
    model = read_checkpoint(weights)
    if output_stride > 1:
        model.set_output_stride(output_stride)

    @torch.inference_mode()
    def predict(frame: Image) -> ClassMap:
        height, width = settings.input_size
        small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
        x = (small / np.float32(255) - np.array(settings.mean, np.float32)) / np.array(settings.std, np.float32)
        logits = model(torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32)))
        upsampled = torch.nn.functional.interpolate(logits, frame.shape[:2], mode="bilinear", align_corners=False)
        return np.asarray(upsampled.argmax(1)[0].numpy(), np.uint8)

    return predict


def pack(table: Counts) -> str:
    """Counts int64 (2, images, classes), see `scoring.overlaps`, as text: little-endian, zlib, base64."""
    return base64.b64encode(zlib.compress(table.astype("<i8").tobytes(), 9)).decode()


def unpack(accuracy: Accuracy) -> Counts | None:
    """The counts int64 (2, images, classes), images in the order of their SHA-256; None where the run wrote none.

    Raises InputError for text that holds something else.
    """
    if not accuracy.overlaps:
        return None
    shape = (2, accuracy.images, len(accuracy.iou))
    size = 8 * math.prod(shape)
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(accuracy.overlaps, validate=True), size + 1)
        if len(data) != size or not inflate.eof:
            raise ValueError(f"not {size} bytes")
    except (ValueError, zlib.error) as error:
        raise InputError(f"the overlaps of an accuracy are damaged ({error}): measure again") from error
    return np.frombuffer(data, "<i8").reshape(shape).astype(np.int64)
