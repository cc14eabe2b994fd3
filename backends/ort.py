"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnxruntime

from edgeseg.backends.base import Backend, Device, ExecutedLayer, Options, Session, SessionInfo
from edgeseg.errors import BackendError, DeviceError
from edgeseg.types import Batch, Encoding, Logits, Model

PROVIDER = "CPUExecutionProvider"
FP16_IS_WRONG = "fp16 Q/DQ comes out wrong in ONNX Runtime (relative error 0.99)"


class OrtSession(Session):
    """One graph; with `optimise=False` it runs node by node as it is written, which is Q/DQ in float."""

    def __init__(self, model: Model, options: Options, backend: str = "ort", *, optimise: bool = True) -> None:
        self._model, self._threads = model, options.threads
        self._info = SessionInfo(
            backend=backend,
            runtime=f"onnxruntime {onnxruntime.__version__}",
            device="cpu",
            device_name=PROVIDER,
            precision=model.precision,
            threads=options.threads,
        )
        try:
            self._session = onnxruntime.InferenceSession(
                str(model.path), session_options(options.threads, optimise), providers=[PROVIDER]
            )
        except Exception as error:  # pybind11 exposes a dozen exception types without a common base
            raise BackendError(f"ONNX Runtime cannot open {model.path.name}: {_first_line(error)}") from error
        self._input = self._session.get_inputs()[0].name

    def run(self, batch: Batch) -> Logits:
        try:
            logits: Logits = self._session.run(None, {self._input: batch})[0]
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime failed on a batch of shape {batch.shape}: {_first_line(error)}"
            ) from error
        return np.asarray(logits)

    def describe(self) -> SessionInfo:
        return self._info

    def layers(self) -> tuple[ExecutedLayer, ...]:
        from edgeseg.backends.ort_profile import executed_layers

        try:
            return executed_layers(self._model, self._threads)
        except Exception as error:
            raise BackendError(f"ONNX Runtime cannot profile {self._model.path.name}: {_first_line(error)}") from error


class OrtBackend(Backend):
    name = "ort"
    version = f"onnxruntime {onnxruntime.__version__}"
    refusals: ClassVar[Mapping[Encoding, str]] = {
        "tensorrt": "ONNX Runtime runs signed activations 3 to 6 times slower",
        "tensorrt_fp16": FP16_IS_WRONG,
    }

    def devices(self) -> list[Device]:
        return [Device("cpu", "CPU")]

    def open(self, model: Model, device: str, options: Options, cache: Path | None) -> Session:
        if device != "cpu":
            raise DeviceError(f"backend ort has no device {device!r}: it runs on 'cpu'")
        if options.precision == "fp16":
            raise BackendError("backend ort computes fp32 or int8 on the CPU, not fp16: choose precision fp32")
        self.refuse_encoding(model)
        return OrtSession(model, options)


def session_options(threads: int, optimise: bool = True) -> onnxruntime.SessionOptions:
    """How every session here runs; `threads` 0 is the runtime's choice."""
    settings = onnxruntime.SessionOptions()
    if not optimise:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    # Idle threads that spin take the cores from preprocess, decode and every other session in the process.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return settings


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
