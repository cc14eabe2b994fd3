"""What a TensorRT module is: its flavour and version, its one logger, its plugins."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from edgeseg.backends.trt_layers import TABLE
from edgeseg.errors import BackendError

_OLDEST = (8, 5)


@dataclass(frozen=True, slots=True)
class Flavour:
    """Which TensorRT a module is; `strong` where precision is what the graph's types say and not flags."""

    name: str
    version: str
    strong: bool

    @property
    def rtx(self) -> bool:
        """TensorRT for RTX: compiles ahead of time, for any GPU of its list."""
        return self.name == "tensorrt_rtx"

    @property
    def title(self) -> str:
        """For messages: "TensorRT 10.3.0"."""
        return f"TensorRT{' for RTX' * self.rtx} {self.version}"


def flavour_of(trt: Any) -> Flavour:
    """Raises BackendError for a TensorRT older than 8.5, whose runner is another one."""
    name, version = trt.__name__, str(trt.__version__)
    major, minor = (int(part) for part in version.split(".")[:2])
    rtx = name == "tensorrt_rtx"
    if not rtx and (major, minor) < _OLDEST:
        raise BackendError(f"TensorRT {version} is too old: edgeseg speaks 8.5 and later (JetPack 6 has 8.6 or 10.3)")
    return Flavour(name, version, rtx or major >= 11)


def major_of(flavour: Flavour) -> int:
    """8, 10, 11; of TensorRT for RTX its own count, from 1 on."""
    return int(flavour.version.partition(".")[0])


@functools.cache
def logger_of(trt: Any) -> Any:
    """The one ILogger of the process, as TensorRT goes on using the first that it was given.

    `.errors` holds what it said of errors and `.layers` the builder's table of layers; `begin` empties both.
    """
    severity = trt.ILogger.Severity

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.begin()

        def begin(self) -> None:
            self.errors: list[str] = []
            self.layers = ""

        def log(self, level: Any, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                self.errors.append(" ".join(message.split()))
            elif message.startswith(TABLE):
                self.layers = message

        @property
        def reason(self) -> str:
            """The first error since `begin`: it is the cause, the others its consequences."""
            return self.errors[0] if self.errors else "it does not say why"

    return Log()


def register_plugins(trt: Any, logger: Any) -> None:
    """TensorRT's own plugins, which some operators are made of before 10.0; engines need them too."""
    if hasattr(trt, "init_libnvinfer_plugins"):
        trt.init_libnvinfer_plugins(logger, "")
