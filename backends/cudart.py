"""CUDA's runtime by ctypes: devices, memory, streams, events and graphs, without a dependency."""

from __future__ import annotations

import ctypes
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import byref, c_int, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeseg.backends.cudart_library import INSTALL, NO_DEVICE, NO_DRIVER_FOR_IT, candidates, no_device, open_library
from edgeseg.errors import BackendError, BackendMissing, DeviceError

_SM_COUNT, _INTEGRATED, _MAPS_HOST, _MAJOR, _MINOR = 16, 18, 19, 75, 76  # cudaDeviceAttr
_DEFAULT_KIND = 4  # cudaMemcpyDefault: the direction follows from the addresses
_NON_BLOCKING, _PORTABLE, _MAPPED, _THREAD_LOCAL = 1, 1, 2, 1


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """One GPU: `integrated` shares the host's memory; `maps_host` can read and write host memory in place."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    sm_count: int
    memory_bytes: int
    integrated: bool
    maps_host: bool


class _Block:
    """Memory of CUDA's, given back once: when asked to, or when neither its Memory nor a view refers to it."""

    def __init__(self, address: int, nbytes: int, free: Callable[[int], object]) -> None:
        self.__array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3}
        self.free = weakref.finalize(self, free, address)
        self.free.atexit = False  # the process's end frees it, and CUDA may be gone by then


class Memory:
    """`nbytes` at `pointer`, a device's address; `array` is the uint8 (nbytes,) view of memory on the host, else None.

    Views keep memory that nobody closed; they must not be used after `close`.
    """

    def __init__(self, block: _Block, pointer: int, nbytes: int, on_host: bool) -> None:
        self.pointer, self.nbytes = pointer, nbytes
        self.array: npt.NDArray[np.uint8] | None = np.asarray(block) if on_host else None
        self._block = block

    def close(self) -> None:
        """Give the memory back, after the work on it is done; twice is fine."""
        self.array, self.pointer = None, 0
        self._block.free()


class Graph:
    """Work recorded by `Cuda.capture`, to be enqueued again as a whole."""

    def __init__(self, cuda: Cuda, handle: int) -> None:
        self._cuda, self._handle = cuda, handle
        self._destroy = weakref.finalize(self, cuda._quietly, "cudaGraphExecDestroy", handle)
        self._destroy.atexit = False

    def launch(self, stream: int) -> None:
        """Enqueue what was recorded; it reads and writes at the addresses it was recorded with."""
        self._cuda._call("launch a graph", "cudaGraphLaunch", self._handle, stream)

    def close(self) -> None:
        """Release it; twice is fine."""
        self._destroy()
        self._handle = 0


class _TooNew(DeviceError):
    """A libcudart that the driver does not serve; it may serve an older one."""


