"""What decoding computes, in numpy: the definition that `_decode.c` repeats bit for bit, and the path without it.

All arithmetic is float32 in a fixed order. `_decode.c` explains why leaving classes out changes no real result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeseg.types import IGNORE, ClassMap

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]
Band = Callable[[int, int], "Counts | None"]
"""Writes output rows [first, last) and returns their counts if wanted; bands may run at the same time."""

LIMIT = np.float32(1e38)
LANES = 16  # the kernel reads weights in blocks of this many: the tables are longer by as much
_ROWS = 64  # rows evaluated at a time: bounds memory to a few arrays of _ROWS x W


@dataclass(frozen=True, slots=True)
class Axis:
    """How one axis of the output lies over the logits: cells between neighbouring logits, and per-pixel weights.

    `start` int32 (cells + 1,): first output pixel of each cell, then the output's length; `index` int32 (cells,): its
    lower logit (the upper is the next one, if there is one); `lower`, `upper` float32 (n_out + LANES,): weights >= 0.
    """

    start: npt.NDArray[np.int32]
    index: npt.NDArray[np.int32]
    lower: Floats
    upper: Floats


@functools.lru_cache(maxsize=32)
def axis(n_in: int, n_out: int, align_corners: bool, span: tuple[float, float, int] | None) -> Axis:
    """The table of one axis; `span` is (offset, length, input length) of a region, in input pixels. Float64 inside."""
    centre = np.arange(n_out, dtype=np.float64) + 0.5
    if span is not None:
        offset, length, n_input = span
        position = centre * (length / n_out) + offset
        if align_corners:
            source = (position - 0.5) * ((n_in - 1) / (n_input - 1) if n_input > 1 else 0.0)
        else:
            source = position * (n_in / n_input) - 0.5
    elif align_corners:
        source = (centre - 0.5) * ((n_in - 1) / (n_out - 1) if n_out > 1 else 0.0)
    else:
        source = centre * (n_in / n_out) - 0.5
    source = np.clip(source, 0.0, n_in - 1)
    # The last logit is the upper end of the last cell, as the first is the lower end of the first.
    index = np.minimum(source.astype(np.int32), max(n_in - 2, 0))
    upper = source - index
    start = np.concatenate([[0], np.flatnonzero(np.diff(index)) + 1, [n_out]]).astype(np.int32)
    pad = np.zeros(LANES, np.float32)
    table = Axis(
        start=start,
        index=index[start[:-1]],
        lower=np.concatenate([(1.0 - upper).astype(np.float32), pad]),
        upper=np.concatenate([upper.astype(np.float32), pad]),
    )
    for array in (table.start, table.index, table.lower, table.upper):
        array.flags.writeable = False  # shared by every caller
    return table


@dataclass(frozen=True, slots=True)
class Plan:
    """One decode, validated: inputs, tables, and the arrays to write.

    `logits` float32 (C, h, w) contiguous; `labels` uint8 (256,); `threshold` is a logit; `cut` < 0: exp(t) counts
    as 0 for t < cut; `unknown_below` 0 never; `scored`: compute confidence, whether or not it is returned.
    """

    logits: Floats
    rows: Axis
    cols: Axis
    labels: npt.NDArray[np.uint8]
    threshold: float
    cut: float
    unknown_below: float
    scored: bool
    counted: bool
    out: ClassMap
    confidence: Floats | None


def exp_negative(t: Floats) -> Floats:
    """exp(t) for t <= 0, absolute error about 1e-7; one sequence of float32 operations, the kernel's own."""
    x = t * np.float32(1.44269504)
    shifted = x + np.float32(12582912.0)  # 1.5 * 2**23: rounds to an integer and leaves it in the low bits
    f = x - (shifted - np.float32(12582912.0))
    p = f * np.float32(0.0013264727) + np.float32(0.009671513)
    for coefficient in (0.055507336, 0.24022242, 0.693147, 1.0):
        p *= f
        p += np.float32(coefficient)
    scale = ((shifted.view(np.uint32) + np.uint32(127)) << np.uint32(23)).view(np.float32)
    return np.asarray(p * scale, dtype=np.float32)


