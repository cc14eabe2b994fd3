"""The runtimes alone: a graph compiled as the backend does, run on a batch that is ready, its output not touched."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgeseg.backends.base import Kept, SessionInfo
from edgeseg.errors import BackendError
from edgeseg.types import Batch, Logits

_HINTS = {"fp16": "f16", "bf16": "bf16"}

Run = Callable[[], object]
"""One inference."""


class Raw(Protocol):
    """One compiled network: a call is an inference; `feed` is no part of it and says what the next ones compute on."""

    def __call__(self) -> object: ...
    def feed(self, batch: Batch) -> None: ...
    def logits(self) -> Logits:
        """The last inference's; valid until the next."""


def open_raw(graph: Path, like: SessionInfo, batch: Batch, kept: Kept | None = None) -> Raw | None:
    """A runner of `graph` on `batch` (kept, not copied), set up as the session that `like` describes.

    TensorRT's runs the engine that this session left in the cache (`kept`), as building another would take minutes and
    give another. None for a backend that has none here. Raises BackendError where TensorRT refuses.
    """
    found: Raw
    if like.backend == "openvino":
        found = _OpenVino(graph, like)
    elif like.backend == "ort":
        found = _Ort(graph, like)
    elif like.backend == "tensorrt" and kept is not None:
        return _TensorRt(_plan(kept), like, batch)
    else:
        return None
    found.feed(batch)
    return found


class _OpenVino:
    """A request only borrows the batch's memory, which is held here."""

    def __init__(self, graph: Path, like: SessionInfo) -> None:
        import openvino

        config: dict[str, object] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f16" if like.device == "npu" else _HINTS.get(like.precision, "f32"),
        }
        if like.threads and like.device == "cpu":
            config["INFERENCE_NUM_THREADS"] = like.threads
        self.request = openvino.Core().compile_model(graph, like.device.upper(), config).create_infer_request()
        self._tensor = openvino.Tensor

    def feed(self, batch: Batch) -> None:
        self._batch = batch
        self.request.set_input_tensor(self._tensor(batch, shared_memory=True))

    def __call__(self) -> None:
        self.request.infer()

    def logits(self) -> Logits:
        return np.asarray(self.request.get_output_tensor(0).data)


class _Ort:
    def __init__(self, graph: Path, like: SessionInfo) -> None:
        import onnxruntime

        from edgeseg.backends.ort import PROVIDER, session_options

        self._session = onnxruntime.InferenceSession(str(graph), session_options(like.threads), providers=[PROVIDER])
        self._input = self._session.get_inputs()[0].name

    def feed(self, batch: Batch) -> None:
        self._feeds = {self._input: batch}

    def __call__(self) -> None:
        self._found: list[Logits] = self._session.run(None, self._feeds)

    def logits(self) -> Logits:
        return self._found[0]


def _plan(kept: Kept) -> bytes:
    from edgeseg.backends.engines import EngineStore, Unusable, read_key

    (path,) = kept.files
    try:
        plan = EngineStore(path.parent).find(read_key(path))
    except (OSError, Unusable) as error:
        raise BackendError(f"cannot read the engine {path} again: {error}") from error
    if plan is None:
        raise BackendError(f"the engine {path} is gone: run again")
    return plan


class _TensorRt:
    """As NVIDIA's samples and trtexec run an engine: from pinned memory to the device, enqueue, back, wait.

    No CUDA graph, as these have none unless asked; the session has one, so that its network time can be the shorter.
    """

    def __init__(self, plan: bytes, like: SessionInfo, batch: Batch) -> None:
        from edgeseg.backends.cudart import Cuda
        from edgeseg.backends.trt_module import logger_of

        trt: Any = importlib.import_module("tensorrt_rtx" if "RTX" in like.runtime else "tensorrt")
        kind, _, number = like.device.partition(".")
        self._runtime, self._logger, self._cuda = like.runtime, logger_of(trt), Cuda.load()
        self._logger.begin()
        self._gpu = int(number) if kind == "gpu" and number else 0
        self._cuda.use(self._gpu)
        runtime = trt.Runtime(self._logger)
        if kind == "dla":
            runtime.DLA_core = int(number or 0)
        engine = self._must(runtime.deserialize_cuda_engine(plan), "load the engine again")
        self._context = self._must(engine.create_execution_context(), "run the engine again")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        names.sort(key=lambda name: engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT)
        self._must(self._context.set_input_shape(names[0], batch.shape), f"take a batch of shape {batch.shape}")
        shape = tuple(self._context.get_tensor_shape(names[1]))
        sizes = batch.nbytes, 4 * int(np.prod(shape))
        self._host = [self._cuda.pinned_memory(nbytes) for nbytes in sizes]
        self._device = [self._cuda.device_memory(nbytes) for nbytes in sizes]
        for name, memory in zip(names, self._device, strict=True):
            self._must(self._context.set_tensor_address(name, memory.pointer), f"take memory for {name}")
        pixels, logits = (np.asarray(memory.array) for memory in self._host)
        self._pixels, self._logits = pixels.reshape(batch.shape), logits.view(np.float32).reshape(shape)
        self._stream = self._cuda.stream()
        weakref.finalize(self, self._cuda.destroy_stream, self._stream).atexit = False
        self.feed(batch)

    def feed(self, batch: Batch) -> None:
        np.copyto(self._pixels, batch)

    def __call__(self) -> None:
        self._cuda.use(self._gpu)
        (pixels, logits), (pixels_there, logits_there) = self._host, self._device
        self._cuda.copy(pixels_there.pointer, pixels.pointer, pixels.nbytes, self._stream)
        self._must(self._context.execute_async_v3(self._stream), "run")
        self._cuda.copy(logits.pointer, logits_there.pointer, logits.nbytes, self._stream)
        self._cuda.synchronize(self._stream)

    def logits(self) -> Logits:
        return self._logits

    def _must(self, done: Any, what: str) -> Any:
        if done is None or done is False:
            raise BackendError(f"{self._runtime} alone cannot {what}: {self._logger.reason}")
        return done
