"""Tensors that lie on a GPU, by the protocols that torch, cupy and numba share; none of them is imported."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeseg.backends.cudart import Cuda
from edgeseg.errors import InputError

_CPU, _CUDA, _CUDA_HOST, _CUDA_MANAGED = 1, 2, 3, 13  # DLDeviceType
_DTYPES = {(code, 8 * size): f"{kind}{size}" for code, kind in enumerate("iuf") for size in (1, 2, 4, 8)}
del _DTYPES[2, 8]  # DLDataTypeCode and bits to numpy's; bfloat16 and floats of 8 bits have none
_DEFAULT_STREAM = 1  # the legacy default stream by its number: 0 may mean either default stream


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),  # in elements; null: C-contiguous
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    """DLManagedTensorVersioned; the unversioned one begins with the tensor itself."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    )


_has_name = ctypes.pythonapi.PyCapsule_IsValid
_has_name.argtypes, _has_name.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_int
_content = ctypes.pythonapi.PyCapsule_GetPointer
_content.argtypes, _content.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p


@dataclass(frozen=True, slots=True)
class DeviceTensor:
    """A C-contiguous tensor on a GPU; `dtype` is numpy's ("|u1"), `device` its index where that is known.

    It is valid as long as this record lives, and for work in the stream it was asked for.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    device: int | None
    owner: object = field(repr=False)


def device_pointer(tensor: object, stream: int, cuda: Cuda) -> DeviceTensor | None:
    """Where a tensor of another library lies on the GPU that this thread uses; None if it lies on the host.

    It has DLPack (`__dlpack__`) or `__cuda_array_interface__`. Work enqueued in `stream` from now on waits, on the GPU,
    for what its producer has enqueued so far. Raises InputError, in one line, for a tensor that is not C-contiguous,
    lies on another device, has a dtype that numpy has not, or breaks its protocol.
    """
    if isinstance(tensor, np.ndarray):
        return None
    # DLPack first: of torch's two only this one knows its stream.
    if hasattr(tensor, "__dlpack__") and hasattr(tensor, "__dlpack_device__"):
        return _by_dlpack(tensor, stream, cuda)
    try:
        interface = getattr(tensor, "__cuda_array_interface__", None)
    except Exception as error:
        raise _refused(tensor, f"does not give its address: {_first_line(error)}") from error
    return None if interface is None else _by_interface(tensor, interface, stream, cuda)


def _by_dlpack(tensor: Any, stream: int, cuda: Cuda) -> DeviceTensor | None:
    kind, index = map(int, tensor.__dlpack_device__())
    if kind in (_CPU, _CUDA_HOST):
        return None
    if kind not in (_CUDA, _CUDA_MANAGED):
        raise _refused(tensor, f"is on a device that is not CUDA's (DLPack's type {kind}): move it to the CPU")
    if kind == _CUDA:
        _check_device(tensor, index, cuda)
    try:
        try:
            capsule = tensor.__dlpack__(stream=stream or _DEFAULT_STREAM, max_version=(1, 0))
        except TypeError:  # a producer from before DLPack 1.0
            capsule = tensor.__dlpack__(stream=stream or _DEFAULT_STREAM)
    except Exception as error:
        raise _refused(tensor, f"cannot be exported by DLPack: {_first_line(error)}") from error
    if _has_name(capsule, b"dltensor_versioned"):
        versioned = _Versioned.from_address(_content(capsule, b"dltensor_versioned"))
        if versioned.major != 1:  # from the next major version on the fields may be others
            raise _refused(tensor, f"comes as DLPack {versioned.major}.{versioned.minor}, known is 1")
        found = versioned.tensor
    elif _has_name(capsule, b"dltensor"):
        found = _DLTensor.from_address(_content(capsule, b"dltensor"))
    else:
        raise _refused(tensor, "gives DLPack a capsule that is no tensor or was used before")
    name = _DTYPES.get((found.code, found.bits))
    if name is None or found.lanes != 1:
        raise _refused(tensor, f"has a dtype unknown here (DLPack's {found.code}, {found.bits} bits): give uint8")
    dtype = np.dtype(name)
    shape = tuple(found.shape[: found.ndim])
    if found.strides:
        _check_contiguous(tensor, shape, found.strides[: found.ndim], 1)
    # The capsule is not marked as used: then it frees the tensor itself when it goes.
    return DeviceTensor((found.data or 0) + found.byte_offset, shape, dtype.str, index, capsule)


def _by_interface(tensor: object, interface: Any, stream: int, cuda: Cuda) -> DeviceTensor:
    try:
        shape, version = tuple(map(int, interface["shape"])), int(interface["version"])
        pointer, dtype = int(interface["data"][0] or 0), np.dtype(interface["typestr"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        problem = f"{type(error).__name__}: {_first_line(error)}"
        raise _refused(tensor, f"has a damaged __cuda_array_interface__ ({problem})") from error
    if interface.get("mask") is not None:
        raise _refused(tensor, "is masked: fill it in")
    if dtype.hasobject or dtype.kind not in "biufc" or not dtype.isnative:
        raise _refused(tensor, f"has dtype {interface['typestr']!r}: give uint8")
    if interface.get("strides") is not None:
        _check_contiguous(tensor, shape, interface["strides"], dtype.itemsize)
    device = cuda.device_of(pointer) if pointer else None
    if device is not None:
        _check_device(tensor, device, cuda)
    # Before version 3 nothing tells the stream; the default one is where such work usually is.
    producer = interface.get("stream") if version >= 3 else _DEFAULT_STREAM
    if producer == 0:
        raise _refused(tensor, "names stream 0, which __cuda_array_interface__ forbids: 1 is the default stream")
    if producer is not None and producer != stream:
        _follow(cuda, stream, int(producer))
    return DeviceTensor(pointer, shape, dtype.str, device, (tensor, interface))


def _follow(cuda: Cuda, stream: int, producer: int) -> None:
    """Let `stream` wait for what is enqueued in `producer` by now."""
    event = cuda.event()
    try:
        cuda.record(event, producer)
        cuda.wait(stream, event)
    finally:
        cuda.destroy_event(event)


def _check_device(tensor: object, index: int, cuda: Cuda) -> None:
    if index != cuda.current():
        raise _refused(tensor, f"is on CUDA device {index}, the network on {cuda.current()}: move one to the other")


def _check_contiguous(tensor: object, shape: tuple[int, ...], strides: Sequence[int], step: int) -> None:
    """`strides` and `step`, the last dimension's, in one unit; dimensions of one element may have any stride."""
    if 0 in shape:
        return
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            raise _refused(tensor, f"is not C-contiguous (shape {shape}, strides {tuple(strides)}): make it contiguous")
        step *= size


def _refused(tensor: object, why: str) -> InputError:
    kind = type(tensor)
    return InputError(f"a GPU tensor ({kind.__module__.split('.')[0]}.{kind.__qualname__}) {why}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
