"""Which of the measured configurations is taken, and the three lines that say so."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgeseg.benchmarks.results import Accuracy, Configuration
from edgeseg.calibration.certificate import MAX_DROP
from edgeseg.errors import InputError
from edgeseg.types import Size

_CLOSE = 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """One configuration: nanoseconds per whole frame, round by round, and where it was measured its accuracy.

    `input_size` is the network's, where several compete.
    """

    configuration: Configuration
    frame_ns: tuple[int, ...]
    accuracy: Accuracy | None = None
    input_size: Size | None = None

    @property
    def p50_ns(self) -> int:
        """The median."""
        return int(np.median(self.frame_ns))

    @property
    def name(self) -> str:
        """For people."""
        return named(self.input_size, self.configuration)

    def __str__(self) -> str:
        miou = "" if self.accuracy is None else f", mIoU {self.accuracy.miou:.2f}"
        return f"{self.name} {self.p50_ns / 1e6:.2f} ms{miou}"


def named(input_size: Size | None, configuration: Configuration) -> str:
    """A configuration for people, with the network's input size where several compete."""
    return configuration.name + ("" if input_size is None else f" at {input_size[0]}x{input_size[1]}")


def choose(
    pool: list[Candidate], measured: int, max_latency_ms: float | None, min_miou: float | None
) -> tuple[Candidate, str]:
    """Of candidates that are fast enough, fastest first, all with accuracy or none; and why this one.

    `measured` is how many there were with those that are not. Raises InputError where none reaches `min_miou`.
    """
    fast = f"{measured} were measured"
    if max_latency_ms is not None:
        fast = f"{len(pool)} of {measured} stayed within {max_latency_ms:g} ms"
    if pool[0].accuracy is None:
        chosen = min(pool, key=_step)  # the first, that is the fastest, of equals
        if chosen.input_size is None:
            stride = chosen.configuration.output_stride
            return chosen, f"{fast}; {stride} is their finest output stride, this its fastest"
        rows, columns = (-(-side // chosen.configuration.output_stride) for side in chosen.input_size)
        return chosen, f"{fast}; {rows}x{columns} on the frame is their finest grid, this its fastest"
    best = max(pool, key=_miou)
    if min_miou is not None:
        right = [one for one in pool if _miou(one) >= min_miou]
        if not right:
            among = f"all {measured}" if max_latency_ms is None else f"the {len(pool)} within {max_latency_ms:g} ms"
            remedy = "ask for a lower mIoU" + " or allow a frame more time" * (len(pool) < measured)
            raise InputError(f"nothing reaches mIoU {min_miou:g} of {among}: the most accurate is {best}; {remedy}")
        if max_latency_ms is None:
            return right[0], f"{len(right)} of {measured} reached mIoU {min_miou:g}; this is the fastest of them"
        fast, pool = f"{fast}, {len(right)} of these reached mIoU {min_miou:g}", right
    chosen = next(one for one in pool if _miou(one) >= _miou(best) - MAX_DROP)
    return chosen, f"{fast}; their best mIoU is {_miou(best):.2f}, this the fastest within {MAX_DROP:g} points of it"


def explain(
    chosen: Candidate, final: Candidate, why: str, threads: str, found: list[Candidate]
) -> tuple[str, str, str]:
    """What was chosen (`final`: with its threads), why, and what of all measured was closest in time, fastest first."""
    others = [one for one in found if one != chosen]
    others.sort(key=lambda one: abs(math.log(one.p50_ns / chosen.p50_ns)))
    nearest = sorted(others[:_CLOSE], key=lambda one: one.p50_ns)
    close = "; ".join(map(str, nearest)) or "nothing else was measured"
    return f"chosen: {final}{threads}", f"why: {why}", f"close: {close}"


def _step(candidate: Candidate) -> float:
    """What an output stride covers of a frame: its area as a share of the input's, or in pixels if all are equal."""
    return candidate.configuration.output_stride**2 / math.prod(candidate.input_size or (1, 1))


def _miou(candidate: Candidate) -> float:
    return -math.inf if candidate.accuracy is None else candidate.accuracy.miou
