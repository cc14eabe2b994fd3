"""Tensors on a GPU by their protocols, on the fake libcudart, whose GPU has the host's memory: numpy is the oracle."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseg.backends.cudart import Cuda
from edgeseg.backends.device_tensors import DeviceTensor, device_pointer
from edgeseg.errors import InputError

PIXELS = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
CUDA_DEVICE, CUDA_HOST, ROCM, MANAGED = 2, 3, 10, 13
_content = ctypes.pythonapi.PyCapsule_GetPointer
_content.argtypes, _content.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p


class Interface:
    """A tensor by `__cuda_array_interface__`, over an array."""

    def __init__(self, array: np.ndarray, **more: object) -> None:
        found = array.__array_interface__
        self.array = array
        self.__cuda_array_interface__ = {
            **{name: found[name] for name in ("shape", "typestr", "data")}, "strides": None, "version": 3, **more
        }  # fmt: skip


class Capsule:
    """A tensor by DLPack: `source`'s own capsules, said to lie on another device."""

    def __init__(self, source: Any, device: tuple[int, int] = (CUDA_DEVICE, 0), versioned: bool = False) -> None:
        self.source, self.device, self.versioned = source, device, versioned
        self.streams: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int, **more: Any) -> object:
        if more and not self.versioned:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        self.streams.append(stream)
        return self.source.__dlpack__(**more)


@pytest.fixture
def cuda(fake_cudart: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    monkeypatch.setenv("FAKE_CUDART_DEVICES", "2")
    yield Cuda.load()
    gc.collect()
    assert ctypes.CDLL(str(fake_cudart)).fakeLive() == 0


@pytest.fixture
def stream(cuda: Cuda) -> Iterator[int]:
    made = cuda.stream()
    yield made
    cuda.destroy_stream(made)


def seen(found: DeviceTensor | None) -> np.ndarray:
    """What a GPU would read there."""
    assert found is not None
    dtype = np.dtype(found.dtype)
    raw = (ctypes.c_uint8 * (int(np.prod(found.shape)) * dtype.itemsize)).from_address(found.pointer)
    return np.frombuffer(raw, dtype).reshape(found.shape)


def versions() -> list[bool]:
    try:
        PIXELS.__dlpack__(max_version=(1, 0))
    except TypeError:  # numpy before 2.1
        return [False]
    return [False, True]


@pytest.mark.parametrize("dtype", ["u1", "i4", "f2", "f4", "f8"])
@pytest.mark.parametrize("versioned", versions())
def test_both_capsules_of_dlpack_give_what_numpy_put_in(versioned: bool, dtype: str, cuda: Cuda, stream: int) -> None:
    array = PIXELS.astype(dtype)[1:]
    for kind in (CUDA_DEVICE, MANAGED):
        tensor = Capsule(array, (kind, 0), versioned)
        found = device_pointer(tensor, stream, cuda)
        np.testing.assert_array_equal(seen(found), array, strict=True)
        assert found is not None
        assert (found.device, tensor.streams) == (0, [stream])


@pytest.mark.parametrize("versioned", versions())
def test_a_capsule_lives_as_long_as_the_record(versioned: bool, cuda: Cuda, stream: int) -> None:
    array = PIXELS.copy()
    alive = weakref.ref(array)
    found = device_pointer(Capsule(array, versioned=versioned), stream, cuda)
    del array
    gc.collect()
    np.testing.assert_array_equal(seen(found), PIXELS)
    del found
    gc.collect()
    assert alive() is None


def test_offsets_and_absent_strides_of_dlpack(cuda: Cuda, stream: int) -> None:
    """DLTensor's last two fields, at 32 and 40 bytes, which numpy always fills in one way."""
    capsule: Any = PIXELS[:1].__dlpack__()
    address = _content(capsule, b"dltensor")
    assert address is not None
    ctypes.c_void_p.from_address(address + 32).value = None
    ctypes.c_uint64.from_address(address + 40).value = 12
    source = type("Source", (), {"__dlpack__": lambda self: capsule})()
    np.testing.assert_array_equal(seen(device_pointer(Capsule(source), 0, cuda)), PIXELS[1:])
    tensor = Capsule(PIXELS)
    device_pointer(tensor, 0, cuda)
    assert tensor.streams == [1]  # DLPack's number for the default stream


@pytest.mark.parametrize("strides", [None, (12, 4, 1)])
@pytest.mark.parametrize("version", [2, 3])
def test_the_cuda_array_interface(version: int, strides: object, cuda: Cuda, stream: int) -> None:
    for array in (PIXELS, PIXELS.astype("<f4")):
        scaled = strides if strides is None else tuple(np.multiply(strides, array.itemsize))  # type: ignore[arg-type]
        found = device_pointer(Interface(array, version=version, strides=scaled), stream, cuda)
        np.testing.assert_array_equal(seen(found), array, strict=True)
        assert found is not None
        assert found.device is None  # not memory of CUDA's
    ones = Interface(PIXELS[:1, :1], strides=(99, -7, 1))  # any stride will do where there is nothing to step to
    np.testing.assert_array_equal(seen(device_pointer(ones, stream, cuda)), PIXELS[:1, :1])
    empty = device_pointer(Interface(PIXELS[:0], data=(0, False), strides=(5, 5, 5)), stream, cuda)
    assert empty is not None
    assert (empty.pointer, empty.shape) == (0, (0, 3, 4))


@pytest.mark.parametrize(("version", "producer"), [(3, None), (3, 1), (3, 2), (3, "own"), (2, "absent")])
def test_our_stream_waits_for_the_producers(version: int, producer: object, cuda: Cuda, stream: int) -> None:
    late, found = PIXELS.copy(), np.zeros_like(PIXELS)
    device = cuda.device_memory(24)
    own = cuda.stream()
    handle = {"own": own, "absent": 1, None: own}.get(producer, producer)  # type: ignore[call-overload]
    cuda.copy(device.pointer, late.ctypes.data, 24, handle)
    named = {} if producer == "absent" else {"stream": own if producer == "own" else producer}
    given = Interface(PIXELS, data=(device.pointer, False), version=version, **named)
    tensor = device_pointer(given, stream, cuda)
    assert tensor is not None
    assert tensor.device == 0
    cuda.copy(found.ctypes.data, tensor.pointer, 24, stream)
    cuda.synchronize(stream)
    assert np.array_equal(found, PIXELS) == (producer is not None)  # None: nothing to wait for, says the producer
    cuda.destroy_stream(own)
    device.close()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Interface(PIXELS, strides=(1, 2, 6)), r"is not C-contiguous \(shape \(2, 3, 4\), strides \(1, 2, 6\)\): make"),
        (Interface(PIXELS, stream=0), "names stream 0, which __cuda_array_interface__ forbids"),
        (Interface(PIXELS, mask=PIXELS), "is masked"),
        (Interface(PIXELS, typestr=">f4"), "has dtype '>f4': give uint8"),
        (Interface(PIXELS, typestr="|O8"), r"has dtype '\|O8'"),
        (Interface(PIXELS, typestr="bf16"), "has a damaged __cuda_array_interface__"),
        (Interface(PIXELS, data=None), r"has a damaged __cuda_array_interface__ \(TypeError"),
        (Capsule(PIXELS.swapaxes(0, 1)), r"is not C-contiguous \(shape \(3, 2, 4\), strides \(4, 12, 1\)\)"),
        (Capsule(PIXELS > 3), r"has a dtype unknown here \(DLPack's 6, 8 bits\): give uint8"),
        (Capsule(PIXELS, (CUDA_DEVICE, 1)), "is on CUDA device 1, the network on 0: move one to the other"),
        (Capsule(PIXELS, (ROCM, 0)), r"is on a device that is not CUDA's \(DLPack's type 10\): move it to the CPU"),
        (Capsule(PIXELS.astype(">f4")), "cannot be exported by DLPack: "),
        (Capsule(type("Source", (), {"__dlpack__": lambda self: 7})()), "gives DLPack a capsule that is no tensor"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tensor: object, message: str, cuda: Cuda, stream: int) -> None:
    with pytest.raises(InputError, match=rf"^a GPU tensor \(\w+\.\w+\) {message}[^\n]*$"):
        device_pointer(tensor, stream, cuda)


