"""The contract between edgeseg and a runtime: two methods on a backend, one on a session."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from edgeseg.errors import BackendError, InputError
from edgeseg.types import Batch, Encoding, Logits, Model, Precision


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
class BuildOptions:
    """What only a backend that compiles for minutes knows: TensorRT. The others refuse what is not the default.

    `max_batch` is the largest batch of a graph that takes any; `workspace_bytes` limits the builder's scratch memory
    (None: the device's); `optimization_level` 0 to 5 trades build time for speed (None: TensorRT's 3).
    `hardware_compatible` engines run on every newer GPU, `version_compatible` ones on newer runtimes of the same major
    version, both somewhat slower. `targets` are compute capabilities to compile for where no GPU is ("sm_86"; TensorRT
    for RTX only).
    """

    max_batch: int = 1
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises InputError naming the option and its value."""
        for name, least, most in (
            ("max_batch", 1, 1 << 20),
            ("workspace_bytes", 1 << 20, 1 << 50),
            ("optimization_level", 0, 5),
        ):
            value = getattr(self, name)
            if value is None and name != "max_batch":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise InputError(f"{name} is {value!r}: give a whole number from {least} to {most}")
        wrong = [one for one in self.targets if not (isinstance(one, str) and re.fullmatch(r"sm_\d+", one))]
        if isinstance(self.targets, str) or wrong:
            raise InputError(f"targets is {self.targets!r}: give compute capabilities as ('sm_86', 'sm_89')")


@dataclass(frozen=True, slots=True)
class Options:
    """How to run: CPU `threads` (0: the runtime's choice), the arithmetic `precision`, and how to `build`."""

    precision: Precision = "fp32"
    threads: int = 0
    build: BuildOptions = BuildOptions()


@dataclass(frozen=True, slots=True)
class Kept:
    """What of the cache a session is: its files, and whether they were `found` there or written when it was opened."""

    files: tuple[Path, ...]
    found: bool


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


@dataclass(frozen=True, slots=True)
class ExecutedLayer:
    """One operation as the runtime executes it, after its own fusing and folding.

    `kind` is the runtime's word for it. `precision` is what it computes in and `writes` what it hands on: "int8"
    (signed or not), "fp32", "fp16", "bf16", or the runtime's word for another type. `macs` are its multiply-accumulates
    in one run, those that meet padding included; `elapsed_ns` is its time, None where the runtime does not say. A run
    is one image, or the batch that the graph is made for.
    """

    name: str
    kind: str
    precision: str
    writes: str
    macs: int = 0
    elapsed_ns: int | None = None


class Session(ABC):
    """One compiled network on one device. Safe to call from one thread at a time."""

    reads_gpu: ClassVar[bool] = False
    """Whether `run` also takes a batch, or one image (h, w, 3), in its GPU's memory (DLPack or CUDA's interface)."""

    kept: Kept | None = None
    """The cache's part in this session; None where nothing of it is kept."""

    @abstractmethod
    def run(self, batch: Batch) -> Logits:
        """uint8 (N, h, w, 3), C-contiguous, maybe read-only, to float32 (N, C, h', w'), writable, the caller's own.

        Raises BackendError in one line where the runtime fails, naming the shape where the batch has another one.
        """

    def describe(self) -> SessionInfo:
        """Runtime and driver versions, device name, executed precision."""
        return SessionInfo(type(self).__name__, "", "", "", "", 0)

    def layers(self) -> tuple[ExecutedLayer, ...]:
        """What the runtime really executes in one run, in order; empty where it does not say.

        May take seconds: it can compile the network once more and profile a few runs. Raises BackendError in one line.
        """
        return ()

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
    encodings: ClassVar[tuple[Encoding, ...]] = ("cpu",)
    """The int8 encodings that this runtime computes rightly and fast, best first; `open` refuses the others."""
    refusals: ClassVar[Mapping[Encoding, str]] = {}
    """Why it does not take the other encodings, in a few words each."""
    half_graphs: bool = False
    """Whether fp16 needs a graph written in float16; else the backend computes the float32 one so by itself."""
    builds: ClassVar[bool] = False
    """Whether it compiles for minutes, takes `BuildOptions`, and its compiled networks are worth keeping."""
    default_device: ClassVar[str] = "cpu"
    """The device where none is named."""
    float_precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)
    """What its default device computes a float32 graph in, bf16 apart."""

    @abstractmethod
    def devices(self) -> list[Device]:
        """Every device this runtime knows of on this machine, the unusable ones with the reason."""

    @abstractmethod
    def open(self, model: Model, device: str, options: Options, cache: Path | None) -> Session:
        """Compile `model` for `device`; `cache` is a directory (to be made) for this model's compiled blobs, or None.

        Raises DeviceError naming the device if it is not here, BackendError naming the file where the runtime refuses
        the model or the options, or where the model's encoding is none of `encodings` (see `refuse_encoding`).
        """

    def refuse_device(self, device: str) -> None:
        """Raise DeviceError where `device` cannot be used, before anything is prepared for it; `open` does so too."""

    def computes_bf16(self, device: str) -> bool:
        """Whether `device` computes a float32 graph in bfloat16, faster than in float32, if asked to by name."""
        return False

    def refuse_precision(self, precision: Precision, device: str) -> None:
        """Raise BackendError, saying what to do, for bf16 where `device` does not compute it."""
        if precision == "bf16" and not self.computes_bf16(device):
            raise BackendError(
                f"backend {self.name} does not compute bf16 on {device} (OpenVINO does on CPUs that have it, as "
                "AVX512-BF16 or AMX): choose precision fp32"
            )

    def refuse_encoding(self, model: Model) -> None:
        """Raise BackendError, saying why and what to do, unless the model is float or in one of `encodings`."""
        if model.encoding == "float" or model.encoding in self.encodings:
            return
        raise BackendError(
            f"backend {self.name} refuses {model.path.name}, whose encoding is {model.encoding}: "
            f"{self.refusal(model.encoding)}; use the encoding {' or '.join(self.encodings)} (`edgeseg calibrate`)"
        )

    def refusal(self, encoding: Encoding) -> str:
        """Why this backend does not take an encoding."""
        return self.refusals.get(encoding, f"it takes {', '.join(self.encodings) or 'no int8'}")
