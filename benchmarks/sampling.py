"""Taking turns: every configuration once a round, in a new order each, after a warm-up until times are steady."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeseg.benchmarks.raw import Run
from edgeseg.benchmarks.results import FixedRate, Latency
from edgeseg.benchmarks.watch import Moment, moment
from edgeseg.segmenter import Segmenter
from edgeseg.types import Image

_STEADY_ROUNDS = 3
_STEADY = 0.1
_WARMUP_SHARE = 0.25
_PAUSE_S = 0.002
"""OpenVINO's idle threads spin for 1 ms after each run (ONNX Runtime's, as edgeseg sets it, not at all)."""
_MOMENT_S = 0.5

METHOD = (
    "All configurations in one process, once a round each, in an order drawn anew each round. A turn is one inference "
    "that is not counted, so that the caches hold this network as in a camera loop; then in random order one whole "
    "frame and one raw inference of the same graph, each after 2 ms of rest, in which every runtime's threads stop "
    "spinning. Warm-up until each configuration's median of 3 rounds is within 10 % of that of the 3 rounds before, "
    "but at most a quarter of the time."
)


@dataclass(frozen=True, slots=True)
class Contender:
    """What takes turns; `raw` is the runtime's own inference of the same graph, where there is one."""

    segmenter: Segmenter
    raw: Run | None = None


@dataclass(frozen=True, slots=True)
class Goal:
    """How long: at least so many `seconds`, and `rounds`, after the warm-up."""

    seconds: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """A latency per contender, in their order; the machine's `moments` meanwhile; whether the warm-up got `steady`."""

    latencies: tuple[Latency, ...]
    moments: tuple[Moment, ...]
    steady: bool


@dataclass(slots=True)
class _Log:
    frame: list[int] = field(default_factory=list)
    preprocess: list[int] = field(default_factory=list)
    network: list[int] = field(default_factory=list)
    decode: list[int] = field(default_factory=list)
    raw: list[int] = field(default_factory=list)

    def latency(self, starts: Sequence[int], warmup: int) -> Latency:
        stages = tuple(self.preprocess), tuple(self.network), tuple(self.decode)
        return Latency(tuple(self.frame), *stages, tuple(self.raw), tuple(starts), warmup)


def sample(
    contenders: Sequence[Contender],
    frames: Sequence[Image],
    goal: Goal,
    *,
    seed: int = 0,
    tell: Callable[[str], object] = lambda step: None,
    root: Path = Path("/"),
) -> Sampled:
    """Run rounds until the goal; errors of a contender pass through. `root` holds the /proc and /sys to watch."""
    rng, turns = random.Random(seed), [*range(len(contenders))]

    def run_round(number: int, logs: Sequence[_Log]) -> None:
        frame = frames[number % len(frames)]
        rng.shuffle(turns)
        for turn in turns:
            _turn(contenders[turn], frame, logs[turn], raw_first=rng.random() < 0.5)

    warmup, logs = 0, [_Log() for _ in contenders]
    begin = time.perf_counter()
    while not (steady := _steady([log.frame for log in logs])):
        if warmup >= 2 * _STEADY_ROUNDS and time.perf_counter() - begin > _WARMUP_SHARE * goal.seconds:
            break
        tell(f"warming up, round {warmup + 1}")
        run_round(warmup, logs)
        warmup += 1
    logs, starts = [_Log() for _ in contenders], list[int]()
    moments, begin_ns = [moment(root)], time.perf_counter_ns()
    while len(starts) < goal.rounds or time.perf_counter_ns() - begin_ns < 1e9 * goal.seconds:
        starts.append(time.perf_counter_ns() - begin_ns)
        tell(f"round {len(starts)} of {goal.rounds} or more, {starts[-1] / 1e9:.0f} of {goal.seconds:.0f} s or more")
        run_round(len(starts) - 1, logs)
        if time.monotonic() - moments[-1].wall_s > _MOMENT_S:
            moments.append(moment(root))
    moments.append(moment(root))
    return Sampled(tuple(log.latency(starts, warmup) for log in logs), tuple(moments), steady)


def fixed_rate(segmenter: Segmenter, frames: Sequence[Image], hz: float, seconds: float) -> FixedRate:
    """A camera gives a frame every 1 / `hz` seconds; of those that are there the newest is segmented, or one waits.

    A result's age counts from when its frame came. Frames that come after `seconds` are nobody's, but a segmenter that
    is free only then would take them, and has missed those before. One frame that is not counted comes first.
    """
    period, count = 1e9 / hz, max(1, round(seconds * hz))
    segmenter(frames[0])
    begin, ages, index = time.perf_counter_ns(), list[int](), 0
    while index < count:
        came = begin + round(index * period)
        while (wait := came - time.perf_counter_ns()) > 0:
            time.sleep(wait / 1e9)
        segmenter(frames[index % len(frames)])
        ages.append(time.perf_counter_ns() - came)
        index = max(index + 1, int((time.perf_counter_ns() - begin) / period))
    return FixedRate(hz, tuple(ages), count, count - len(ages))


def _turn(contender: Contender, frame: Image, log: _Log, raw_first: bool) -> None:
    segmenter, raw = contender.segmenter, contender.raw
    if raw is None:
        segmenter(frame)
    else:
        raw()
        if raw_first:
            log.raw.append(_timed(raw))
    time.sleep(_PAUSE_S)
    begin = time.perf_counter_ns()
    times = segmenter(frame).times
    log.frame.append(time.perf_counter_ns() - begin)
    log.preprocess.append(times.preprocess_ns)
    log.network.append(times.network_ns)
    log.decode.append(times.decode_ns)
    if raw is not None and not raw_first:
        log.raw.append(_timed(raw))


def _timed(run: Run) -> int:
    time.sleep(_PAUSE_S)
    begin = time.perf_counter_ns()
    run()
    return time.perf_counter_ns() - begin


def _steady(samples: Sequence[Sequence[int]]) -> bool:
    """Whether every contender's last rounds took as long as those before."""
    if min(map(len, samples)) < 2 * _STEADY_ROUNDS:
        return False
    recent = (statistics.median(times[-_STEADY_ROUNDS:]) for times in samples)
    before = (statistics.median(times[-2 * _STEADY_ROUNDS : -_STEADY_ROUNDS]) for times in samples)
    return all(abs(new - old) <= _STEADY * old for new, old in zip(recent, before, strict=True))
