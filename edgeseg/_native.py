"""Finds, checks and calls the compiled kernel; ctypes drops the interpreter's lock for the length of each call."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg._decode_numpy import Arrays, Axis, Band, Counts, Plan

_ABI = 2  # `ABI` in _decode.c; the size of the record is checked with it


class _Job(ctypes.Structure):
    """`Job` in _decode.c, field by field."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("y_start", ctypes.c_void_p),
        ("y_index", ctypes.c_void_p),
        ("wy0", ctypes.c_void_p),
        ("wy1", ctypes.c_void_p),
        ("x_start", ctypes.c_void_p),
        ("x_index", ctypes.c_void_p),
        ("wx0", ctypes.c_void_p),
        ("wx1", ctypes.c_void_p),
        ("labels", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("confidence", ctypes.c_void_p),
        ("classes", ctypes.c_int32),
        ("in_rows", ctypes.c_int32),
        ("in_cols", ctypes.c_int32),
        ("out_rows", ctypes.c_int32),
        ("out_cols", ctypes.c_int32),
        ("x_cells", ctypes.c_int32),
        ("y_cells", ctypes.c_int32),
        ("scored", ctypes.c_int32),
        ("threshold", ctypes.c_float),
        ("cut", ctypes.c_float),
        ("unknown_below", ctypes.c_float),
    )


_Rows = Callable[[Any, int, int, int, int | None], None]


def load(folder: Path) -> tuple[_Rows | None, str]:
    """The kernel in `folder`, or None; and where it lies, or why it cannot serve."""
    built = [folder / f"_decode{suffix}" for suffix in EXTENSION_SUFFIXES]
    found = [path for path in built if path.is_file()]
    if not found:
        return None, f"no compiled kernel in {folder}: it was installed without a C compiler"
    try:
        library = ctypes.CDLL(str(found[0]))
        version = library.edgeseg_decode_abi
        rows = library.edgeseg_decode_rows
    except (OSError, AttributeError) as error:
        return None, f"{found[0]} cannot be loaded ({error}): reinstall edgeseg"
    version.argtypes, version.restype = [], ctypes.c_int32
    wanted, got = _ABI << 16 | ctypes.sizeof(_Job), version()
    if got != wanted:
        return None, f"{found[0]} is of another build (interface {got:#x}, not {wanted:#x}): reinstall edgeseg"
    pointer = ctypes.c_void_p
    rows.argtypes, rows.restype = [ctypes.POINTER(_Job), ctypes.c_int32, ctypes.c_int32, pointer, pointer], None
    return rows, str(found[0])


@functools.lru_cache(maxsize=1)
def kernel() -> tuple[_Rows | None, str]:
    """The package's own kernel, looked for once per process."""
    return load(Path(__file__).parent)


def compiled_band(rows: _Rows, plan: Plan, arrays: Arrays) -> Band:
    """The band writer of the compiled path; it keeps `plan` and `arrays`, which the kernel reads and writes, alive."""
    job = _Job.from_buffer_copy(_template(plan, arrays.logits.shape))
    job.logits, job.out = arrays.logits.ctypes.data, arrays.out.ctypes.data
    job.confidence = None if arrays.confidence is None else arrays.confidence.ctypes.data
    reference = ctypes.byref(job)

    def write(first: int, last: int) -> Counts | None:
        scratch = np.empty(2 * arrays.logits.shape[2], np.uint8)
        counts = np.zeros(256, np.int64) if plan.counted else None
        rows(reference, first, last, scratch.ctypes.data, None if counts is None else counts.ctypes.data)
        return counts

    return write


def _pointers(axis: Axis) -> tuple[int, int, int, int]:
    return axis.start.ctypes.data, axis.index.ctypes.data, axis.lower.ctypes.data, axis.upper.ctypes.data


@functools.lru_cache(maxsize=32)
def _template(plan: Plan, shape: tuple[int, int, int]) -> _Job:
    """The record without the arrays of one decode. Right behind a network each pointer asked of numpy costs 3 us."""
    classes, in_rows, in_cols = shape
    return _Job(
        None,
        *_pointers(plan.rows),
        *_pointers(plan.cols),
        plan.labels.ctypes.data,
        None,
        None,
        classes,
        in_rows,
        in_cols,
        int(plan.rows.start[-1]),
        int(plan.cols.start[-1]),
        plan.cols.index.size,
        plan.rows.index.size,
        plan.scored,
        plan.threshold,
        plan.cut,
        plan.unknown_below,
    )