def _candidates(corners: list[Floats], winners: list[npt.NDArray[np.intp]]) -> npt.NDArray[np.bool_]:
    """bool (C, n): classes that no corner's winner beats at all four corners; equal values go to the lower index."""
    classes, n = corners[0].shape
    order = np.arange(classes)[:, None]
    beaten = np.zeros((classes, n), bool)
    for winner in winners:
        lost = np.ones((classes, n), bool)
        for corner in corners:
            best = np.take_along_axis(corner, winner[None], axis=0)
            lost &= (best > corner) | ((best == corner) & (winner < order))
        beaten |= lost
    return ~beaten


def _bounded(logits: Floats) -> Floats:
    """NaN -> -1e38, then clamped to [-1e38, 1e38]."""
    return np.clip(np.where(np.isnan(logits), -LIMIT, logits), -LIMIT, LIMIT)


def numpy_band(plan: Plan) -> Band:
    """The band writer of the numpy path."""
    logits = _bounded(plan.logits)
    classes, n_rows, n_cols = logits.shape
    threshold = np.float32(plan.threshold)
    best_class = logits.argmax(axis=0) if classes > 1 else (logits[0] > threshold).astype(np.intp)
    left = plan.cols.index
    right = np.minimum(left + 1, n_cols - 1)
    cell = np.repeat(np.arange(left.size), np.diff(plan.cols.start))  # of each output column

    def cell_row(upper: int, first: int, last: int) -> None:
        lower = min(upper + 1, n_rows - 1)
        winners = [best_class[upper, left], best_class[upper, right], best_class[lower, left], best_class[lower, right]]
        uniform = np.logical_and.reduce([winners[0] == other for other in winners[1:]])
        plan.out[first:last] = plan.labels[winners[0]][cell]
        cells = np.arange(left.size) if plan.scored else np.flatnonzero(~uniform)
        if not cells.size:
            return
        columns = np.flatnonzero(np.isin(cell, cells))
        of_cell = np.searchsorted(cells, cell[columns])
        x0, x1 = left[cell[columns]], right[cell[columns]]
        wx0, wx1 = plan.cols.lower[columns], plan.cols.upper[columns]
        if classes > 1:
            at = [(upper, left), (upper, right), (lower, left), (lower, right)]
            corners = [logits[:, y, x[cells]] for y, x in at]
            alive = _candidates(corners, [winner[cells] for winner in winners])

        def score(k: int, wy0: Floats, wy1: Floats) -> Floats:
            line = wy0 * logits[k, upper] + wy1 * logits[k, lower]
            return np.asarray(wx0 * line[:, x0] + wx1 * line[:, x1], dtype=np.float32)

        for y in range(first, last, _ROWS):
            band = slice(y, min(y + _ROWS, last))
            wy0, wy1 = plan.rows.lower[band, None], plan.rows.upper[band, None]
            best = np.full((band.stop - y, columns.size), -np.inf, np.float32)
            chosen = np.zeros(best.shape, np.intp)
            if classes == 1:
                best = score(0, wy0, wy1)
                decided = uniform[cells][of_cell]
                chosen = np.where(decided, winners[0][cells][of_cell], best > threshold)
            else:
                for k in np.flatnonzero(alive.any(axis=1)).tolist():
                    s = np.where(alive[k][of_cell], score(k, wy0, wy1), np.float32(-np.inf))
                    chosen[s > best] = k
                    np.maximum(best, s, out=best)
            written = plan.labels[chosen]
            if plan.scored:
                others = np.zeros_like(best)
                if classes == 1:
                    t = -np.abs(best)
                    others = np.where(t < np.float32(plan.cut), np.float32(0), exp_negative(t))
                else:
                    for k in range(classes):
                        t = score(k, wy0, wy1) - best
                        dropped = (t < np.float32(plan.cut)) | (chosen == k)
                        others += np.where(dropped, np.float32(0), exp_negative(t))
                confidence = np.float32(1) / (np.float32(1) + others)
                written[confidence < np.float32(plan.unknown_below)] = IGNORE
                if plan.confidence is not None:
                    plan.confidence[band] = confidence
            plan.out[band, columns] = written

    def write(first: int, last: int) -> Counts | None:
        start = plan.rows.start
        for i in range(start.size - 1):
            top, bottom = max(int(start[i]), first), min(int(start[i + 1]), last)
            if top < bottom:
                with np.errstate(over="ignore", invalid="ignore"):  # exp_negative far below `cut`: dropped
                    cell_row(int(plan.rows.index[i]), top, bottom)
        return np.bincount(plan.out[first:last].ravel(), minlength=256).astype(np.int64) if plan.counted else None

    return write
