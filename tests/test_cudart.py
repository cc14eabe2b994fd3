"""CUDA by ctypes: on a fake libcudart with deferred streams, and on the real one where there is a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgeseg.backends import cudart_library
from edgeseg.backends.cudart import Cuda, CudaDevice, Memory
from edgeseg.errors import BackendError, DeviceError

WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
DATA = np.arange(64, dtype=np.uint8)


@pytest.fixture
def fake(fake_cudart: Path) -> Iterator[ctypes.CDLL]:
    """The fake's own entry points; after the test nothing may be left."""
    library = ctypes.CDLL(str(fake_cudart))
    library.fakeEnqueue.argtypes = (ctypes.c_void_p, WORK, ctypes.c_void_p)
    yield library
    gc.collect()
    assert library.fakeLive() == 0
    assert library.cudaPeekAtLastError() == 0  # no failure is left for others to find


@pytest.fixture(params=["fake", "real"])
def cuda(request: pytest.FixtureRequest) -> Cuda:
    """The wrapper on the fake and, on a machine with a GPU, on the real library."""
    if request.param == "fake":
        request.getfixturevalue("fake")
    try:
        return Cuda.load()
    except BackendError as error:
        if request.param == "fake":
            raise
        pytest.skip(str(error))


@dataclass
class Rig:
    """What a session holds: streams, memory on the device, and pinned memory with DATA and with zeros."""

    cuda: Cuda

    def __post_init__(self) -> None:
        self.held, cuda = contextlib.ExitStack(), self.cuda
        self.streams = [cuda.stream(), cuda.stream()]
        for stream in self.streams:
            self.held.callback(cuda.destroy_stream, stream)
        self.memories = [cuda.device_memory(64), cuda.pinned_memory(64), cuda.pinned_memory(64)]
        for memory in self.memories:
            self.held.callback(memory.close)
        self.device, self.source, self.result = (memory.pointer for memory in self.memories)
        self.pixels, self.found = view(self.memories[1]), view(self.memories[2])
        self.pixels[:], self.found[:] = DATA, 0

    def there_and_back(self, to: int, back: int) -> None:
        self.cuda.copy(self.device, self.source, 64, to)
        self.cuda.copy(self.result, self.device, 64, back)


@pytest.fixture
def rig(cuda: Cuda) -> Iterator[Rig]:
    made = Rig(cuda)
    with made.held:
        yield made


def view(memory: Memory) -> npt.NDArray[np.uint8]:
    assert memory.array is not None
    return memory.array


def test_copies_go_there_and_back(rig: Rig) -> None:
    stream = rig.streams[0]
    rig.there_and_back(stream, stream)
    rig.cuda.synchronize(stream)
    np.testing.assert_array_equal(rig.found, DATA)
    assert rig.memories[0].array is None
    assert rig.cuda.device_of(rig.device + 5) == rig.cuda.current()
    assert rig.cuda.device_of(rig.source) is None


def test_the_device_sees_mapped_memory_in_place(rig: Rig) -> None:
    with contextlib.closing(rig.cuda.mapped_memory(64)) as mapped:
        view(mapped)[:] = DATA
        rig.cuda.copy(rig.result, mapped.pointer, 64, rig.streams[0])
        rig.cuda.synchronize(rig.streams[0])
    np.testing.assert_array_equal(rig.found, DATA)


def test_events_order_streams_and_take_the_time(rig: Rig) -> None:
    cuda, (first, second) = rig.cuda, rig.streams
    start, end = cuda.event(), cuda.event()
    cuda.record(start, first)
    cuda.copy(rig.device, rig.source, 64, first)
    cuda.record(end, first)
    cuda.wait(second, end)
    cuda.copy(rig.result, rig.device, 64, second)
    cuda.synchronize(second)
    np.testing.assert_array_equal(rig.found, DATA)
    assert 0 <= cuda.elapsed_ms(start, end) < 1e4
    for event in (start, end):
        cuda.destroy_event(event)


def test_a_captured_graph_runs_when_launched(rig: Rig) -> None:
    cuda, stream = rig.cuda, rig.streams[0]
    with cuda.capture(stream) as captured:
        rig.there_and_back(stream, stream)
    (graph,) = captured
    cuda.synchronize(stream)
    assert not rig.found.any()  # recorded, not run
    for data in (DATA, DATA[::-1]):
        rig.pixels[:] = data
        graph.launch(stream)
        cuda.synchronize(stream)
        np.testing.assert_array_equal(rig.found, data)
    graph.close()
    graph.close()
    with pytest.raises(BackendError, match=r"^CUDA cannot launch a graph: "):
        graph.launch(stream)


def test_a_failed_capture_leaves_the_stream_as_it_was(rig: Rig) -> None:
    cuda, stream = rig.cuda, rig.streams[0]
    with pytest.raises(BackendError, match=r"^CUDA cannot allocate 8 bytes on the device: .*\(error 900\)$"):
        capture(rig, lambda: cuda.device_memory(8))
    with pytest.raises(BackendError, match=r"^CUDA cannot capture a stream: .*\(error 901\)$"):
        capture(rig, lambda: silently(cuda.synchronize, stream))
    with pytest.raises(KeyError):
        capture(rig, lambda: {}["missing"])
    cuda.synchronize(stream)
    assert not rig.found.any()
    rig.there_and_back(stream, stream)
    cuda.synchronize(stream)
    np.testing.assert_array_equal(rig.found, DATA)


