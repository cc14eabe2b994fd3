"""What samples say and how surely: percentiles, intervals by resampling blocks, drift, the smallest difference told."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

P99_SAMPLES = 100
"""A 99th percentile of fewer samples is their largest."""
LIMIT = 0.03
"""The difference that a run should be able to tell."""
BLOCKS = 10
_BLOCK_ROUNDS = 3
_FEWEST_BLOCKS = 4
_DRAWS = 1000
_LONG = 1.5
_MANY = 0.05
_STUDENT = {3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""The 97.5 % quantile of Student's t by degrees of freedom."""

Samples = Sequence[int] | Sequence[float] | npt.NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Summary:
    """Of samples in nanoseconds, in milliseconds; `p99` and `jitter` (p99 - p50) are None below 100 samples.

    Percentiles are samples themselves: the smallest that so many per cent do not exceed. `interval` is the 95 % one of
    the median. `per_second` is one stream's throughput, which the mean decides.
    """

    count: int
    p50: float
    interval: Interval
    p90: float
    p99: float | None
    largest: float
    jitter: float | None
    per_second: float


@dataclass(frozen=True, slots=True)
class Spread:
    """How steady a run was: `claim` is the smallest difference it can tell, `drift` its trend from end to end, shares.

    `reasons` say what makes either more than `LIMIT`.
    """

    claim: float
    drift: float
    reasons: tuple[str, ...]


def summarise(samples: Samples, claim: float = 0.0) -> Summary:
    """The figures for a table; raises ValueError without samples.

    With the run's `Spread.claim`, `interval` is no narrower than one run's share of it: blocks of one configuration
    alone may lie close together by chance, and the next run's elsewhere. It is never beyond the samples.
    """
    values = np.asarray(samples, np.float64) / 1e6
    if not len(values):
        raise ValueError("no samples")
    p90, p99 = (float(value) for value in np.quantile(values, (0.9, 0.99), method="inverted_cdf"))
    p50, enough = float(np.median(values)), len(values) >= P99_SAMPLES
    (low, high), alone = median_interval(values), claim / np.sqrt(2)
    return Summary(
        count=len(values),
        p50=p50,
        interval=(
            max(float(values.min()), min(low, p50 * (1 - alone))),
            min(float(values.max()), max(high, p50 * (1 + alone))),
        ),
        p90=p90,
        p99=p99 if enough else None,
        largest=float(values.max()),
        jitter=p99 - p50 if enough else None,
        per_second=1e3 / float(values.mean()),
    )


def median_interval(samples: Samples, seed: int = 0) -> Interval:
    """The 95 % interval of the median: blocks of consecutive samples are drawn anew, as neighbours resemble each other.

    With too few samples for blocks, the smallest and the largest.
    """
    values = np.asarray(samples, np.float64)
    blocks = _blocks(values)
    if len(blocks) < _FEWEST_BLOCKS:
        return float(values.min()), float(values.max())
    length = min(map(len, blocks))
    table = np.stack([block[:length] for block in blocks])
    drawn = np.random.default_rng(seed).integers(0, len(table), (_DRAWS, len(table)))
    medians = np.median(table[drawn].reshape(_DRAWS, -1), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(low), float(high)


def ratio(over: Samples, under: Samples) -> tuple[float, Interval]:
    """The median of the ratios round by round, which drift does not touch, and its 95 % interval."""
    ratios = np.asarray(over, np.float64) / np.asarray(under, np.float64)
    return float(np.median(ratios)), median_interval(ratios)


def spread(configurations: Sequence[Samples]) -> Spread:
    """Judge a run by every configuration's samples, one a round each.

    The run is split in ten blocks of rounds. `claim` is the half-width of the 95 % interval of the difference between
    two such runs' block medians, of the configuration where it is largest, or the drift if that is more: what drifts
    in a run does so between runs too. `drift` is Theil and Sen's slope through the blocks' medians of all
    configurations together, over the whole run.
    """
    values = [np.asarray(samples, np.float64) for samples in configurations]
    rounds = min(map(len, values), default=0)
    if rounds < _FEWEST_BLOCKS * _BLOCK_ROUNDS:
        return Spread(1.0, 0.0, (f"{rounds} rounds are too few to tell any difference",))
    levels = np.stack([samples[:rounds] / np.median(samples[:rounds]) for samples in values])
    medians = np.stack([np.median(block, axis=1) for block in _blocks(levels)], axis=1)
    count = medians.shape[1]
    errors = medians.std(axis=1, ddof=1) / np.sqrt(count)
    claim = float(errors.max() * np.sqrt(2) * _STUDENT[count - 1])
    common = np.median(medians, axis=0)
    slopes = [(common[j] - common[i]) / (j - i) for i, j in itertools.combinations(range(count), 2)]
    drift = float(np.median(slopes)) * (count - 1)
    claim = max(claim, abs(drift))
    long = float((levels > _LONG).mean())
    reasons = []
    if claim > LIMIT:
        reasons.append(f"medians scatter: differences below {claim:.1%} cannot be told")
    if abs(drift) > LIMIT:
        reasons.append(f"times drifted by {drift:+.1%} from begin to end")
    if long > _MANY:
        reasons.append(f"{long:.0%} of the frames took more than {_LONG:g} times as long as usual")
    return Spread(claim, drift, tuple(reasons))


def _blocks(values: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
    """Consecutive samples (the last axis) in up to ten parts of three or more."""
    count = values.shape[-1]
    return np.array_split(values, max(1, min(BLOCKS, count // _BLOCK_ROUNDS)), axis=-1)
