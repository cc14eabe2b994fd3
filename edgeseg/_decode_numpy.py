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
RUN = 12  # confidence: rows from one restart of its sequences to the next
_SHORT = 4  # cells of fewer rows are evaluated pixel by pixel
_STEEP = np.float32(-60)  # exponents below: sequences would leave float32's range
_LOG2_E = np.float32(1.44269504)
LANES = 16  # the kernel reads weights in blocks of this many: the tables are longer by as much
_ROWS = 64  # rows evaluated at a time: bounds memory to a few arrays of _ROWS x W


@dataclass(frozen=True, slots=True)
class Axis:
    """How one axis of the output lies over the logits: cells between neighbouring logits, and per-pixel weights.

    `start` int32 (cells + 1,): first output pixel of each cell, then the output's length; `index` int32 (cells,): its
    lower logit (the upper is the next one, if there is one); `lower`, `upper` float32 (n_out + LANES,): weights >= 0,
    within a cell linear in the pixel: what lies outside the logits' centres is a cell of its own.
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
    clamped = np.sign(source - np.clip(source, 0.0, n_in - 1))
    source = np.clip(source, 0.0, n_in - 1)
    # The last logit is the upper end of the last cell, as the first is the lower end of the first.
    index = np.minimum(source.astype(np.int32), max(n_in - 2, 0))
    upper = source - index
    breaks = np.flatnonzero((np.diff(index) != 0) | (np.diff(clamped) != 0)) + 1
    start = np.concatenate([[0], breaks, [n_out]]).astype(np.int32)
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


@dataclass(frozen=True, eq=False)
class Plan:
    """What decodes of one kind share, validated: tables and settings.

    `labels` uint8 (256,); `threshold` is a logit; `cut` < 0: confidence counts 2**x as 0 for x < cut; `unknown_below`
    0 never; `scored`: compute confidence, whether or not it is returned.
    """

    rows: Axis
    cols: Axis
    labels: npt.NDArray[np.uint8]
    threshold: float
    cut: float
    unknown_below: float
    scored: bool
    counted: bool


@dataclass(frozen=True, slots=True)
class Arrays:
    """What one decode reads, `logits` float32 (C, h, w) contiguous, and writes."""

    logits: Floats
    out: ClassMap
    confidence: Floats | None


def power(x: Floats) -> Floats:
    """2**x for |x| <= 120, relative error 1e-7; one sequence of float32 operations, the kernel's own."""
    shifted = x + np.float32(12582912.0)  # 1.5 * 2**23: rounds to an integer and leaves it in the low bits
    f = x - (shifted - np.float32(12582912.0))
    p = f * np.float32(0.0001535336) + np.float32(0.0013398875)
    for coefficient in (0.009618437, 0.055503324, 0.24022648, 0.6931472, 1.0):
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


@dataclass(frozen=True, slots=True)
class _Heard:
    """The classes that confidence hears in a row of n cells: those that cannot be the best first, then candidates.

    `corners`: exponents (C, n) at the four corners, relative to their largest, in that order of classes; `rest` and
    `count` (n,): how many cannot be the best, and how many are heard in all; `steep` (n,): evaluated by pixels.
    """

    corners: list[Floats]
    rest: npt.NDArray[np.intp]
    count: npt.NDArray[np.intp]
    steep: npt.NDArray[np.bool_]


def _heard(corners: list[Floats], cut: np.float32, short: bool) -> _Heard:
    """Left out: classes below one winner by `cut` at all corners."""
    winners = [corner.argmax(axis=0) for corner in corners]
    alive = _candidates(corners, winners)
    exponents = [(corner - corner.max(axis=0)) * _LOG2_E for corner in corners]
    silent = np.zeros_like(alive)
    for winner in winners:
        below = [one - np.take_along_axis(one, winner[None], axis=0) < cut for one in exponents]
        silent |= np.logical_and.reduce(below)
    silent &= ~alive
    low = np.minimum.reduce(exponents) < _STEEP
    order = np.argsort(np.where(silent, 2, alive), axis=0, kind="stable")
    return _Heard(
        corners=[np.take_along_axis(one, order, axis=0) for one in exponents],
        rest=(~silent & ~alive).sum(axis=0),
        count=(~silent).sum(axis=0),
        steep=(low & ~silent).any(axis=0) | short,
    )


