"""Counting how predicted class maps agree with labels: confusion, IoU, pixel accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeseg.types import ClassMap

Counts = npt.NDArray[np.int64]
"""int64 (classes, classes): rows are labels, columns predictions."""


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
    classes = len(counts)
    hits = np.diag(counts[:, :classes]).astype(np.float64)
    union = counts.sum(axis=1) + counts[:, :classes].sum(axis=0) - hits
    with np.errstate(invalid="ignore"):
        iou = 100 * hits / np.where(union > 0, union, np.nan)
    return Score(float(np.nanmean(iou)), float(100 * hits.sum() / counts.sum()), tuple(map(float, iou)))
