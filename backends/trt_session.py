"""One TensorRT engine on one GPU: own stream, pinned or mapped memory, a CUDA graph, device tensors."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from edgeseg.backends.base import Kept, Session, SessionInfo
from edgeseg.backends.cudart import Cuda, CudaDevice, Graph, Memory
from edgeseg.backends.device_tensors import device_pointer
from edgeseg.backends.trt_build import BuildJob
from edgeseg.backends.trt_module import flavour_of, logger_of, register_plugins
from edgeseg.errors import BackendError
from edgeseg.types import Batch, Logits

_log = logging.getLogger("edgeseg")


class _Buffers:
    """Where pixels and logits lie: `pixels` and `logits` are addresses for the engine, the arrays the host's side.

    On an integrated GPU host and device share memory, so both are one mapped block and nothing is copied; else each is
    a block on the device and a pinned one on the host.
    """

    def __init__(self, cuda: Cuda, pixels_bytes: int, logits_bytes: int, mapped: bool, held: contextlib.ExitStack):
        def take(make: Callable[[int], Memory], nbytes: int) -> Memory:
            memory = make(nbytes)
            held.callback(memory.close)
            return memory

        self.mapped = mapped
        host = cuda.mapped_memory if mapped else cuda.pinned_memory
        self._pixels_host, self._logits_host = take(host, pixels_bytes), take(host, logits_bytes)
        self._pixels = self._pixels_host if mapped else take(cuda.device_memory, pixels_bytes)
        self._logits = self._logits_host if mapped else take(cuda.device_memory, logits_bytes)
        self._cuda = cuda
        assert self._pixels_host.array is not None
        assert self._logits_host.array is not None
        self.pixels_array, self.logits_array = self._pixels_host.array, self._logits_host.array

    @property
    def pixels(self) -> int:
        return self._pixels.pointer

    @property
    def logits(self) -> int:
        return self._logits.pointer

    def to_device(self, nbytes: int, stream: int) -> None:
        if not self.mapped:
            self._cuda.copy(self.pixels, self._pixels_host.pointer, nbytes, stream)

    def to_host(self, nbytes: int, stream: int) -> None:
        if not self.mapped:
            self._cuda.copy(self._logits_host.pointer, self.logits, nbytes, stream)


class EngineRefused(BackendError):
    """TensorRT takes the engine for another kind or version than the one it was kept as: building it again helps."""


class TensorRTSession(Session):
    """Runs a serialised engine; takes batches from the host, or from the GPU as torch's and cupy's tensors.

    The second run of a batch size is captured as a CUDA graph, which later ones launch: TensorRT's kernels then cost
    one call instead of hundreds. Where that fails, layers are enqueued each time.
    """

    reads_gpu: ClassVar[bool] = True

    def __init__(
        self, trt: Any, cuda: Cuda, gpu: CudaDevice, device: str, plan: bytes, job: BuildJob, kept: Kept | None
    ) -> None:
        self._trt, self._cuda, self._gpu, self._device, self._job = trt, cuda, gpu, device, job
        self._model, self._flavour = job.model, flavour_of(trt)
        self.kept = kept
        self._held = contextlib.ExitStack()
        self._owners: list[Any] = []
        self._context: Any = None
        self._stream = 0
        self._graph: Graph | None = None
        self._logger = logger_of(trt)
        self._logger.begin()
        try:
            with self._on_gpu():
                self._open(plan)
        except BaseException:
            self.close()
            raise

    def _open(self, plan: bytes) -> None:
        trt, model = self._trt, self._model
        register_plugins(trt, self._logger)
        try:
            runtime = trt.Runtime(self._logger)
        except TypeError as error:  # pybind11: factory function returned nullptr
            raise BackendError(f"{self._flavour.title} cannot make a runtime: {self._logger.reason}") from error
        if self._job.options.build.version_compatible:
            runtime.engine_host_code_allowed = True
        if self._job.dla_core is not None:
            runtime.DLA_core = self._job.dla_core
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineRefused(self._cannot("load the engine of"))
        self._input, self._output = self._tensors(engine)
        self._context = engine.create_execution_context()
        self._must(self._context is not None, "run the engine of")
        self._owners += [engine, runtime]
        most = model.batch if model.batch is not None else self._job.options.build.max_batch
        self._most = most
        pixels, logits = int(np.prod(model.input_size)) * 3, int(np.prod(model.logits_shape)) * 4
        mapped = self._gpu.integrated and self._gpu.maps_host
        self._stream = self._cuda.stream()
        self._held.callback(self._cuda.destroy_stream, self._stream)
        self._buffers = _Buffers(self._cuda, most * pixels, most * logits, mapped, self._held)
        for name, address in ((self._input, self._buffers.pixels), (self._output, self._buffers.logits)):
            self._must(self._context.set_tensor_address(name, address), f"take memory for {name}")
        self._shape = 0
        # With any batch TensorRT for RTX goes on compiling in the background, and a graph would keep what it had.
        self._graphs_work = not (self._flavour.rtx and model.batch is None)
        self._warm = False

    def run(self, batch: Batch) -> Logits:
        """As `Session.run`; `batch` may also lie on this GPU, with `__cuda_array_interface__` or DLPack.

        Such a tensor is uint8 (N, h, w, 3) or (h, w, 3), contiguous; its producer's stream is waited for, on the GPU.
        """
        if self._context is None:
            raise BackendError("this session is closed: load the network again")
        if self._model.batch is None and len(batch) > self._most and isinstance(batch, np.ndarray):
            parts = range(0, len(batch), self._most)
            return np.concatenate([self.run(batch[start : start + self._most]) for start in parts])
        with self._on_gpu():
            return self._run(batch)

    def _run(self, batch: Batch) -> Logits:
        given = device_pointer(batch, self._stream, self._cuda)
        shape, dtype = (batch.shape, batch.dtype.str) if given is None else (given.shape, given.dtype)
        shape = tuple(shape) if given is None or len(shape) == 4 else (1, *shape)
        self._check(shape, dtype)
        count = shape[0]
        nbytes = int(np.prod(shape))
        self._set_batch(count)
        if given is None:
            np.copyto(self._buffers.pixels_array[:nbytes].reshape(shape), batch)
            self._buffers.to_device(nbytes, self._stream)
        else:
            self._cuda.copy(self._buffers.pixels, given.pointer, nbytes, self._stream)
        self._compute(count)
        self._cuda.synchronize(self._stream)
        values = count * int(np.prod(self._model.logits_shape))
        found = self._buffers.logits_array[: values * 4].view(np.float32)
        logits: Logits = found.reshape(count, *self._model.logits_shape).copy()
        return logits

    def describe(self) -> SessionInfo:
        major, minor = self._gpu.compute_capability
        return SessionInfo(
            backend="tensorrt",
            runtime=self._flavour.title,
            device=self._device,
            device_name=self._gpu.name,
            precision=self._job.options.precision,
            threads=self._job.options.threads,
            details={
                "cuda": ".".join(map(str, self._cuda.runtime_version)),
                "driver serves cuda": ".".join(map(str, self._cuda.driver_version)),
                "compute capability": f"sm_{major}{minor}",
                "memory": "mapped" if self._buffers.mapped else "pinned",
                "batch": f"1 to {self._most}" if self._model.batch is None else str(self._most),
            },
        )

    def close(self) -> None:
        if self._stream:
            with contextlib.suppress(BackendError), self._on_gpu():  # what failed in it has been told
                self._cuda.synchronize(self._stream)
        self._drop_graph()
        self._context = None
        while self._owners:  # the engine, then the runtime that made it
            del self._owners[0]
        self._stream = 0
        self._held.close()

    @contextlib.contextmanager
    def _on_gpu(self) -> Iterator[None]:
        """This thread works on the session's GPU, then again on the one it had, which others in it rely on."""
        before = self._cuda.current()
        self._cuda.use(self._gpu.index)
        try:
            yield
        finally:
            if before != self._gpu.index:
                self._cuda.use(before)

    def _compute(self, count: int) -> None:
        if self._graph is None and self._warm and self._graphs_work:
            try:
                with self._cuda.capture(self._stream) as captured:
                    self._enqueue(count)
                self._graph = captured[0]
            except BackendError as error:
                self._graphs_work = False
                _log.info("no CUDA graph for %s: %s", self._model.name, error)
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._enqueue(count)
            self._warm = True  # TensorRT allocates in its first run, which cannot be captured

    def _enqueue(self, count: int) -> None:
        self._must(self._context.execute_async_v3(self._stream), "run")
        self._buffers.to_host(count * int(np.prod(self._model.logits_shape)) * 4, self._stream)

    def _set_batch(self, count: int) -> None:
        if count == self._shape:
            return
        self._drop_graph()
        self._warm = False
        if self._model.batch is None:
            shape = (count, *self._model.input_size, 3)
            taken = self._context.set_input_shape(self._input, shape) and not self._context.infer_shapes()
            self._must(taken, f"take a batch of shape {shape} in")
        self._shape = count

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _check(self, shape: tuple[int, ...], dtype: str) -> None:
        counts = f"1 to {self._most}" if self._model.batch is None else str(self._most)
        height, width = self._model.input_size
        least = 1 if self._model.batch is None else self._most
        if len(shape) != 4 or not least <= shape[0] <= self._most or shape[1:] != (height, width, 3):
            raise BackendError(
                f"{self._flavour.title} failed on a batch of shape {shape}: {self._model.name} was compiled for "
                f"({counts}, {height}, {width}, 3)"
            )
        if dtype != "|u1":
            raise BackendError(f"{self._flavour.title} failed on a batch of {dtype}: give uint8 pixels")

    def _tensors(self, engine: Any) -> tuple[str, str]:
        """Names of the one input and the one output; raises EngineRefused for an engine of another kind."""
        trt = self._trt
        named = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in named}
        inputs = [name for name in named if modes[name] == trt.TensorIOMode.INPUT]
        outputs = [name for name in named if modes[name] == trt.TensorIOMode.OUTPUT]
        types = [engine.get_tensor_dtype(name) for name in (*inputs, *outputs)]
        shapes = [tuple(engine.get_tensor_shape(name))[1:] for name in outputs]
        wanted = [trt.DataType.UINT8, trt.DataType.FLOAT], [self._model.logits_shape]
        if (types, shapes) != wanted or len(inputs) != 1:
            raise EngineRefused(
                f"the engine of {self._model.name} goes from {inputs} to {outputs}, of {types} and {shapes}, not "
                f"from uint8 pixels to float32 logits {self._model.logits_shape}"
            )
        return inputs[0], outputs[0]

    def _must(self, done: bool, what: str) -> None:
        if not done:
            raise BackendError(self._cannot(what))

    def _cannot(self, what: str) -> str:
        return f"{self._flavour.title} cannot {what} {self._model.name}: {self._logger.reason}"
