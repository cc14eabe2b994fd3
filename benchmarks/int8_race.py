"""Networks against each other in one runtime: raw sessions on prepared batches, taking turns frame by frame."""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeseg import registry
from edgeseg.backends.base import Options, SessionInfo
from edgeseg.backends.execution import Execution
from edgeseg.benchmarks.raw import Raw, open_raw
from edgeseg.errors import InputError
from edgeseg.types import Batch, Image, Model

WARMUP = 10


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median and quartiles of the ratios of two contenders' times, round by round."""

    median: float
    quartiles: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.quartiles[0]:.2f}, {self.quartiles[1]:.2f})"


@dataclass(frozen=True, slots=True)
class Race:
    """Nanoseconds by contender and round, and the share of logits' argmaxes that are the first contender's."""

    elapsed: Mapping[str, Sequence[int]]
    agreement: Mapping[str, float]

    def ms(self, name: str) -> float:
        """Median time in milliseconds."""
        return round(statistics.median(self.elapsed[name]) / 1e6, 3)

    def ratio(self, name: str, to: str) -> Ratio:
        """How many times as long one takes as another."""
        ratios = np.array(self.elapsed[name]) / np.array(self.elapsed[to])
        low, middle, high = (round(float(value), 4) for value in np.quantile(ratios, (0.25, 0.5, 0.75)))
        return Ratio(middle, (low, high))


def race(backend: str, contenders: Mapping[str, Model], frames: Sequence[Image], rounds: int) -> Race:
    """Run every contender once a round, on the frames one after the other.

    The order is drawn anew each round: whoever always ran behind the largest network would always find cold caches.
    """
    batches = [frame[None].copy() for frame in frames]
    sessions = {name: _open(backend, model, batches[0]) for name, model in contenders.items()}
    elapsed: dict[str, list[int]] = {name: [] for name in contenders}
    rng, order = random.Random(0), list(sessions)
    for turn in range(-WARMUP, rounds):
        rng.shuffle(order)
        for name in order:
            session = sessions[name]
            session.feed(batches[turn % len(batches)])
            begin = time.perf_counter_ns()
            session()
            end = time.perf_counter_ns()
            if turn >= 0:
                elapsed[name].append(end - begin)
    masks = {name: [_mask(session, batch) for batch in batches] for name, session in sessions.items()}
    first = masks[next(iter(contenders))]
    return Race(elapsed, {name: round(float(np.mean(np.equal(found, first))), 6) for name, found in masks.items()})


def executed(backend: str, model: Model) -> Execution:
    """What the runtime really executes of a contender."""
    with registry.get(backend).open(model, "cpu", Options(model.precision), None) as session:
        return Execution(session.layers())


def contender(path: Path, like: Model) -> Model:
    """A quantized graph beside the bundle's own; nothing is cached of it, so it has no digest."""
    return dataclasses.replace(like, path=path, digest="", precision="int8", encoding="cpu")


def _open(backend: str, model: Model, batch: Batch) -> Raw:
    like = SessionInfo(backend, "", "cpu", "", model.precision, 0)
    if (found := open_raw(model.path, like, batch)) is None:
        raise InputError(f"backend is {backend!r}: choose openvino or ort")
    return found


def _mask(session: Raw, batch: Batch) -> Image:
    session.feed(batch)
    session()
    return np.asarray(session.logits()[0].argmax(axis=0), np.uint8)