def _confidence(
    plan: Plan, arrays: Arrays, corners: list[Floats], cell: npt.NDArray[np.intp], rows: tuple[int, int, int, int]
) -> None:
    """Confidence in rows [first, last) of the row of cells [start, end); `rows` is (start, end, first, last)."""
    start, end, first, last = rows
    heard = _heard(corners, np.float32(plan.cut), end - start < _SHORT)
    wx0, wx1 = plan.cols.lower[:-LANES], plan.cols.upper[:-LANES]
    wy0, wy1 = plan.rows.lower, plan.rows.upper
    step = (wy1[end - 1] - wy1[start]) / np.float32(end - start - 1) if end - start > 1 else np.float32(0)
    index = np.arange(heard.steep.size)

    def terms(k: npt.NDArray[np.intp], keep: npt.NDArray[np.bool_], y: int) -> tuple[Floats, Floats]:
        """The first term and the quotient of class k[cell] in every column; 0 where it is not kept."""
        a, b, c, d = (one[np.minimum(k, one.shape[0] - 1), index] for one in heard.corners)
        ends = [(wy0[y] * a + wy1[y] * c, wy0[y] * b + wy1[y] * d), ((c - a) * step, (d - b) * step)]
        found = [power(wx0 * left[cell] + wx1 * right[cell]) for left, right in ends]
        kept = (keep & ~heard.steep)[cell]
        return np.where(kept, found[0], np.float32(0)), np.where(kept, found[1], np.float32(0))

    for y in range(start, last, RUN):
        stop = min(y + RUN, end)
        if stop <= first:
            continue
        total = np.zeros((stop - y, cell.size), np.float32)
        best = np.zeros_like(total)
        for candidates, begin, behind in ((False, 0 * index, heard.rest), (True, heard.rest, heard.count)):
            for k in range(0, (behind - begin).max(), 4):
                four = [terms(begin + k + j, begin + k + j < behind, y) for j in range(4)]
                e, q = (np.stack(part) for part in zip(*four, strict=True))
                for row, most in zip(total, best, strict=True):
                    np.add(row, ((e[0] + e[1]) + e[2]) + e[3], out=row)
                    if candidates:
                        np.maximum(most, e.max(axis=0), out=most)
                    e *= q
        own = slice(max(y, first), min(stop, last))
        found = (best / total)[own.start - y : own.stop - y]
        rough = np.flatnonzero(heard.steep[cell])
        if rough.size:
            found[:, rough] = _confidence_by_pixels(plan, heard, cell[rough], rough, own)
        arrays.out[own][found < np.float32(plan.unknown_below)] = IGNORE
        if arrays.confidence is not None:
            arrays.confidence[own] = found


def _confidence_by_pixels(
    plan: Plan, heard: _Heard, cell: npt.NDArray[np.intp], columns: npt.NDArray[np.intp], rows: slice
) -> Floats:
    """Confidence of some columns by one power a pixel and class, relative to the pixel's best candidate."""
    a, b, c, d = heard.corners
    wx0, wx1 = plan.cols.lower[columns], plan.cols.upper[columns]
    wy0, wy1 = plan.rows.lower[rows, None], plan.rows.upper[rows, None]
    rest, count = heard.rest[cell], heard.count[cell]

    def exponent(k: int) -> Floats:
        left, right = wy0 * a[k] + wy1 * c[k], wy0 * b[k] + wy1 * d[k]
        return np.asarray(wx0 * left[:, cell] + wx1 * right[:, cell], dtype=np.float32)

    best = np.full((rows.stop - rows.start, columns.size), -np.inf, np.float32)
    for k in range(rest.min(), count.max()):
        np.maximum(best, exponent(k), out=best, where=(k >= rest) & (k < count))
    total = np.zeros_like(best)
    for k in range(count.max()):
        x = exponent(k) - best
        total += np.where((x >= np.float32(plan.cut)) & (k < count), power(x), np.float32(0))
    return np.asarray(np.float32(1) / total, dtype=np.float32)


def numpy_band(plan: Plan, arrays: Arrays) -> Band:
    """The band writer of the numpy path."""
    logits, out = _bounded(arrays.logits), arrays.out
    classes, n_rows, n_cols = logits.shape
    threshold = np.float32(plan.threshold)
    best_class = logits.argmax(axis=0) if classes > 1 else (logits[0] > threshold).astype(np.intp)
    left = plan.cols.index
    right = np.minimum(left + 1, n_cols - 1)
    cell = np.repeat(np.arange(left.size), np.diff(plan.cols.start))  # of each output column
    # sigmoid(s) is the softmax of 0 and s
    heard = np.concatenate([np.zeros_like(logits), logits]) if plan.scored and classes == 1 else logits

    def label(upper: int, first: int, last: int) -> None:
        lower = min(upper + 1, n_rows - 1)
        winners = [best_class[upper, left], best_class[upper, right], best_class[lower, left], best_class[lower, right]]
        uniform = np.logical_and.reduce([winners[0] == other for other in winners[1:]])
        out[first:last] = plan.labels[winners[0]][cell]
        cells = np.flatnonzero(~uniform)
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
                chosen = (score(0, wy0, wy1) > threshold).astype(np.intp)
            else:
                for k in np.flatnonzero(alive.any(axis=1)).tolist():
                    s = np.where(alive[k][of_cell], score(k, wy0, wy1), np.float32(-np.inf))
                    chosen[s > best] = k
                    np.maximum(best, s, out=best)
            out[band, columns] = plan.labels[chosen]

    def write(first: int, last: int) -> Counts | None:
        for start, end, upper in zip(plan.rows.start, plan.rows.start[1:], plan.rows.index.tolist(), strict=False):
            top, bottom = max(int(start), first), min(int(end), last)
            if top >= bottom:
                continue
            label(upper, top, bottom)
            if plan.scored:
                lower = min(upper + 1, n_rows - 1)
                corners = [heard[:, y, x] for y in (upper, lower) for x in (left, right)]
                with np.errstate(all="ignore"):  # powers out of range: dropped
                    _confidence(plan, arrays, corners, cell, (int(start), int(end), top, bottom))
        return np.bincount(out[first:last].ravel(), minlength=256).astype(np.int64) if plan.counted else None

    return write
