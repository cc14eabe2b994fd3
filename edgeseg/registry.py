"""Backend name -> backend, imported on first use; third parties come by entry point `edgeseg.backends`."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from edgeseg.backends.base import Backend, Device
from edgeseg.errors import BackendError, BackendMissing, EdgesegError
from edgeseg.types import Encoding

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "edgeseg.backends"


class _Entry(NamedTuple):
    module: str
    class_name: str
    vendors: tuple[str, ...]
    install: str


BUILTIN = {
    "openvino": _Entry("edgeseg.backends.ov", "OpenVinoBackend", ("openvino",), 'pip install "edgeseg[openvino]"'),
    "ort": _Entry("edgeseg.backends.ort", "OrtBackend", ("onnxruntime",), 'pip install "edgeseg[ort]"'),
    "simulate": _Entry("edgeseg.backends.simulate", "SimulateBackend", ("onnxruntime",), 'pip install "edgeseg[ort]"'),
    "tensorrt": _Entry(
        "edgeseg.backends.trt",
        "TensorRTBackend",
        ("tensorrt", "tensorrt_rtx"),
        'on a Jetson it comes with JetPack (see the README); for an RTX GPU pip install "edgeseg[tensorrt-rtx]"',
    ),
    "reference": _Entry("edgeseg.backends.reference", "ReferenceBackend", ("onnx",), 'pip install "edgeseg[onnx]"'),
}

AUTO_ORDER: dict[str, tuple[str, ...]] = {
    "cpu": ("openvino", "ort"),
    "gpu": ("tensorrt", "openvino"),
    "npu": ("openvino",),
    "dla": ("tensorrt",),
}
"""Which backends `auto` tries, first to last, per kind of device.

On the CPU OpenVINO comes first because it measured faster at every stride and precision. `device="auto"` means the
CPU: an accelerator is used only when it is named, since nobody has measured it for this network. `simulate`,
`reference` and third parties' backends are used only by name.
"""


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """A backend as `doctor` shows it: its version, devices and int8 encodings, or in `reason` why it is not here."""

    name: str
    version: str
    devices: tuple[Device, ...]
    reason: str = ""
    encodings: tuple[Encoding, ...] = ()


def get(name: str) -> Backend:
    """Import and make the backend called `name`.

    Raises BackendMissing with the install command where its vendor's package is absent, BackendError for an unknown
    name. Any other error while importing passes through: it is a bug that must be seen.
    """
    if entry := BUILTIN.get(name):
        try:
            backend: Backend = getattr(importlib.import_module(entry.module), entry.class_name)()
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] not in entry.vendors:
                raise
            raise BackendMissing(f"backend {name} needs the package {entry.vendors[0]}: {entry.install}") from error
        return backend
    plugins = _plugins()
    if name not in plugins:
        known = ", ".join([*BUILTIN, *plugins])
        raise BackendError(f"unknown backend {name!r}: choose one of {known}")
    made = plugins[name].load()()
    if not isinstance(made, Backend):
        raise BackendError(f"plug-in {name!r} ({plugins[name].value}) is not an edgeseg.backends.base.Backend")
    return made


def installed(name: str) -> bool:
    """Whether a built-in backend's package is there, which is not to say that it works; nothing is imported."""
    return any(importlib.util.find_spec(vendor) for vendor in BUILTIN[name].vendors)


def names() -> tuple[str, ...]:
    """All backends that can be asked for, built-in ones first."""
    return (*BUILTIN, *_plugins())


def status(name: str) -> BackendStatus:
    """What `doctor` says of one backend; never raises, a broken plug-in becomes its reason."""
    try:
        backend = get(name)
        return BackendStatus(name, backend.version, tuple(backend.devices()), encodings=backend.encodings)
    except EdgesegError as error:
        return BackendStatus(name, "", (), str(error))
    except Exception as error:  # doctor must finish whatever a vendor or plug-in does
        return BackendStatus(name, "", (), f"broken: {type(error).__name__}: {error}")


def _plugins() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points  # 30 ms that only those who look for plug-ins pay

    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name not in BUILTIN}
