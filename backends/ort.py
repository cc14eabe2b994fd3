"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from edgeseg.backends.base import Backend, Device, Options, Session, SessionInfo
from edgeseg.errors import BackendError, DeviceError
from edgeseg.types import Batch, Logits, Model

_PROVIDER = "CPUExecutionProvider"


class OrtSession(Session):
    def __init__(self, model: Model, options: Options) -> None:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.log_severity_level = 3
        # Idle threads that spin take the cores from preprocess, decode and every other session in the process.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._info = SessionInfo(
            backend="ort",
            runtime=f"onnxruntime {onnxruntime.__version__}",
            device="cpu",
            device_name=_PROVIDER,
            precision=model.precision,
            threads=options.threads,
        )
        try:
            self._session = onnxruntime.InferenceSession(str(model.path), settings, providers=[_PROVIDER])
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


class OrtBackend(Backend):
    name = "ort"
    version = f"onnxruntime {onnxruntime.__version__}"

    def devices(self) -> list[Device]:
        return [Device("cpu", "CPU")]

    def open(self, model: Model, device: str, options: Options, cache: Path | None) -> Session:
        if device != "cpu":
            raise DeviceError(f"backend ort has no device {device!r}: it runs on 'cpu'")
        if options.precision == "fp16":
            raise BackendError("backend ort computes fp32 or int8 on the CPU, not fp16: choose precision fp32")
        return OrtSession(model, options)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