class Cuda:
    """A loaded libcudart with a driver and at least one device. Every failed call raises BackendError in one line.

    Streams, events and addresses are plain integers. `use` is per thread; the rest may be called from any.
    """

    def __init__(self, path: str) -> None:
        """Open one libcudart. Raises OSError if it cannot be loaded, DeviceError if it finds no device to work on."""
        self.path = path
        self._library = open_library(path)
        self.driver_version = self._version("cudaDriverGetVersion")
        self.runtime_version = self._version("cudaRuntimeGetVersion")
        count = c_int()
        code = self._library.cudaGetDeviceCount(byref(count))
        self._library.cudaGetLastError()
        if code or not count.value:
            code = code or NO_DEVICE
            kind = _TooNew if code == NO_DRIVER_FOR_IT and self.driver_version > (0, 0) else DeviceError
            raise kind(no_device(code, self._text(code), path, self.driver_version, self.runtime_version))
        self._count = count.value

    @classmethod
    def load(cls, path: str | Path | None = None) -> Cuda:
        """Open `path`, else the file EDGESEG_CUDART names, else the first libcudart found that the driver serves.

        Raises BackendMissing where there is none, DeviceError where there is no driver, too old a one, or no device.
        """
        named = path or os.environ.get("EDGESEG_CUDART")
        if named:
            try:
                return cls(str(named))
            except OSError as error:
                reason = str(error).splitlines()[0]
                raise BackendMissing(f"cannot load CUDA's runtime library {named}: {reason}; {INSTALL}") from None
        refused: _TooNew | None = None
        for candidate in candidates():
            try:
                return cls(candidate)
            except OSError:
                continue
            except _TooNew as error:
                refused = refused or error
        if refused is not None:
            raise refused
        raise BackendMissing(f"CUDA's runtime library (libcudart) is not here: {INSTALL}")

    def devices(self) -> tuple[CudaDevice, ...]:
        """Every GPU, in CUDA's order. Nothing is initialised on them."""
        return tuple(map(self._describe, range(self._count)))

    def use(self, index: int) -> None:
        """Let this thread's next calls work on device `index`. Raises DeviceError if there is none of that number."""
        if not 0 <= index < self._count:
            raise DeviceError(f"CUDA has no device {index} here: it has 0..{self._count - 1}")
        self._call(f"use device {index}", "cudaSetDevice", index)

    def current(self) -> int:
        """The index of the device that this thread works on."""
        return self._get("tell the current device", "cudaGetDevice", kind=c_int)

    def device_of(self, pointer: int) -> int | None:
        """The index of the device whose memory `pointer` is in; None for memory that CUDA did not allocate there."""
        found = (c_int * 64)()  # cudaPointerAttributes: the type, the device, and 16 to 80 bytes more
        self._call(f"tell the device of address {pointer:#x}", "cudaPointerGetAttributes", found, pointer)
        return int(found[1]) if found[0] == 2 else None

    def device_memory(self, nbytes: int) -> Memory:
        """Memory on the current device, not cleared."""
        pointer = self._get(f"allocate {_size(nbytes)} on the device", "cudaMalloc", nbytes)
        return Memory(_Block(pointer, nbytes, self._freeing("cudaFree")), pointer, nbytes, on_host=False)

    def pinned_memory(self, nbytes: int) -> Memory:
        """Page-locked memory of the host: copies from and to it are fast and asynchronous. Not cleared."""
        return self._host_memory(nbytes, _PORTABLE)

    def mapped_memory(self, nbytes: int) -> Memory:
        """Page-locked memory of the host that the device reads and writes in place, at `pointer`. Not cleared."""
        return self._host_memory(nbytes, _PORTABLE | _MAPPED)

    def stream(self) -> int:
        """A new stream that does not wait for the default one."""
        return self._get("make a stream", "cudaStreamCreateWithFlags", _NON_BLOCKING)

    def destroy_stream(self, stream: int) -> None:
        """Release a stream, once its work is done. No release raises: it would hide the failure before it."""
        self._quietly("cudaStreamDestroy", stream)

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        """Enqueue a copy between any two addresses; both must stay valid until it is done."""
        self._call(f"copy {nbytes} bytes", "cudaMemcpyAsync", to, source, nbytes, _DEFAULT_KIND, stream)

    def synchronize(self, stream: int) -> None:
        """Wait for all work in a stream; here failures of that work show."""
        self._call("finish the work of a stream", "cudaStreamSynchronize", stream)

    def event(self) -> int:
        """A new event that takes the time when recorded."""
        return self._get("make an event", "cudaEventCreateWithFlags", 0)

    def record(self, event: int, stream: int) -> None:
        """Enqueue an event: it happens when all work enqueued before it is done."""
        self._call("record an event", "cudaEventRecord", event, stream)

    def wait(self, stream: int, event: int) -> None:
        """Let later work of `stream` wait for `event` as recorded last."""
        self._call("wait for an event", "cudaStreamWaitEvent", stream, event, 0)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two recorded events; waits for `end`."""
        self._call("wait for an event", "cudaEventSynchronize", end)
        taken = ctypes.c_float()
        self._call("tell the time between two events", "cudaEventElapsedTime", byref(taken), start, end)
        return taken.value

    def destroy_event(self, event: int) -> None:
        """Release an event, also while work waits for it."""
        self._quietly("cudaEventDestroy", event)

    @contextmanager
    def capture(self, stream: int) -> Iterator[list[Graph]]:
        """Record what the block enqueues in `stream` instead of running it; then the list holds the graph.

        Raises BackendError where the block did what cannot be recorded (allocating, synchronising). However it ends,
        the capture is over and the stream works as before.
        """
        self._call("capture a stream", "cudaStreamBeginCapture", stream, _THREAD_LOCAL)
        captured: list[Graph] = []
        template = c_void_p()
        try:
            yield captured
        except BaseException:
            self._quietly("cudaStreamEndCapture", stream, byref(template))
            self._drop(template)
            raise
        try:
            self._call("capture a stream", "cudaStreamEndCapture", stream, byref(template))
            handle = self._get("make a graph of captured work", "cudaGraphInstantiateWithFlags", template, 0)
        finally:
            self._drop(template)
        captured.append(Graph(self, handle))

    def _drop(self, template: c_void_p) -> None:
        if template:
            self._quietly("cudaGraphDestroy", template)

    def _host_memory(self, nbytes: int, flags: int) -> Memory:
        address = self._get(f"allocate {_size(nbytes)} on the host", "cudaHostAlloc", nbytes, flags)
        block = _Block(address, nbytes, self._freeing("cudaFreeHost"))  # from here on nothing can leak it
        pointer = address
        if flags & _MAPPED:
            pointer = self._get("map host memory", "cudaHostGetDevicePointer", address, 0)
        return Memory(block, pointer, nbytes, on_host=True)

    def _freeing(self, name: str) -> Callable[[int], object]:
        return lambda address: self._quietly(name, address)

    def _describe(self, index: int) -> CudaDevice:
        # The structure changed in CUDA 12 and 13; its head did not: the name, 32 bytes of identity, the memory's size.
        properties = ctypes.create_string_buffer(8192)
        what = f"describe device {index}"
        self._call(what, "cudaGetDeviceProperties", properties, index)
        numbers = [
            self._get(what, "cudaDeviceGetAttribute", attribute, index, kind=c_int)
            for attribute in (_MAJOR, _MINOR, _SM_COUNT, _INTEGRATED, _MAPS_HOST)
        ]
        return CudaDevice(
            index=index,
            name=properties.raw[:256].split(b"\0")[0].decode(errors="replace"),
            compute_capability=(numbers[0], numbers[1]),
            sm_count=numbers[2],
            memory_bytes=int.from_bytes(properties.raw[288:296], sys.byteorder),
            integrated=bool(numbers[3]),
            maps_host=bool(numbers[4]),
        )

    def _version(self, name: str) -> tuple[int, int]:
        number = c_int()  # stays 0 where the call fails: CUDA 11 without a driver
        self._quietly(name, byref(number))
        return number.value // 1000, number.value % 1000 // 10

    def _get(self, doing: str, name: str, *arguments: Any, kind: Any = c_void_p) -> int:
        """What a function writes through its first argument."""
        result = kind()
        self._call(doing, name, byref(result), *arguments)
        return int(result.value or 0)

    def _call(self, doing: str, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            self._library.cudaGetLastError()  # else whoever asks next is told of this failure
            raise BackendError(f"CUDA cannot {doing}: {self._text(code)} (error {code})")

    def _quietly(self, name: str, *arguments: Any) -> None:
        if getattr(self._library, name)(*arguments):
            self._library.cudaGetLastError()

    def _text(self, code: int) -> str:
        return str((self._library.cudaGetErrorString(code) or b"unknown error").decode(errors="replace"))


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.0f} MB" if nbytes >= 1e6 else f"{nbytes} bytes"
