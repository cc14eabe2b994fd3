"""OpenVINO on CPU, GPU, NPU, or whichever its AUTO plugin picks. Static shapes, explicit precision, cached blobs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import numpy as np
import openvino

from edgeseg.backends.base import Backend, Device, ExecutedLayer, Kept, Options, Session, SessionInfo
from edgeseg.backends.ov_blobs import blobs_in, checked_blobs
from edgeseg.errors import BackendError, DeviceError
from edgeseg.types import Batch, Encoding, Logits, Model

_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
"""INFERENCE_PRECISION_HINT: what is not quantized runs in this. The default is bf16 on some CPUs: logits off by 0.9.

bf16 beside int8 would gain nothing: 0.99 to 1.03 of the time."""
_SIGNED = "OpenVINO may compute signed Concat graphs silently wrong"
_EXECUTED = {"f32": "fp32", "f16": "fp16"}
_INSTALL = {
    "gpu": "install Intel's GPU driver (intel-opencl-icd / level-zero)",
    "npu": "install Intel's NPU driver (github.com/intel/linux-npu-driver)",
}


class OpenVinoSession(Session):
    def __init__(self, core: openvino.Core, model: Model, device: str, options: Options, cache: Path | None) -> None:
        hint = "f16" if device == "npu" else _HINTS[options.precision]
        config: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        if options.threads and device == "cpu":
            config["INFERENCE_NUM_THREADS"] = options.threads
        self._core, self._model = core, model
        self._config = config
        facts = {"runtime": OpenVinoBackend.version, "device": device, "precision": options.precision}
        facts |= {"threads": str(options.threads)} if options.threads else {}
        blobs = nullcontext() if cache is None else checked_blobs(cache, model, facts)
        with blobs as folder:
            cached = {} if folder is None else {"CACHE_DIR": str(folder)}
            before = blobs_in(folder)
            try:
                # By path, not as a model object: a warm cache then skips reading the graph altogether.
                self._compiled = core.compile_model(model.path, device.upper(), config | cached)
                self._request = self._compiled.create_infer_request()
            except Exception as error:  # RuntimeError from every layer below
                told = f"OpenVINO cannot compile {model.path.name} for {device}: {_reason(error)}"
                raise BackendError(told) from error
            after = blobs_in(folder)
        if after:
            self.kept = Kept(after, found=after == before)
        self._shape = model.logits_shape
        self._device, self._options = device, options

    def run(self, batch: Batch) -> Logits:
        # The request writes straight into an array of the caller's, so nothing is copied and no later run changes it.
        logits = np.empty((len(batch), *self._shape), np.float32)
        if not batch.flags.writeable:  # OpenVINO only borrows memory it could write to
            batch = batch.copy()
        try:
            self._request.set_input_tensor(openvino.Tensor(batch, shared_memory=True))
            self._request.set_output_tensor(openvino.Tensor(logits, shared_memory=True))
            self._request.infer()
        except Exception as error:
            raise BackendError(f"OpenVINO failed on a batch of shape {batch.shape}: {_reason(error)}") from error
        return logits

    def describe(self) -> SessionInfo:
        devices = self._compiled.get_property("EXECUTION_DEVICES")
        try:
            executed = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        except RuntimeError:  # AUTO does not say: it hands the hint on
            executed = _HINTS[self._options.precision]
        return SessionInfo(
            backend="openvino",
            runtime=OpenVinoBackend.version,
            device=self._device,
            device_name=", ".join(map(str, devices)) if isinstance(devices, (list, tuple)) else str(devices),
            precision="int8" if self._options.precision == "int8" else _EXECUTED.get(executed, executed),
            threads=self._options.threads,
        )

    def layers(self) -> tuple[ExecutedLayer, ...]:
        """The CPU's only: nobody has seen what accelerators and AUTO say of themselves."""
        if self._device != "cpu":
            return ()
        from edgeseg.backends.ov_profile import executed_layers

        try:
            return executed_layers(self._core, self._model, self._config)
        except Exception as error:
            raise BackendError(f"OpenVINO cannot profile {self._model.path.name}: {_reason(error)}") from error

    def close(self) -> None:
        self._request = self._compiled = None


class OpenVinoBackend(Backend):
    name = "openvino"
    version = f"openvino {openvino.__version__.split('-')[0]}"
    refusals: ClassVar[Mapping[Encoding, str]] = {"tensorrt": _SIGNED, "tensorrt_fp16": _SIGNED}

    def __init__(self) -> None:
        self._core = openvino.Core()

    def devices(self) -> list[Device]:
        here = [str(name).lower() for name in self._core.available_devices]
        found = [Device(name, self._full_name(name) + ", bf16" * self.computes_bf16(name)) for name in here]
        for kind, advice in _INSTALL.items():
            # The plugins come in the wheel and say nothing: only available_devices knows of hardware and drivers.
            if not any(name.split(".")[0] == kind for name in here):
                found.append(Device(kind, f"Intel {kind.upper()}", f"no such device or no driver: {advice}"))
        return [*found, Device(f"auto:{','.join(here)}", "OpenVINO's AUTO plugin: its own choice among these")]

    def open(self, model: Model, device: str, options: Options, cache: Path | None) -> Session:
        # Asking for devices loads every plugin; the CPU's is always there.
        known = {found.name: found for found in self.devices()} if device != "cpu" else {"cpu": Device("cpu", "CPU")}
        for name in device.removeprefix("auto:").split(","):
            # "gpu" is the first of gpu.0, gpu.1: OpenVINO resolves it
            chosen = known.get(name) or known.get(f"{name}.0")
            if chosen is None:
                raise DeviceError(f"backend openvino has no device {device!r} here: it has {', '.join(known)}")
            if chosen.reason:
                raise DeviceError(f"backend openvino cannot use {device}: {chosen.reason}")
        if options.precision == "fp16" and device == "cpu":
            raise BackendError("backend openvino computes fp32 or int8 on the CPU, not fp16: choose precision fp32")
        self.refuse_encoding(model)
        return OpenVinoSession(self._core, model, device, options, cache)

    def computes_bf16(self, device: str) -> bool:
        return device == "cpu" and "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    def _full_name(self, device: str) -> str:
        try:
            return str(self._core.get_property(device.upper(), "FULL_DEVICE_NAME"))
        except RuntimeError:
            return device.upper()


def _reason(error: Exception) -> str:
    """OpenVINO's messages are stacks of "Exception from file:line:"; the last line that is not one says why."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith("Exception from")]
    return told[-1] if told else type(error).__name__
