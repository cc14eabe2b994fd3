"""ONNX Runtime without graph optimisations: int8 graphs computed literally, in float; the judge of int8, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from edgeseg.backends.base import Backend, Device, ExecutedLayer, Options, Session
from edgeseg.backends.ort import FP16_IS_WRONG, OrtBackend, OrtSession
from edgeseg.errors import BackendError, DeviceError
from edgeseg.types import Encoding, Model


class SimulateSession(OrtSession):
    def __init__(self, model: Model, options: Options) -> None:
        super().__init__(model, options, SimulateBackend.name, optimise=False)

    def layers(self) -> tuple[ExecutedLayer, ...]:
        """None: a profile of the simulation says nothing about a runtime."""
        return ()


class SimulateBackend(Backend):
    name = "simulate"
    version = OrtBackend.version
    encodings: ClassVar[tuple[Encoding, ...]] = ("cpu", "tensorrt")
    refusals: ClassVar[Mapping[Encoding, str]] = {"tensorrt_fp16": FP16_IS_WRONG}

    def devices(self) -> list[Device]:
        return [Device("cpu", "ONNX Runtime node by node: quantization computed literally, in float")]

    def open(self, model: Model, device: str, options: Options, cache: Path | None) -> Session:
        if device != "cpu":
            raise DeviceError(f"backend simulate has no device {device!r}: it runs on 'cpu'")
        if options.precision == "fp16":
            raise BackendError("backend simulate computes fp32 or simulated int8, not fp16: choose precision fp32")
        self.refuse_encoding(model)
        return SimulateSession(model, options)
