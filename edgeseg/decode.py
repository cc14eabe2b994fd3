"""Logits to a class map at the frame's own size, exactly: argmax over classes of the bilinearly upsampled logits.

The definition, in real arithmetic: `argmax_c bilinear(logits, (H, W))` with PyTorch's `F.interpolate` geometry (no
antialiasing), the first class on exact ties. NaN counts as -1e38 and values are clamped to +-1e38, so NaN never wins
against a number above that. The compiled kernel and the numpy path give the same bits, on any number of threads.
"""

from __future__ import annotations

import contextlib
import functools
import math
import numbers
import operator
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgeseg import _native
from edgeseg._decode_numpy import Arrays, Axis, Band, Counts, Plan, axis, numpy_band
from edgeseg.errors import InputError
from edgeseg.types import IGNORE, ClassMap, Region, Size

_MAX_CLASSES = 255
_BAND_ROWS = 32  # a band worth handing to a thread has at least this many rows


@dataclass(frozen=True, slots=True)
class Grid:
    """How logits lie over the frame.

    `align_corners` as in `F.interpolate`. `region` is the part of the network's input that the frame fills
    (letterbox); None: all of it.
    """

    align_corners: bool = False
    region: Region | None = None


@dataclass(frozen=True, slots=True)
class Wants:
    """What to compute beside the class map, and how scores become labels.

    `confidence` is the largest softmax probability (one-channel: max(p, 1 - p)), to 1e-6 where neighbouring logits
    differ by up to 20 and to the rounding of the differences beyond; below `unknown_below` a pixel gets
    255. `threshold` is for one-channel heads: class 1 where sigmoid(logit) > threshold, else 0. `labels` maps class
    index to label written, one per class (two for one-channel heads); 255 leaves a class out. `probabilities` says that
    the values are upsampled as probabilities, not logits: `threshold` then applies to them as they are, and confidence
    cannot be asked for.
    """

    confidence: bool = False
    counts: bool = False
    unknown_below: float | None = None
    threshold: float = 0.5
    labels: tuple[int, ...] | None = None
    probabilities: bool = False


@dataclass(frozen=True, slots=True)
class Decoded:
    """`class_map` uint8 (H, W); `confidence` float32 (H, W); `counts` int64 (256,): pixels per label written."""

    class_map: ClassMap
    confidence: npt.NDArray[np.float32] | None
    counts: npt.NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class ActivePath:
    """Which implementation decodes in this process, and where it lies or why it is not the compiled one."""

    name: Literal["compiled", "numpy"]
    why: str


_GRID = Grid()
_WANTS = Wants()


def decode(
    logits: npt.NDArray[np.floating], size: Size, *, grid: Grid = _GRID, wants: Wants = _WANTS, threads: int = 1
) -> Decoded:
    """Decodes one frame's logits (C, h, w), C 1..255, any strides, to `size` (H, W).

    float32 is read as it is; float16 and float64 are converted. `threads` changes nothing but the time.
    Raises InputError for a shape, type or option that cannot be used.
    """
    rows, _ = _native.kernel()
    implementation = numpy_band if rows is None else functools.partial(_native.compiled_band, rows)
    return _decode_with(implementation, logits, size, grid=grid, wants=wants, threads=threads)


def class_map(
    logits: npt.NDArray[np.floating],
    size: Size,
    *,
    align_corners: bool = False,
    region: Region | None = None,
    threads: int = 1,
) -> ClassMap:
    """The class map alone, uint8 (H, W); see `decode`."""
    return decode(logits, size, grid=Grid(align_corners, region), threads=threads).class_map


def active_path() -> ActivePath:
    """What `decode` runs on here: for `doctor`."""
    rows, why = _native.kernel()
    return ActivePath("numpy" if rows is None else "compiled", why)


def _decode_with(
    implementation: Callable[[Plan, Arrays], Band],
    logits: npt.NDArray[np.floating],
    size: Size,
    *,
    grid: Grid,
    wants: Wants,
    threads: int,
) -> Decoded:
    values = _checked_logits(logits)
    size = _checked_size(size)
    threads = _checked_count(threads, "threads")
    plan = (_plan if _hashable((grid, wants)) else _plan.__wrapped__)(values.shape, size, grid, wants)
    arrays = Arrays(
        logits=values,
        out=np.empty(size, np.uint8),
        confidence=np.empty(size, np.float32) if wants.confidence else None,
    )
    counts = _run(implementation(plan, arrays), size[0], threads)
    return Decoded(arrays.out, arrays.confidence, counts)


