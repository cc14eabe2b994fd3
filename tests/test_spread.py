"""Percentiles, intervals, and the verdict on a run, judged on synthetic samples whose truth is known."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pytest

from edgeseg.benchmarks.spread import LIMIT, median_interval, ratio, spread, summarise

MS = 1e6
Samples = npt.NDArray[np.float64]


def clean(seed: int, rounds: int = 60, noise: float = 0.02, level: float = 20 * MS) -> Samples:
    """As on a quiet machine: a few per cent, no trend, a long tail now and then."""
    rng = np.random.default_rng(seed)
    samples: Samples = level * np.exp(rng.normal(0, noise, rounds))
    samples[rng.random(rounds) < 0.02] *= 1.8
    return samples


def test_percentiles_are_samples_and_a_p99_needs_a_hundred() -> None:
    few = summarise([int(value * MS) for value in range(1, 100)])
    assert (few.count, few.p50, few.p90, few.largest) == (99, 50, 90, 99)
    assert few.p99 is None
    assert few.jitter is None
    many = summarise([int(value * MS) for value in range(200, 0, -1)])
    assert (many.p50, many.p99, many.jitter) == (100.5, 198, 97.5)
    assert many.per_second == pytest.approx(1000 / 100.5)
    wide = [int(50 * MS), *[int(100 * MS)] * 49, int(104 * MS)]
    assert summarise(wide, claim=0.1).interval == pytest.approx((92.929, 104), abs=1e-3)
    with pytest.raises(ValueError, match="no samples"):
        summarise([])


def test_the_interval_of_a_median_holds_it_nineteen_times_in_twenty() -> None:
    inside = 0
    for seed in range(200):
        low, high = median_interval(clean(seed))
        inside += low <= 20 * MS <= high
    assert 0.88 <= inside / 200 <= 0.99
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_ratios_do_not_see_drift_that_hits_both() -> None:
    trend = np.linspace(1, 1.5, 60)
    found, (low, high) = ratio(1.2 * clean(1) * trend, clean(2) * trend)
    assert low < 1.2 < high
    assert high - low < 0.05
    assert found == pytest.approx(1.2, abs=0.02)


def test_a_quiet_run_is_not_called_noisy() -> None:
    for seed in range(30):
        found = spread([clean(7 * seed + one, level=(one + 1) * MS) for one in range(6)])
        assert not found.reasons, found
        assert found.claim < LIMIT


@pytest.mark.parametrize(
    ("disturb", "told"),
    [
        (lambda rng: np.linspace(0.96, 1.04, 60), "drifted by [+][678]"),
        (lambda rng: np.linspace(1.05, 0.95, 60), "drifted by -"),
        (lambda rng: np.repeat(rng.permutation([1, 1, 1, 1, 1.3, 1, 1, 1.3, 1, 1.3]), 6), "medians scatter"),
        (lambda rng: np.where(rng.random(60) < 0.25, 2.0, 1.0), "more than 1.5 times as long"),
    ],
)
def test_drift_bursts_and_outliers_are_called_by_name(disturb, told) -> None:
    for seed in range(10):
        shape = disturb(np.random.default_rng(seed))
        found = spread([clean(7 * seed + one) * shape for one in range(4)])
        assert any(re.search(told, reason) for reason in found.reasons), found


def test_two_runs_differ_by_less_than_the_claim() -> None:
    held = 0
    for seed in range(100):
        one, other = clean(seed, noise=0.05), clean(1000 + seed, noise=0.05)
        difference = abs(np.median(one) / np.median(other) - 1)
        held += difference <= max(spread([one]).claim, spread([other]).claim)
    assert held >= 92


def test_a_few_rounds_tell_nothing() -> None:
    found = spread([clean(1, rounds=11)])
    assert found.claim == 1
    assert found.reasons == ("11 rounds are too few to tell any difference",)
