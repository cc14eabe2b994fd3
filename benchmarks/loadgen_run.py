"""One LoadGen test in a process of its own: python -m edgeseg.benchmarks.loadgen_run ASKED

LoadGen's state is its process's. An exception that leaves one of its callbacks ends in a segmentation fault, one in a
worker thread in waiting for ever, and Ctrl-C is a Python exception too: here each ends the process, in one line.
"""

from __future__ import annotations

import functools
import json
import os
import queue
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import mlperf_loadgen as loadgen
import numpy as np

from edgeseg._files import write_atomic
from edgeseg._records import to_json
from edgeseg.benchmarks.feed import frames_of
from edgeseg.benchmarks.loadgen_logs import FACTS, Facts, Scenario
from edgeseg.calibration.datasets import LayoutName, open_dataset
from edgeseg.errors import EdgesegError
from edgeseg.loading import load
from edgeseg.segmenter import Segmenter
from edgeseg.types import Image, Precision

STREAMS = 8
"""Samples of a MultiStream query, as MLPerf's rules have it."""
_IN_MEMORY = 64
"""Images that a test of speed draws from: LoadGen has them loaded before its clock runs."""
_WARMUP_S, _WARMUP_FRAMES = 1.0, 10


@dataclass(frozen=True, slots=True)
class Asked:
    """What one test is told, as JSON: what `load` and `open_dataset` take, LoadGen's settings, the logs' folder.

    `frame_size` is that of drawn scenes, where `data` is None. `target_qps` None is for `_settings` to choose.
    """

    folder: str
    scenario: Scenario
    accuracy: bool
    bundle: str
    backend: str
    device: str
    precision: Precision | Literal["auto"]
    output_stride: int | None
    threads: int
    frame_size: tuple[int, int]
    data: str | None
    labels: str | None
    layout: LayoutName
    split: str | None
    ignore: int | None
    min_seconds: float
    min_queries: int
    target_latency_ms: float
    target_qps: float | None


class _Sut:
    """Answers samples in the order they come; `own_ns` holds the Segmenter's own times, a list per query.

    In SingleStream at once, otherwise from a queue, so that the next query can be issued meanwhile. Frame by frame: on
    two cores neither one run of eight frames nor a second worker was faster. Elsewhere than on the CPU two workers
    overlap the network with what surrounds it, as `Segmenter.map` does.
    """

    def __init__(self, segmenter: Segmenter, read: Callable[[int], Image], at_once: bool) -> None:
        self.own_ns: list[list[int]] = []
        self._segmenter, self._read, self._at_once = segmenter, read, at_once
        self._frames: dict[int, Image] = {}
        self._waiting: queue.SimpleQueue[tuple[Any, list[int]] | None] = queue.SimpleQueue()
        count = 0 if at_once else 1 if segmenter.info.device == "cpu" else 2
        self._workers = [threading.Thread(target=_guarded(self._work), daemon=True) for _ in range(count)]
        for worker in self._workers:
            worker.start()

    def load(self, indices: Sequence[int]) -> None:
        self._frames.update((index, self._read(index)) for index in set(indices))

    def unload(self, indices: Sequence[int]) -> None:
        for index in set(indices):
            del self._frames[index]

    def issue(self, samples: Sequence[Any]) -> None:
        spent: list[int] = []
        self.own_ns.append(spent)
        for sample in samples:
            if self._at_once:
                self._answer(sample, spent)
            else:
                self._waiting.put((sample, spent))

    def close(self) -> None:
        for _ in self._workers:
            self._waiting.put(None)
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        while (one := self._waiting.get()) is not None:
            self._answer(*one)

    def _answer(self, sample: Any, spent: list[int]) -> None:
        found = self._segmenter(self._frames[sample.index])
        spent.append(found.times.total_ns)
        mask = np.ascontiguousarray(found.class_map)
        # in a test of speed too, as MLPerf's rules have it; LoadGen copies before it returns
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, mask.ctypes.data, mask.nbytes)])


