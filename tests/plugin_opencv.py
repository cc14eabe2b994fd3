"""A third party's backend, whole: OpenCV's own network runtime (5.x reads our graphs from uint8 to logits)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from edgeseg.backends.base import Backend, Device, Options, Session, SessionInfo
from edgeseg.errors import BackendError, DeviceError
from edgeseg.types import Batch, Logits, Model


class OpenCvSession(Session):
    def __init__(self, model: Model) -> None:
        try:
            self._network = cv2.dnn.readNetFromONNX(str(model.path))
        except cv2.error as error:
            raise BackendError(f"OpenCV cannot open {model.path.name}: {error.err}") from error
        self._shape = (1, *model.input_size, 3)

    def run(self, batch: Batch) -> Logits:
        if batch.shape != self._shape:
            raise BackendError(f"OpenCV got a batch of shape {batch.shape}, the network takes {self._shape}")
        self._network.setInput(batch)
        return np.array(self._network.forward(), np.float32)

    def describe(self) -> SessionInfo:
        return SessionInfo("opencv", f"opencv {cv2.__version__}", "cpu", "cv2.dnn", "fp32", 0)


class OpenCvBackend(Backend):
    name = "opencv"
    version = f"opencv {cv2.__version__}"

    def devices(self) -> list[Device]:
        return [Device("cpu", "cv2.dnn")]

    def open(self, model: Model, device: str, options: Options, cache: Path | None) -> Session:
        if device != "cpu":
            raise DeviceError(f"backend opencv has no device {device!r}: it runs on 'cpu'")
        self.refuse_encoding(model)
        return OpenCvSession(model)