def silently(call: Callable[[int], None], stream: int) -> None:
    with contextlib.suppress(BackendError):
        call(stream)


def capture(rig: Rig, what: Callable[[], object]) -> None:
    with rig.cuda.capture(rig.streams[0]):
        rig.there_and_back(rig.streams[0], rig.streams[0])
        what()


def test_nothing_runs_before_it_is_waited_for(fake: ctypes.CDLL) -> None:
    """The fake's promise: a forgotten synchronisation shows."""
    rig, ran = Rig(Cuda.load()), []
    first, second = rig.streams
    work = WORK(ran.append)
    with rig.held:
        assert fake.fakeEnqueue(first, work, 7) == 0
        rig.there_and_back(first, first)
        rig.cuda.synchronize(second)
        assert not ran
        assert not rig.found.any()
        rig.cuda.synchronize(first)
        assert ran == [7]
        rig.pixels[:] = 0
        rig.there_and_back(first, second)  # the second stream does not wait for the first
        rig.cuda.synchronize(second)
        np.testing.assert_array_equal(rig.found, DATA)
        with rig.cuda.capture(first) as captured:
            fake.fakeEnqueue(first, work, 8)
        captured[0].launch(first)
        captured.pop().close()  # launched work goes on
        rig.cuda.synchronize(first)
        assert ran == [7, 8]


def test_devices_are_described(fake_cudart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDART_DEVICES", "2")
    monkeypatch.setenv("FAKE_CUDART_INTEGRATED", "1")
    cuda = Cuda.load()
    wanted = [CudaDevice(i, f"Fake Orin {i}", (8, 7), 16, 8 << 30, True, True) for i in range(2)]
    assert cuda.devices() == tuple(wanted)
    assert (cuda.path, cuda.runtime_version, cuda.driver_version) == (str(fake_cudart), (12, 9), (13, 0))
    cuda.use(1)
    others: list[int] = []
    thread = threading.Thread(target=lambda: others.append(cuda.current()))
    thread.start()
    thread.join()
    assert (cuda.current(), others) == (1, [0])
    with pytest.raises(DeviceError, match=r"^CUDA has no device 2 here: it has 0\.\.1$"):
        cuda.use(2)


def test_memory_goes_once_and_not_before_its_views(fake: ctypes.CDLL) -> None:
    cuda = Cuda.load()
    memory = cuda.device_memory(10)
    memory.close()
    memory.close()
    assert fake.fakeLive() == 0
    kept = view(cuda.pinned_memory(10))[2:]
    gc.collect()
    assert fake.fakeLive() == 1
    assert (kept == 0xCD).all()
    with pytest.raises(BackendError, match=r"^CUDA cannot copy 11 bytes: invalid argument \(error 1\)$"):
        cuda.copy(kept.ctypes.data, DATA.ctypes.data, 11, 0)
    with pytest.raises(
        BackendError, match=r"^CUDA cannot allocate 1,099,512 MB on the device: out of memory \(error 2\)$"
    ):
        cuda.device_memory(1 << 40)


def everything(cuda: Cuda) -> None:
    """Calls every function, holding and releasing as a session does."""
    cuda.devices()
    cuda.use(cuda.current())
    with contextlib.ExitStack() as held:
        stream = cuda.stream()
        held.callback(cuda.destroy_stream, stream)
        memories = []
        for make in (cuda.device_memory, cuda.pinned_memory, cuda.mapped_memory):
            memories.append(held.enter_context(contextlib.closing(make(64))).pointer)
        cuda.device_of(memories[0])
        event = cuda.event()
        held.callback(cuda.destroy_event, event)
        cuda.record(event, stream)
        cuda.wait(stream, event)
        cuda.elapsed_ms(event, event)
        with cuda.capture(stream) as captured:
            cuda.copy(memories[0], memories[1], 64, stream)
            cuda.copy(memories[2], memories[0], 64, stream)
        held.callback(captured[0].close)
        captured[0].launch(stream)
        cuda.synchronize(stream)


RELEASES = [
    "cudaFree",
    "cudaFreeHost",
    "cudaStreamDestroy",
    "cudaEventDestroy",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
]
AT_LOAD = [
    "cudaGetDeviceCount",
    "cudaRuntimeGetVersion",
    "cudaDriverGetVersion",
    "cudaGetLastError",
    "cudaGetErrorString",
]


@pytest.mark.parametrize("name", sorted(set(cudart_library._FUNCTIONS) - {*AT_LOAD, *RELEASES}))
def test_a_failure_anywhere_is_one_line_and_leaks_nothing(name: str, fake: ctypes.CDLL) -> None:
    cuda = Cuda.load()
    for nth in range(1, 100):
        fake.fakeFail(name.encode(), nth, 999)
        try:
            everything(cuda)
            break
        except BackendError as error:
            assert re.fullmatch(r"CUDA cannot [^\n]+: unknown error \(error 999\)", str(error))
        assert fake.cudaPeekAtLastError() == 0
        assert fake.fakeLive() == 0
    assert nth > 1


@pytest.mark.parametrize("name", RELEASES)
def test_a_failed_release_hides_no_other_error(name: str, fake_cudart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDART_FAIL", f"{name}:1")
    everything(Cuda.load())
    fake = ctypes.CDLL(str(fake_cudart))
    assert (fake.fakeLive(), fake.cudaPeekAtLastError()) == (1, 0)  # tried once, not again
    gc.collect()
    assert fake.fakeLive() == 1
