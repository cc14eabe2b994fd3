"""From observed samples to the range that 256 levels cover: four rules, and the table that a bundle keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeseg._records import RecordError, from_json, to_json
from edgeseg.calibration.observe import Observation, Seen
from edgeseg.errors import BundleError

FORMAT = 1
Samples = npt.NDArray[np.float32]
METHODS = ("minmax", "percentile-99.99", "percentile-99.9", "mse", "entropy")
"""Rules on offer, in the order in which the guard tries them."""
_CLIPS = np.geomspace(1.0, 1e-3, 41)
"""Shares of the extremes among which the least squared error is looked for: down to a thousandth, for outliers."""
_BINS = 2048


@dataclass(frozen=True, slots=True)
class Range:
    """What a tensor's levels cover: `low` <= 0 <= `high` for unsigned levels, ±`limit` for signed symmetric ones."""

    low: float
    high: float
    limit: float


@dataclass(frozen=True, slots=True)
class Ranges:
    """The table: for each method and tensor of one float graph its range, and which images it was observed on.

    `images` and `guard_images` are the SHA-256 of the files, so that a later measurement can refuse to use them again.
    """

    graph: str
    methods: dict[str, dict[str, Range]]
    images: tuple[str, ...] = ()
    guard_images: tuple[str, ...] = ()
    format: int = FORMAT


def tabulate(graph: str, observation: Observation, images: tuple[str, ...]) -> Ranges:
    """Apply every method to what was observed; numbers are rounded to the seven digits that a table shows."""
    seen = observation.seen
    methods = {method: {name: _short(_RULES[method](one)) for name, one in seen.items()} for method in METHODS}
    return Ranges(graph, methods, images)


def dumps(ranges: Ranges) -> bytes:
    """The table as JSON, the same bytes for the same content."""
    return (json.dumps(to_json(ranges), sort_keys=True, indent=0, ensure_ascii=False) + "\n").encode()


def loads(data: bytes, where: str) -> Ranges:
    """Read a table; raises BundleError naming what is wrong with it."""
    try:
        ranges = from_json(Ranges, json.loads(data), "ranges")
    except (RecordError, ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not a table of ranges ({error}): calibrate again") from error
    if ranges.format != FORMAT:
        raise BundleError(f"{where} has format {ranges.format}, this edgeseg reads {FORMAT}: calibrate again")
    for method, table in ranges.methods.items():
        for name, found in table.items():
            if not found.low <= 0 <= found.high or found.limit < 0:
                raise BundleError(f"{where} gives {name!r} by {method} an impossible range, {found}: calibrate again")
    return ranges


def _short(found: Range) -> Range:
    return Range(*(float(f"{value:.7g}") for value in (found.low, found.high, found.limit)))


def _around_zero(low: float, high: float) -> Range:
    return Range(min(low, 0.0), max(high, 0.0), max(abs(low), abs(high)))


def _minmax(seen: Seen) -> Range:
    return _around_zero(seen.low, seen.high)


def _percentile(share: float) -> Callable[[Seen], Range]:
    """Cut off the outermost values on either side (Wu et al., "Integer quantization for deep learning inference",
    2020, section 5.2, which uses the distribution of magnitudes: so does `limit`).
    """

    def rule(seen: Seen) -> Range:
        # values that were seen: between the few and the many there may be nothing
        low = float(np.percentile(seen.samples, 100 - share, method="lower"))
        high = float(np.percentile(seen.samples, share, method="higher"))
        limit = float(np.percentile(np.abs(seen.samples), share, method="higher"))
        if not (limit > 0 and (low < 0 or high > 0)):  # all but a few are zero: those few are what there is
            return _minmax(seen)
        return Range(min(low, 0.0), max(high, 0.0), limit)

    return rule


def _mse(seen: Seen) -> Range:
    """The clipping with the least mean squared error of rounding and clipping together (Sung, Shin and Hwang,
    "Resiliency of deep neural networks under quantization", 2015, section 3), searched on each side in turn.
    """
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    values = seen.samples[:: max(1, len(seen.samples) >> 15)]
    best_high = min(_CLIPS, key=lambda clip: _squared_error(values, low, high * clip)) if high else 1.0
    best_low = min(_CLIPS, key=lambda clip: _squared_error(values, low * clip, high * best_high)) if low else 1.0
    limit = max(-low, high)
    best = min(_CLIPS, key=lambda clip: _squared_error(values, -limit * clip * 128 / 127, limit * clip))
    return Range(float(low * best_low), float(high * best_high), float(limit * best))


def _squared_error(values: Samples, low: float, high: float) -> float:
    step = (high - low) / 255
    if step <= 0:
        return float(np.mean(np.square(values)))
    zero = np.rint(-low / step)
    levels = np.clip(np.rint(values / step), -zero, 255 - zero)
    return float(np.mean(np.square(levels * step - values)))


def _entropy(seen: Seen) -> Range:
    """The clipping that keeps most of the distribution's information (Migacz, "8-bit inference with TensorRT", 2017):
    least Kullback-Leibler divergence between the histogram, clipped, and its 128 levels.
    """
    magnitudes = np.abs(seen.samples)
    if not magnitudes.any():
        return _minmax(seen)
    limit = max(float(magnitudes.max()), max(-seen.low, seen.high) * 1e-3)
    histogram = np.histogram(magnitudes[magnitudes > 0], _BINS, (0, limit))[0].astype(np.float64)
    kept = min(range(128, _BINS + 1, 16), key=lambda bins: _divergence(histogram, bins))
    clipped = limit * kept / _BINS
    return Range(max(min(seen.low, 0.0), -clipped), min(max(seen.high, 0.0), clipped), clipped)


def _divergence(histogram: npt.NDArray[np.float64], bins: int) -> float:
    reference = histogram[:bins].copy()
    reference[-1] += histogram[bins:].sum()
    level = np.arange(bins) * 128 // bins
    filled = histogram[:bins] > 0
    mass, members = np.bincount(level, histogram[:bins], 128), np.bincount(level, filled, 128)
    quantized = np.where(filled, (mass / np.maximum(members, 1))[level], 0.0)
    p, q = reference / max(reference.sum(), 1e-12), quantized / max(quantized.sum(), 1e-12)
    return float(np.sum(p[p > 0] * np.log(p[p > 0] / np.maximum(q[p > 0], 1e-12))))


_RULES: dict[str, Callable[[Seen], Range]] = {
    "minmax": _minmax,
    "percentile-99.99": _percentile(99.99),
    "percentile-99.9": _percentile(99.9),
    "mse": _mse,
    "entropy": _entropy,
}