def main(text: str) -> None:
    asked = Asked(**json.loads(text))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    segmenter = load(
        asked.bundle,
        backend=asked.backend,
        device=asked.device,
        precision=asked.precision,
        output_stride=asked.output_stride,
        threads=asked.threads,
    )
    read, count, source = _library(asked, segmenter)
    settings = _settings(asked, _warm_up(segmenter, read(0), min(asked.min_seconds, _WARMUP_S)))
    sut = _Sut(segmenter, read, at_once=asked.scenario == "SingleStream")
    log, output = loadgen.LogSettings(), loadgen.LogOutputSettings()
    output.outdir = asked.folder
    log.log_output, log.enable_trace = output, False
    system = loadgen.ConstructSUT(_guarded(sut.issue), lambda: None)
    library = loadgen.ConstructQSL(count, min(count, _IN_MEMORY), _guarded(sut.load), _guarded(sut.unload))
    # an audit.config that happens to lie in the working directory would change the settings
    loadgen.StartTestWithLogSettings(system, library, settings, log, str(Path(asked.folder, "audit.config")))
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(system)
    sut.close()
    segmenter.close()
    own_ns = tuple(map(sum, sut.own_ns))
    facts = Facts(segmenter.choice, segmenter.info.runtime, segmenter.info.device_name, source, own_ns)
    write_atomic(Path(asked.folder, FACTS), json.dumps(to_json(facts)).encode())


def _library(asked: Asked, segmenter: Segmenter) -> tuple[Callable[[int], Image], int, str]:
    """How a frame is read by its index, how many there are, and what they are in words."""
    if asked.data is None:
        height, width = asked.frame_size
        frames, about = frames_of(None, (height, width))
        return frames.__getitem__, len(frames), f"{about.source}, {height}x{width}"
    images = open_dataset(
        asked.data,
        asked.labels,
        classes=segmenter.classes,
        layout=asked.layout,
        split=asked.split,
        ignore=asked.ignore,
    )
    return images.frame, len(images), f"{len(images)} images"


def _warm_up(segmenter: Segmenter, frame: Image, seconds: float) -> list[int]:
    """Nanoseconds per frame, sorted: what LoadGen's expectations are set by."""
    times, end = list[int](), time.perf_counter() + seconds
    while len(times) < _WARMUP_FRAMES or time.perf_counter() < end:
        begin = time.perf_counter_ns()
        segmenter(frame)
        times.append(time.perf_counter_ns() - begin)
    return sorted(times)


def _settings(asked: Asked, warmup_ns: Sequence[int]) -> Any:
    """LoadGen's settings; it generates queries in advance, enough for frames as fast as the fastest of the warm-up.

    Without `target_qps` a Server is asked half of what one frame after the other reached.
    """
    fastest = warmup_ns[0]
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, asked.scenario)
    settings.mode = loadgen.TestMode.AccuracyOnly if asked.accuracy else loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = round(1000 * asked.min_seconds)
    settings.min_query_count = asked.min_queries
    settings.single_stream_expected_latency_ns = fastest
    settings.multi_stream_expected_latency_ns = STREAMS * fastest
    settings.multi_stream_samples_per_query = STREAMS
    settings.offline_expected_qps = 1e9 / fastest
    settings.server_target_qps = asked.target_qps or 0.5e9 / statistics.median(warmup_ns)
    settings.server_target_latency_ns = round(1e6 * asked.target_latency_ms)
    return settings


def _guarded(callback: Callable[..., None]) -> Callable[..., None]:
    """The same, and whatever leaves it ends the process."""

    @functools.wraps(callback)
    def guarded(*arguments: Any) -> None:
        try:
            callback(*arguments)
        except BaseException as error:
            _fail(error)

    return guarded


def _fail(error: BaseException) -> NoReturn:
    kind = "" if isinstance(error, EdgesegError) else f"{type(error).__name__}: "
    print(kind + " ".join(str(error).split()), file=sys.stderr, flush=True)
    os._exit(1)


def _end_with_parent() -> None:
    """The parent holds the other end of stdin as long as it lives."""
    os.read(0, 1)  # not sys.stdin, whose lock a reader would hold while the interpreter shuts down
    os._exit(1)


if __name__ == "__main__":
    _guarded(main)(sys.argv[1])
