"""From a raw frame to the exact mask at the frame's own size."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from edgeseg.backends.base import Kept, Session, SessionInfo
from edgeseg.backends.execution import Execution
from edgeseg.decode import Decoded, Grid, Wants, decode, usable_cpus
from edgeseg.errors import BackendError, InputError
from edgeseg.labels import Labels
from edgeseg.manifest import ClassInfo, Manifest, Variant
from edgeseg.pipeline import pipelined
from edgeseg.preprocess import Preprocessor, check_gpu_frame, on_gpu
from edgeseg.result import Segmentation
from edgeseg.types import Batch, Color, Image, Logits, Size, StageTimes

if TYPE_CHECKING:
    from edgeseg.tiling import Rows, RowsOut, Track

_REMEMBERED = 512
_THREADED_PIXELS = 4_000_000
"""From this mask size on a plain class map pays for waking other threads (0.1 ms); confidence does much earlier."""
_DECODE_THREADS = min(4, usable_cpus())


@dataclass(frozen=True, slots=True)
class Timings:
    """Medians over the last `frames` frames (at most 512), in nanoseconds, per stage and in total."""

    frames: int
    preprocess_ns: int
    network_ns: int
    decode_ns: int
    total_ns: int


class Segmenter:
    """One network on one device, frame in, mask out. Make one with `edgeseg.load`.

    Safe to call from several threads: preprocessing and decoding run side by side, the network one frame at a time.
    `choice` says in a sentence what was loaded and why.
    """

    def __init__(self, session: Session, manifest: Manifest, variant: Variant, labels: Labels, choice: str) -> None:
        self._session: Session | None = session
        self._manifest = manifest
        self._labels = labels
        self._probabilities = manifest.values == "probabilities"
        self._local = threading.local()
        self._network = threading.Lock()
        self._history: deque[StageTimes] = deque(maxlen=_REMEMBERED)
        self.variant = variant
        self.choice = choice
        self.info: SessionInfo = session.describe()

    def __call__(
        self,
        frame: Image,
        *,
        color: Color = "rgb",
        confidence: bool = False,
        counts: bool = False,
        unknown_below: float | None = None,
        threshold: float = 0.5,
    ) -> Segmentation:
        """Segment one uint8 (H, W, 3) frame of any size.

        On TensorRT it may also be a tensor of torch, cupy or others on that GPU, RGB at the network's own input size.
        `confidence` and `counts` ask for the per-pixel largest softmax value and the pixels per class;
        `unknown_below` turns pixels less confident than that into 255; `threshold` is where a one-channel network's
        sigmoid becomes foreground. Raises InputError for a frame or option that cannot be used, BackendError where
        the runtime fails.
        """
        return self._segment(frame, color, self._wants(confidence, counts, unknown_below, threshold))

    def map(
        self,
        frames: Iterable[Image],
        *,
        color: Color = "rgb",
        confidence: bool = False,
        counts: bool = False,
        unknown_below: float | None = None,
        threshold: float = 0.5,
        ahead: int | None = None,
    ) -> Iterator[Segmentation]:
        """Segment frames in order, each result given out as soon as it is done; options as for one frame.

        `frames` is read in a thread of its own, at most `ahead` frames beyond the result being given out. None: 2 where
        the network runs on another device, so that preprocess and decode overlap it; 1 on the CPU, where two frames at
        once contend for the same cores. An error, in a frame or in reading `frames`, is raised in its turn.
        """
        if ahead is None:
            ahead = 1 if self.info.device == "cpu" else 2
        if not isinstance(ahead, int) or ahead < 1:
            raise InputError(f"ahead is {ahead!r}: give a whole number, 1 or more")

        def segment(frame: Image) -> Segmentation:
            return self(
                frame,
                color=color,
                confidence=confidence,
                counts=counts,
                unknown_below=unknown_below,
                threshold=threshold,
            )

        return pipelined(segment, frames, ahead)

    def batch(
        self,
        frames: Sequence[Image],
        *,
        color: Color = "rgb",
        confidence: bool = False,
        counts: bool = False,
        unknown_below: float | None = None,
        threshold: float = 0.5,
    ) -> list[Segmentation]:
        """Segment several frames (sizes may differ), in one run where the graph takes any batch size.

        A graph made for batch 1, which is the default, runs once per frame. In one run, every result's network time is
        the run's, and its total the whole batch's.
        """
        wants = self._wants(confidence, counts, unknown_below, threshold)
        if self.variant.batch is not None or not frames:
            return [self._segment(frame, color, wants) for frame in frames]
        begin = time.perf_counter_ns()
        preprocessor = self._preprocessor()
        prepared = [preprocessor.prepare(frame, color).copy() for frame in frames]
        stacked = np.concatenate(prepared)
        with self._network:
            network_begin = time.perf_counter_ns()
            logits = self._open_session().run(stacked)
            network_end = time.perf_counter_ns()
        decoded = [self._decode(one, frame, preprocessor, wants) for one, frame in zip(logits, frames, strict=True)]
        end = time.perf_counter_ns()
        each = len(frames)
        times = StageTimes(
            (network_begin - begin) // each, network_end - network_begin, (end - network_end) // each, end - begin
        )
        self._history.extend([times] * each)
        return [self._result(one, times, color) for one in decoded]

    def tiled(
        self,
        image: Rows,
        *,
        overlap: int | None = None,
        scale: float = 1.0,
        color: Color = "rgb",
        confidence: bool = False,
        counts: bool = False,
        unknown_below: float | None = None,
        threshold: float = 0.5,
        out: RowsOut | None = None,
        track: Track = iter,
    ) -> Segmentation:
        """Segment an image of any size at its own resolution, in tiles of the network's input size; see `tiling`.

        `image` is a numpy array, or whatever gives its rows as `image[top:bottom]` (memmap, zarr, h5py); `out`, where
        given, takes the class map's rows likewise and becomes the result's. Neighbouring tiles lie over each other by
        `overlap` pixels or more (None: half a tile), and their logits are blended there. `scale` resizes the
        image for the network, to the nearest that makes a cell of the logits whole pixels. `track` shows progress
        (`track=tqdm`). Other options as for one frame. Raises InputError and BackendError.
        """
        from edgeseg.tiling import Network, segment_tiles

        decoded, times = segment_tiles(
            Network(self._manifest, self.variant, self._run),
            image,
            out,
            color=color,
            overlap=overlap,
            scale=scale,
            wants=self._wants(confidence, counts, unknown_below, threshold),
            threads=_DECODE_THREADS,
            track=track,
        )
        return self._result(decoded, times, color)

    def __repr__(self) -> str:
        height, width = self.input_size
        return f"<Segmenter {self._manifest.name}: {self.choice}, {height}x{width}, {len(self.classes)} classes>"

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """What the class map's indices stand for, after `classes=` of `load`."""
        return self._labels.classes

    @property
    def input_size(self) -> Size:
        """The network's input (height, width); frames of any size are resized to it."""
        return self._manifest.preprocess.input_size

    @property
    def kept(self) -> Kept | None:
        """What of the cache runs, and whether it was found there or compiled at load; None where nothing is kept."""
        return self._open_session().kept

    @property
    def output_stride(self) -> int:
        """The output stride that runs."""
        return self.variant.output_stride

    @property
    def timings(self) -> Timings:
        """Median time per stage over the frames so far."""
        past = list(self._history)
        stages = ("preprocess_ns", "network_ns", "decode_ns", "total_ns")
        medians = [int(np.median([getattr(times, stage) for times in past])) if past else 0 for stage in stages]
        return Timings(len(past), *medians)

    def execution(self) -> Execution:
        """What the runtime really executes, layer by layer: arithmetic, multiply-accumulates, time, conversions.

        Takes seconds, as the network is compiled and profiled once more (`info` costs nothing), and frames wait
        meanwhile. No layers where the runtime does not say. Raises BackendError where it fails.
        """
        with self._network:
            return Execution(self._open_session().layers())

    def close(self) -> None:
        """Release the session; a later call raises BackendError."""
        with self._network:
            if self._session is not None:
                self._session.close()
            self._session = None

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wants(self, confidence: bool, counts: bool, unknown_below: float | None, threshold: float) -> Wants:
        return Wants(confidence, counts, unknown_below, threshold, self._labels.lut, self._probabilities)

    def _segment(self, frame: Image, color: Color, wants: Wants) -> Segmentation:
        begin = time.perf_counter_ns()
        preprocessor = self._preprocessor()
        batch = self._on_gpu(frame, color) if on_gpu(frame) else preprocessor.prepare(frame, color)
        prepared = time.perf_counter_ns()
        with self._network:
            network_begin = time.perf_counter_ns()
            logits = self._open_session().run(batch)
            network_ns = time.perf_counter_ns() - network_begin
        inferred = time.perf_counter_ns()
        decoded = self._decode(logits[0], frame, preprocessor, wants)
        end = time.perf_counter_ns()
        times = StageTimes(prepared - begin, network_ns, end - inferred, end - begin)
        self._history.append(times)
        return self._result(decoded, times, color)

    def _run(self, batch: Batch) -> Logits:
        with self._network:
            return self._open_session().run(batch)

    def _on_gpu(self, frame: Image, color: Color) -> Batch:
        if not self._open_session().reads_gpu:
            raise InputError(
                f"frame lies on a GPU, and backend {self.info.backend} on {self.info.device} reads the host's "
                "memory: give a numpy array"
            )
        check_gpu_frame(frame, self.input_size, color)
        return frame

    def _open_session(self) -> Session:
        if self._session is None:
            raise BackendError("this Segmenter is closed: load it again")
        return self._session

    def _preprocessor(self) -> Preprocessor:
        """This thread's own: it holds a buffer."""
        found: Preprocessor | None = getattr(self._local, "preprocessor", None)
        if found is None:
            found = self._local.preprocessor = Preprocessor(self._manifest.preprocess)
        return found

    def _decode(self, logits: Logits, frame: Image, preprocessor: Preprocessor, wants: Wants) -> Decoded:
        size = (frame.shape[0], frame.shape[1])
        grid = Grid(self._manifest.align_corners, preprocessor.region(size))
        costly = wants.confidence or wants.unknown_below is not None
        threads = _DECODE_THREADS if costly or size[0] * size[1] >= _THREADED_PIXELS else 1
        return decode(logits, size, grid=grid, wants=wants, threads=threads)

    def _result(self, decoded: Decoded, times: StageTimes, color: Color) -> Segmentation:
        counts = None if decoded.counts is None else self._labels.named(decoded.counts)
        return Segmentation(decoded.class_map, self._labels.classes, times, decoded.confidence, counts, color)
