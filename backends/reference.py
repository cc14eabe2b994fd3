"""onnx.reference: the definition of every operator in plain Python. Slow, authoritative, only by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from edgeseg.backends.base import Backend, Device, Options, Session, SessionInfo
from edgeseg.errors import BackendError, DeviceError
from edgeseg.types import Batch, Logits, Model


class ReferenceSession(Session):
    def __init__(self, model: Model) -> None:
        try:
            self._evaluator = ReferenceEvaluator(onnx.load(model.path))
        except Exception as error:  # onnx raises protobuf's, numpy's and its own types
            raise BackendError(f"onnx.reference cannot open {model.path.name}: {error}") from error
        self._input = self._evaluator.input_names[0]
        self._info = SessionInfo("reference", ReferenceBackend.version, "cpu", "numpy", model.precision, 1)

    def run(self, batch: Batch) -> Logits:
        try:
            logits = self._evaluator.run(None, {self._input: batch})
        except Exception as error:
            raise BackendError(f"onnx.reference failed on a batch of shape {batch.shape}: {error}") from error
        return np.asarray(logits[0], np.float32)  # type: ignore[index]

    def describe(self) -> SessionInfo:
        return self._info


class ReferenceBackend(Backend):
    name = "reference"
    version = f"onnx {onnx.__version__}"
    self_test = False  # one frame takes it most of a minute

    def devices(self) -> list[Device]:
        return [Device("cpu", "onnx.reference: the definition, in numpy")]

    def open(self, model: Model, device: str, options: Options, cache: Path | None) -> Session:
        if device != "cpu":
            raise DeviceError(f"backend reference has no device {device!r}: it runs on 'cpu'")
        return ReferenceSession(model)
