"""Decoding more or fewer classes than the network has: realistic logits of them, and what they cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from edgeseg.benchmarks.extras import Decoding
from edgeseg.decode import Wants, decode, usable_cpus
from edgeseg.types import Size

_OPENCV_CHANNELS = 128
"""OpenCV 5 resizes no more at once: more classes are resized plane by plane."""
_OPENCV_FLOATS = 400_000_000
"""Above, cv2.resize + argmax is left out: the enlarged scores would take more than 1.6 GB."""
_SEEN = 0.1
"""Of the classes added, the share that is in the picture: of 150 classes photos show ten or twenty."""
_THREADED_PIXELS = 4_000_000
"""A Segmenter's own rule for plain class maps."""

Floats = npt.NDArray[np.float32]
Tell = Callable[[str], None]


def widened(logits: Sequence[Floats], classes: int, seed: int = 0) -> list[Floats]:
    """Frames of (C, h, w) logits as (classes, h, w); more are the frames' own planes as losers, fewer the largest."""
    count = logits[0].shape[0]
    if classes <= count:
        groups = np.array_split(np.arange(count), classes)
        return [np.stack([one[group].max(axis=0) for group in groups]) for one in logits]
    rng, found = np.random.default_rng(seed), []
    planes = np.concatenate(logits)
    spread = planes.std(axis=(1, 2), keepdims=True)
    fields = (planes - planes.mean(axis=(1, 2), keepdims=True)) / np.maximum(spread, 1e-6)
    for one in logits:
        losers = np.sort(one, axis=0)[:-1]
        level, width = losers.mean(axis=0), losers.std(axis=0)
        more = [field[:, ::-1] for field in fields[rng.integers(0, len(fields), classes - count)]]
        seen = rng.random(len(more)) < _SEEN
        more = [field if there else np.minimum(field, 0) for field, there in zip(more, seen, strict=True)]
        found.append(np.concatenate([one, level + width * np.stack(more)]).astype(np.float32))
    return found


def contested(logits: Floats) -> float:
    """Share of the cells between four neighbouring (C,) vectors of (C, h, w) whose largest entries differ."""
    best = logits.argmax(axis=0)
    first = best[:-1, :-1]
    return float(np.mean((first != best[1:, :-1]) | (first != best[:-1, 1:]) | (first != best[1:, 1:])))


def decodings(
    logits: Sequence[Floats], classes: Sequence[int], sizes: Sequence[Size], rounds: int, tell: Tell
) -> tuple[Decoding, ...]:
    """Decode frames of (C, h, w) logits, widened to every number of classes, to every size."""
    rows = []
    for count in classes:
        frames = widened(logits, count)
        for size in sizes:
            tell(f"{count} classes to {size[0]}x{size[1]}")
            rows.append(_decoding(frames, size, rounds))
    return tuple(rows)


def _decoding(frames: Sequence[Floats], size: Size, rounds: int) -> Decoding:
    """With as many threads as a Segmenter takes."""
    classes, cores = frames[0].shape[0], min(4, usable_cpus())
    threads = cores if size[0] * size[1] >= _THREADED_PIXELS else 1
    last = [np.ascontiguousarray(one.transpose(1, 2, 0)) for one in frames]
    large = np.empty((classes, *size) if classes > _OPENCV_CHANNELS else 0, np.float32)

    def opencv(at: int) -> None:
        if not len(large):
            cv2.resize(last[at], size[::-1], interpolation=cv2.INTER_LINEAR).argmax(axis=2)
            return
        for plane, into in zip(frames[at], large, strict=True):
            cv2.resize(plane, size[::-1], dst=into, interpolation=cv2.INTER_LINEAR)
        large.argmax(axis=0)

    def plain(at: int) -> None:
        decode(frames[at], size, threads=threads)

    def confidence(at: int) -> None:
        decode(frames[at], size, wants=Wants(confidence=True), threads=cores)

    runs = {"plain": plain, "confidence": confidence}
    if classes * size[0] * size[1] <= _OPENCV_FLOATS:
        runs["opencv"] = opencv
    taken: dict[str, list[int]] = {name: [] for name in runs}
    for turn in range(-1, rounds):
        for name, run in runs.items():
            if name != "plain" and turn >= max(2, rounds // 4):
                continue  # slow, and steady
            begin = time.perf_counter_ns()
            run(turn % len(frames))
            if turn >= 0:
                taken[name].append(time.perf_counter_ns() - begin)
    medians = {name: statistics.median(times) / 1e6 for name, times in taken.items()}
    share = float(np.mean([contested(one) for one in frames]))
    return Decoding(classes, size, share, medians["plain"], medians["confidence"], medians.get("opencv"))