@functools.lru_cache(maxsize=32)
def _plan(shape: tuple[int, int, int], size: Size, grid: Grid, wants: Wants) -> Plan:
    """Remembered: right behind a network, whose data is all that the caches hold, it would cost 0.1 ms a frame."""
    classes = shape[0]
    rows, cols = _axes(shape[1], shape[2], *size, grid)
    for name, flag in (("confidence", wants.confidence), ("counts", wants.counts)):
        if not isinstance(flag, bool | np.bool_):
            raise InputError(f"{name} is {flag!r}: give True or False")
    unknown = _checked_unknown(wants.unknown_below)
    logit = _threshold_logit(wants.threshold)
    if wants.probabilities and (wants.confidence or unknown > 0):
        raise InputError("this network gives probabilities, not logits: confidence and unknown_below need logits")
    return Plan(
        rows=rows,
        cols=cols,
        labels=_label_table(None if wants.labels is None else tuple(wants.labels), 2 if classes == 1 else classes),
        threshold=float(wants.threshold) if wants.probabilities else logit,
        # What all dropped terms of the softmax sum could add stays below exp(-16), about 1e-7; in powers of two.
        cut=-(16.0 + math.log(classes)) / math.log(2),
        unknown_below=unknown,
        scored=bool(wants.confidence) or unknown > 0,
        counted=bool(wants.counts),
    )


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _run(band: Band, height: int, threads: int) -> Counts | None:
    """All rows, in bands that idle threads take as they come: boundaries between classes are not spread evenly."""
    bands = 1 if threads == 1 else max(1, min(4 * threads, height // _BAND_ROWS))
    if bands == 1:
        return band(0, height)
    todo = deque((height * i // bands, height * (i + 1) // bands) for i in range(bands))

    def work() -> list[Counts | None]:
        done: list[Counts | None] = []
        while True:
            try:
                first, last = todo.popleft()
            except IndexError:
                return done
            done.append(band(first, last))

    helpers: list[Future[list[Counts | None]]] = []
    with contextlib.suppress(RuntimeError):  # the interpreter is exiting and starts no threads: this one does it all
        for _ in range(min(threads, bands) - 1):
            helpers.append(_pool().submit(work))
    parts = work()
    for helper in helpers:
        parts += helper.result()
    sums = [part for part in parts if part is not None]
    return np.sum(sums, axis=0, dtype=np.int64) if sums else None


def usable_cpus() -> int:
    """CPUs that this process may run on: its affinity where the system tells it (containers, taskset)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=usable_cpus(), thread_name_prefix="edgeseg-decode")


if hasattr(os, "register_at_fork"):  # threads do not survive a fork: the child makes its own
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _axes(in_rows: int, in_cols: int, height: int, width: int, grid: Grid) -> tuple[Axis, Axis]:
    region = grid.region
    if region is None:
        return axis(in_rows, height, grid.align_corners, None), axis(in_cols, width, grid.align_corners, None)
    extents = (region.top, region.left, region.height, region.width)
    if not (all(map(math.isfinite, extents)) and min(region.height, region.width) > 0):
        raise InputError(f"region {region} has no area: give finite numbers, height and width above 0")
    if min(region.input_size) < 1:
        raise InputError(f"region.input_size {region.input_size} is empty: give the network input's (height, width)")
    vertical = (float(region.top), float(region.height), int(region.input_size[0]))
    horizontal = (float(region.left), float(region.width), int(region.input_size[1]))
    return axis(in_rows, height, grid.align_corners, vertical), axis(in_cols, width, grid.align_corners, horizontal)


def _checked_logits(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    if not isinstance(logits, np.ndarray):
        raise InputError(f"logits are a {type(logits).__name__}: pass a numpy array of shape (C, h, w)")
    if logits.dtype.kind != "f" or logits.dtype.itemsize not in (2, 4, 8):
        raise InputError(f"logits are {logits.dtype}: pass float32 (float16 and float64 are converted)")
    if logits.ndim != 3:
        hint = "pass one frame, logits[0]" if logits.ndim == 4 else "pass one frame's (C, h, w)"
        raise InputError(f"logits have shape {logits.shape}, not three dimensions: {hint}")
    classes, rows, cols = logits.shape
    if not 1 <= classes <= _MAX_CLASSES:
        raise InputError(f"logits have {classes} classes: a class map holds 1 to {_MAX_CLASSES} (255 is 'ignore')")
    if rows < 1 or cols < 1:
        raise InputError(f"logits of shape {logits.shape} are empty: h and w must be at least 1")
    if logits.dtype == np.float32:
        return np.ascontiguousarray(logits)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is clamped
        return np.ascontiguousarray(logits, dtype=np.float32)


def _checked_count(value: int, name: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if not 1 <= number < 2**31 - 64:
        raise InputError(f"{name} is {value!r}: give a whole number from 1")
    return number


def _checked_size(size: Size) -> Size:
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise InputError(f"size is {size!r}: give (height, width)")
    return _checked_count(size[0], "size's height"), _checked_count(size[1], "size's width")


def _checked_unknown(value: float | None) -> float:
    if value is None:
        return 0.0
    if not (isinstance(value, numbers.Real) and 0 <= value <= 1):
        raise InputError(f"unknown_below is {value!r}: a confidence lies in 0..1")
    return float(value)


def _threshold_logit(probability: float) -> float:
    if not (isinstance(probability, numbers.Real) and 0 < probability < 1):
        raise InputError(f"threshold is {probability!r}: a probability strictly between 0 and 1 decides")
    return float(np.float32(math.log(probability / (1 - probability))))


def _label_table(labels: tuple[int, ...] | None, classes: int) -> npt.NDArray[np.uint8]:
    if labels is None:
        labels = tuple(range(classes))
    if len(labels) != classes:
        raise InputError(f"labels has {len(labels)} entries for {classes} classes: give one label per class")
    wrong = [label for label in labels if not (hasattr(label, "__index__") and 0 <= label <= IGNORE)]
    if wrong:
        raise InputError(f"labels contains {wrong[0]!r}: a label is 0..254, or 255 for 'ignore'")
    table = np.full(256, IGNORE, np.uint8)
    table[:classes] = labels
    table.flags.writeable = False
    return table
