"""The contract between edgeseg and a runtime: two methods on a backend, one on a session."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from edgeseg.types import Batch, Logits, Model, Precision


@dataclass(frozen=True, slots=True)
class Device:
    """One device of a backend. `name` is what `load(device=...)` takes, in lower case.

    `reason` is empty where the device can be used; else it says why not and what to install.
    """

    name: str
    description: str
    reason: str = ""

    @property
    def available(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True)
class Options:
    """How to run: CPU `threads` (0: the runtime's choice) and the arithmetic `precision` to execute with."""

    precision: Precision = "fp32"
    threads: int = 0


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What really runs: `precision` as the runtime reports it executed, `details` whatever else helps a report."""

    backend: str
    runtime: str
    device: str
    device_name: str
    precision: str
    threads: int
    details: dict[str, str] = field(default_factory=dict)


class Session(ABC):
    """One compiled network on one device. Safe to call from one thread at a time."""

    @abstractmethod
    def run(self, batch: Batch) -> Logits:
        """uint8 (N, h, w, 3), C-contiguous, maybe read-only, to float32 (N, C, h', w'), writable, the caller's own.

        Raises BackendError in one line where the runtime fails, naming the shape where the batch has another one.
        """

    def describe(self) -> SessionInfo:
        """Runtime and driver versions, device name, executed precision."""
        return SessionInfo(type(self).__name__, "", "", "", "", 0)

    def close(self) -> None:
        """Release what the session holds; calling it twice is fine, calling `run` afterwards is not."""

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Backend(ABC):
    """One runtime. Making one costs nothing; its module imports the vendor's package.

    `name` is lower case and the one it is asked for by; `version` names the runtime and its version.
    `edgeseg.testing.BackendConformance` tests all that is promised here.
    """

    name: str
    version: str
    self_test: bool = True
    """Whether loading runs a golden frame first; False where the backend is itself the definition."""

    @abstractmethod
    def devices(self) -> list[Device]:
        """Every device this runtime knows of on this machine, the unusable ones with the reason."""

    @abstractmethod
    def open(self, model: Model, device: str, options: Options, cache: Path | None) -> Session:
        """Compile `model` for `device`; `cache` is a directory (to be made) for this model's compiled blobs, or None.

        Raises DeviceError naming the device if it is not here, BackendError naming the file where the runtime refuses
        the model or the options.
        """