def test_memory_of_another_device_is_refused(cuda: Cuda, stream: int) -> None:
    cuda.use(1)
    device = cuda.device_memory(24)
    cuda.use(0)
    with pytest.raises(InputError, match="is on CUDA device 1, the network on 0"):
        device_pointer(Interface(PIXELS, data=(device.pointer, False)), stream, cuda)
    device.close()


def test_an_unknown_dlpack_is_refused(cuda: Cuda, stream: int) -> None:
    if True not in versions():
        pytest.skip("numpy before 2.1 makes no versioned capsules")
    capsule: Any = PIXELS.__dlpack__(max_version=(1, 0))
    address = _content(capsule, b"dltensor_versioned")
    assert address is not None
    ctypes.c_uint32.from_address(address).value = 2
    source = type("Source", (), {"__dlpack__": lambda self, max_version: capsule})()
    with pytest.raises(InputError, match=r"comes as DLPack 2\.0, known is 1$"):
        device_pointer(Capsule(source, versioned=True), stream, cuda)


def test_what_lies_on_the_host_is_none(cuda: Cuda, stream: int) -> None:
    for host in (PIXELS, [1, 2], Capsule(PIXELS, (1, 0)), Capsule(PIXELS, (CUDA_HOST, 0))):
        assert device_pointer(host, stream, cuda) is None


def test_tensors_of_torch(cuda: Cuda, stream: int) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(PIXELS.copy())
    assert device_pointer(tensor, stream, cuda) is None
    for versioned in (False, True):
        np.testing.assert_array_equal(seen(device_pointer(Capsule(tensor, versioned=versioned), stream, cuda)), PIXELS)
    with pytest.raises(InputError, match="is not C-contiguous"):
        device_pointer(Capsule(tensor[:, ::2]), stream, cuda)
    with pytest.raises(InputError, match=r"has a dtype unknown here \(DLPack's 4, 16 bits\)"):
        device_pointer(Capsule(tensor.bfloat16()), stream, cuda)
    with pytest.raises(InputError, match=r"cannot be exported by DLPack: .*require"):
        device_pointer(Capsule(tensor.float().requires_grad_()), stream, cuda)
