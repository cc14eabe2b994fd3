"""onnx.reference: the definition of every operator in plain Python. Slow, authoritative, only by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from edgeseg.backends.base import Backend, Device, Options, Session, SessionInfo
from edgeseg.errors import BackendError, DeviceError
from edgeseg.types import Batch, Encoding, Logits, Model

_DEQUANTIZES_FROM = 19
"""The first opset whose DequantizeLinear onnx.reference has."""


class DequantizeLinear(OpRun):
    """As the opsets before 19 define it, which onnx.reference lacks."""

    def _run(
        self,
        x: npt.NDArray[Any],
        scale: npt.NDArray[np.float32],
        zero_point: npt.NDArray[Any] | None = None,
        axis: int = 1,
        **newer: Any,
    ) -> tuple[npt.NDArray[np.float32]]:
        shape = [-1 if scale.ndim and index == axis % x.ndim else 1 for index in range(x.ndim)]
        zero = np.int32(0) if zero_point is None else zero_point.astype(np.int32).reshape(shape)
        return ((x.astype(np.int32) - zero).astype(np.float32) * scale.reshape(shape),)


class ReferenceSession(Session):
    def __init__(self, model: Model) -> None:
        try:
            graph = onnx.load(model.path)
            old = any(
                opset.domain in ("", "ai.onnx") and opset.version < _DEQUANTIZES_FROM for opset in graph.opset_import
            )
            self._evaluator = ReferenceEvaluator(graph, new_ops=[DequantizeLinear] if old else None)
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
    encodings: ClassVar[tuple[Encoding, ...]] = ("cpu", "tensorrt")

    def devices(self) -> list[Device]:
        return [Device("cpu", "onnx.reference: the definition, in numpy")]

    def open(self, model: Model, device: str, options: Options, cache: Path | None) -> Session:
        if device != "cpu":
            raise DeviceError(f"backend reference has no device {device!r}: it runs on 'cpu'")
        self.refuse_encoding(model)
        return ReferenceSession(model)
