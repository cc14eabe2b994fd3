"""Counting how predicted class maps agree with labels: confusion, IoU, pixel accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeseg.types import ClassMap

Counts = npt.NDArray[np.int64]
"""int64 (classes, classes): rows are labels, columns predictions."""
Percent = npt.NDArray[np.float64]
"""0 to 100."""


@dataclass(frozen=True, slots=True)
class Score:
    """Of one confusion matrix: mean IoU and pixel accuracy in percent; per-class IoU, NaN for absent classes."""

    miou: float
    pixel_accuracy: float
    iou: tuple[float, ...]


def confusion(predicted: ClassMap, label: ClassMap, classes: int) -> Counts:
    """Count pixels by (label, prediction); pixels whose label is no class (void, 255) are ignored.

    A prediction that is no class counts as wrong for its label but towards no class.
    """
    valid = label < classes
    columns = np.minimum(predicted[valid], classes).astype(np.int64)
    pairs = label[valid].astype(np.int64) * (classes + 1) + columns
    return np.bincount(pairs, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def score(counts: Counts) -> Score:
    """IoU = hits / (label pixels + predicted pixels - hits), averaged over the classes that occur in either."""
    overlap = overlaps(counts)
    iou, mean = means(overlap)
    return Score(float(mean), float(100 * overlap[0].sum() / counts.sum()), tuple(map(float, iou)))


def overlaps(counts: Counts) -> Counts:
    """int64 (2, classes) from one confusion matrix: hits, and the union of label and prediction.

    These add up over images as the matrices do, and are all that IoU needs of them.
    """
    classes = len(counts)
    hits = np.diag(counts[:, :classes])
    return np.stack([hits, counts.sum(axis=1) + counts[:, :classes].sum(axis=0) - hits])


def means(overlap: npt.NDArray[Any]) -> tuple[Percent, Percent]:
    """Of hits and unions (2, ..., classes): IoU (..., classes), NaN for absent classes; its mean (...) over the others.

    The mean is NaN where no class is there.
    """
    hits, union = np.asarray(overlap, np.float64)
    present = union > 0
    with np.errstate(invalid="ignore"):
        iou = 100 * hits / np.where(present, union, np.nan)
        return iou, np.where(present, iou, 0).sum(axis=-1) / present.sum(axis=-1)
