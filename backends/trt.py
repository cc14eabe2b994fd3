"""TensorRT from 8.5 to 11, and TensorRT for RTX: engines from a checked cache, built where there is none."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from edgeseg._terminal import status
from edgeseg.backends import nvidia
from edgeseg.backends.base import Backend, BuildOptions, Device, Kept, Options, Session
from edgeseg.backends.cudart import Cuda, CudaDevice
from edgeseg.backends.engines import EngineKey, EngineStore
from edgeseg.backends.trt_build import RECIPE, BuildJob, Built, build, refuse_bad_options
from edgeseg.backends.trt_module import flavour_of, logger_of, major_of
from edgeseg.backends.trt_session import EngineRefused, TensorRTSession
from edgeseg.errors import BackendError, BackendMissing, DeviceError
from edgeseg.types import Encoding, Model, Precision

_log = logging.getLogger("edgeseg")
_MODULES = ("tensorrt", "tensorrt_rtx")
_SIGNED = "TensorRT takes signed levels without zero points, and float biases, only"


def _vendor() -> Any:
    """The installed TensorRT, the full one first; EDGESEG_TENSORRT names one where both are here.

    Raises ModuleNotFoundError where there is none, BackendMissing where it is broken.
    """
    wanted = os.environ.get("EDGESEG_TENSORRT", "")
    if wanted not in ("", *_MODULES):
        raise BackendError(f"EDGESEG_TENSORRT is {wanted!r}: set it to {' or '.join(_MODULES)}, or not at all")
    for name in [wanted] if wanted else _MODULES:
        try:
            module = importlib.import_module(name)
            flavour_of(module)
        except ModuleNotFoundError as error:
            if error.name == name:
                continue
            raise _broken(name, error) from error
        except (ImportError, OSError, AttributeError) as error:
            raise _broken(name, error) from error
        return module
    raise ModuleNotFoundError(f"No module named {_MODULES[0]!r}", name=_MODULES[0])


def _broken(name: str, error: Exception) -> BackendMissing:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    advice = nvidia.install_hint(nvidia.facts(), broken=True)
    return BackendMissing(f"the package {name} is here but cannot be used ({reason}): {advice}")


@dataclass(frozen=True, slots=True)
class Engine:
    """A serialised engine; `built` is how it was, None where the cache had it; `kept` where it lies there."""

    plan: bytes
    built: Built | None = None
    kept: Kept | None = None


class TensorRTBackend(Backend):
    name = "tensorrt"
    builds: ClassVar[bool] = True
    default_device: ClassVar[str] = "gpu"
    float_precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16")
    refusals: ClassVar[Mapping[Encoding, str]] = {
        "cpu": _SIGNED,
        "tensorrt_fp16": "this TensorRT is not strongly typed: it wants flags and float32 graphs",
    }

    def __init__(self, trt: Any = None, cuda: Callable[[], Cuda] = Cuda.load) -> None:
        self._trt = _vendor() if trt is None else trt
        self._find_cuda = cuda
        self._flavour = flavour_of(self._trt)
        self.version = f"{self._flavour.name} {self._flavour.version}"
        self.half_graphs = self._flavour.strong
        self.encodings: tuple[Encoding, ...] = (  # type: ignore[misc]
            ("tensorrt_fp16", "tensorrt") if self._flavour.strong else ("tensorrt",)
        )

    def devices(self) -> list[Device]:
        try:
            cuda = self._find_cuda()
        except (BackendMissing, DeviceError) as error:
            return [Device("gpu", "NVIDIA GPU", str(error))]
        found = [
            Device(f"gpu.{gpu.index}", f"{gpu.name}, sm_{gpu.compute_capability[0]}{gpu.compute_capability[1]}")
            for gpu in cuda.devices()
        ]
        cores = self._trt.Runtime(logger_of(self._trt)).num_DLA_cores
        return found + [Device(f"dla.{core}", "NVIDIA deep learning accelerator") for core in range(cores)]

    def open(self, model: Model, device: str, options: Options, cache: Path | None) -> Session:
        cuda, gpu, dla_core = self._place(device)
        self.refuse_encoding(model)
        before = cuda.current()
        cuda.use(gpu.index)
        try:
            return self._session(cuda, gpu, device, BuildJob(model, options, dla_core), cache)
        finally:
            cuda.use(before)

    def refuse_device(self, device: str) -> None:
        self._place(device)

    def _place(self, device: str) -> tuple[Cuda, CudaDevice, int | None]:
        """CUDA, the GPU and the DLA's core; raises DeviceError, BackendMissing.

        Without a driver TensorRT's own objects end the process, so CUDA is asked first.
        """
        kind, _, number = device.partition(".")
        if kind not in ("gpu", "dla") or (number and not number.isdecimal()):
            raise DeviceError(f"backend tensorrt has no device {device!r}: it runs on gpu, gpu.1, dla.0 and the like")
        cuda, index = self._find_cuda(), int(number or 0)
        gpus = {gpu.index: gpu for gpu in cuda.devices()}
        gpu = gpus.get(index if kind == "gpu" else 0)
        if gpu is None:
            raise DeviceError(f"no device {device!r} here: there is {', '.join(f'gpu.{known}' for known in gpus)}")
        return cuda, gpu, index if kind == "dla" else None

    def _session(self, cuda: Cuda, gpu: CudaDevice, device: str, job: BuildJob, cache: Path | None) -> Session:
        facts = self._facts(job)
        if self._flavour.rtx:  # whose engines depend on nothing else of the place
            job = _for_target(job, gpu)
        else:
            facts |= _place_facts(job, gpu, cuda)
        engine = self._engine(job, cache, facts)
        try:
            return TensorRTSession(self._trt, cuda, gpu, device, engine.plan, job, engine.kept)
        except EngineRefused as error:
            if engine.built is not None:
                raise
            told = f"the engine of {job.model.name} in {cache} is unusable ({error}): it is built again"
            warnings.warn(told, RuntimeWarning, stacklevel=2)
        engine = self._engine(job, cache, facts, anew=True)
        return TensorRTSession(self._trt, cuda, gpu, device, engine.plan, job, engine.kept)

    def compile_for(self, model: Model, options: Options, cache: Path) -> Engine:
        """Compile for `options.build.targets`, GPUs that need not be here, into the cache (TensorRT for RTX only).

        Raises BackendError naming the target or the layer.
        """
        self.refuse_encoding(model)
        job = BuildJob(model, options)
        return self._engine(job, cache, self._facts(job))

    def _engine(self, job: BuildJob, cache: Path | None, facts: Mapping[str, str], anew: bool = False) -> Engine:
        """From the cache, or built (with `anew` in any case) and put there."""
        refuse_bad_options(job)
        with status() as tell:
            doing = f"{self._flavour.title} compiles {job.model.name}"
            compile_it = functools.partial(build, self._trt, job, tell=lambda step: tell(f"{doing}: {step}"))
            if cache is None:
                built = compile_it()
                return Engine(built.plan, built)
            store = EngineStore(cache)
            key = EngineKey(facts, job.options.build.targets, _notes(job.model), _tuning(job.options.build))
            if not anew and (found := store.locate(key)) is not None:
                return Engine(found[1], None, Kept(found[:1], found=True))
            # What one build measured of this GPU's kernels spares the next ones most of their time.
            timings = EngineStore(cache.parent / "timing")
            measured = EngineKey({name: facts[name] for name in ("tensorrt", "gpu", "driver") if name in facts})
            with store.building(tell):
                if not anew and (found := store.locate(key)) is not None:  # another process was quicker
                    return Engine(found[1], None, Kept(found[:1], found=True))
                if why := store.why_not(key):
                    _log.info("no engine for %s in %s: %s", job.model.name, cache, why)
                tell(doing)
                before = timings.find(measured)
                built = compile_it(before)
                path = store.add(key, built.plan)
                if built.timing is not None and built.timing != before:
                    timings.add(measured, built.timing)
        return Engine(built.plan, built, Kept((path,), found=False) if path else None)

    def _facts(self, job: BuildJob) -> dict[str, str]:
        """What must be equal for an engine to serve, wherever it was built."""
        build, model = job.options.build, job.model
        return {
            "model": model.digest,
            # engines of version-compatible builds serve newer versions of the same major one
            "tensorrt": f"{self._flavour.name} {major_of(self._flavour)}" if build.version_compatible else self.version,
            "precision": job.options.precision,
            "batch": f"1 to {build.max_batch}" if model.batch is None else str(model.batch),
            "hardware compatible": str(build.hardware_compatible),
            "version compatible": str(build.version_compatible),
            "recipe": str(RECIPE),
        }


def _tuning(build: BuildOptions) -> dict[str, str]:
    """What changes how an engine is found and not what it computes: an engine serves those who do not ask for it."""
    tuning = {"workspace": build.workspace_bytes, "optimization level": build.optimization_level}
    return {name: str(value) for name, value in tuning.items() if value is not None}


def _notes(model: Model) -> dict[str, str]:
    """For people who look at the cache."""
    return {"file": model.name, "bundle": model.bundle}


def _target(gpu: CudaDevice) -> str:
    return "sm_{}{}".format(*gpu.compute_capability)


def _for_target(job: BuildJob, gpu: CudaDevice) -> BuildJob:
    build = dataclasses.replace(job.options.build, targets=job.options.build.targets or (_target(gpu),))
    return dataclasses.replace(job, options=dataclasses.replace(job.options, build=build))


def _place_facts(job: BuildJob, gpu: CudaDevice, cuda: Cuda) -> dict[str, str]:
    """What an engine depends on beyond its recipe."""
    machine = nvidia.facts()
    exact = f"{gpu.name}, {_target(gpu)}, {gpu.sm_count} SMs"
    driver = f"{machine.driver or machine.l4t}, CUDA {'.'.join(map(str, cuda.driver_version))}"
    build = job.options.build
    return {
        "gpu": "Ampere or newer" if build.hardware_compatible else exact,
        "driver": "any" if build.hardware_compatible or build.version_compatible else driver,
        "dla": str(job.dla_core if job.dla_core is not None else "none"),
    }
