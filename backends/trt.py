"""TensorRT from 8.5 to 11, and TensorRT for RTX: engines from a checked cache, built where there is none."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from edgeseg._terminal import status
from edgeseg.backends import nvidia
from edgeseg.backends.base import Backend, Device, Options, Session
from edgeseg.backends.cudart import Cuda, CudaDevice
from edgeseg.backends.engines import EngineKey, EngineStore
from edgeseg.backends.trt_build import BuildJob, Built, build, flavour_of, logger_of, refuse_bad_options
from edgeseg.backends.trt_session import EngineRefused, TensorRTSession
from edgeseg.errors import BackendError, BackendMissing, DeviceError
from edgeseg.types import Encoding, Model, Precision

_log = logging.getLogger("edgeseg")
_SIGNED = "TensorRT takes signed levels without zero points, and float biases, only"


def _vendor() -> Any:
    """The installed TensorRT, the full one first; EDGESEG_TENSORRT names one where both are here."""
    wanted = os.environ.get("EDGESEG_TENSORRT", "")
    if wanted not in ("", "tensorrt", "tensorrt_rtx"):
        raise BackendError(f"EDGESEG_TENSORRT is {wanted!r}: set it to tensorrt or tensorrt_rtx, or not at all")
    if wanted != "tensorrt_rtx":
        try:
            import tensorrt

            return tensorrt
        except ModuleNotFoundError as error:
            if error.name != "tensorrt" or wanted:
                raise
    import tensorrt_rtx

    return tensorrt_rtx


@dataclass(frozen=True, slots=True)
class Engine:
    """A serialised engine; `built` is how it was, None where the cache had it."""

    plan: bytes
    built: Built | None = None


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
        kind, index = _place(device)
        self.refuse_encoding(model)
        # Without a driver TensorRT's own objects end the process, so CUDA is asked first.
        cuda = self._find_cuda()
        gpus = {gpu.index: gpu for gpu in cuda.devices()}
        gpu = gpus.get(index if kind == "gpu" else 0)
        if gpu is None:
            raise DeviceError(f"no device {device!r} here: there is {', '.join(f'gpu.{known}' for known in gpus)}")
        cuda.use(gpu.index)
        job = BuildJob(model, options, index if kind == "dla" else None)
        facts = self._facts(job)
        if self._flavour.rtx:  # whose engines depend on nothing else of the place
            job = _for_target(job, gpu)
        else:
            facts |= _place_facts(job, gpu, cuda)
        engine = self._engine(job, cache, facts)
        try:
            return TensorRTSession(self._trt, cuda, gpu, device, engine.plan, job)
        except EngineRefused as error:
            if engine.built is not None:
                raise
            told = f"the engine of {model.path.name} in {cache} is unusable ({error}): it is built again"
            warnings.warn(told, RuntimeWarning, stacklevel=2)
        engine = self._engine(job, cache, facts, anew=True)
        return TensorRTSession(self._trt, cuda, gpu, device, engine.plan, job)

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
            doing = f"{self._flavour.title} compiles {job.model.path.name}"
            compile_it = functools.partial(build, self._trt, job, tell=lambda step: tell(f"{doing}: {step}"))
            if cache is None:
                built = compile_it()
                return Engine(built.plan, built)
            store, key = EngineStore(cache), EngineKey(facts, job.options.build.targets, _notes(job.model))
            if not anew and (found := store.find(key)) is not None:
                return Engine(found)
            # What one build measured of this GPU's kernels spares the next ones most of their time.
            timings = EngineStore(cache.parent / "timing")
            measured = EngineKey({name: facts[name] for name in ("tensorrt", "gpu", "driver") if name in facts})
            with store.building(tell):
                if not anew and (found := store.find(key)) is not None:  # another process was quicker
                    return Engine(found)
                if why := store.why_not(key):
                    _log.info("no engine for %s in %s: %s", job.model.path.name, cache, why)
                tell(doing)
                before = timings.find(measured)
                built = compile_it(before)
                store.add(key, built.plan)
                if built.timing is not None and built.timing != before:
                    timings.add(measured, built.timing)
        return Engine(built.plan, built)

    def _facts(self, job: BuildJob) -> dict[str, str]:
        """What must be equal for an engine to serve, wherever it was built."""
        build, model = job.options.build, job.model
        return {
            "model": model.digest,
            "tensorrt": self.version,
            "precision": job.options.precision,
            "batch": f"1 to {build.max_batch}" if model.batch is None else str(model.batch),
            "workspace": str(build.workspace_bytes or "all"),
            "optimization level": str(build.optimization_level if build.optimization_level is not None else "default"),
            "hardware compatible": str(build.hardware_compatible),
            "version compatible": str(build.version_compatible),
        }


def _notes(model: Model) -> dict[str, str]:
    """For people who look at the cache."""
    return {"file": model.path.name, "bundle": model.path.parent.name}


def _place(device: str) -> tuple[str, int]:
    kind, _, index = device.partition(".")
    if kind not in ("gpu", "dla") or (index and not index.isdecimal()):
        raise DeviceError(f"backend tensorrt has no device {device!r}: it runs on gpu, gpu.1, dla.0 and the like")
    return kind, int(index or 0)


def _target(gpu: CudaDevice) -> str:
    return "sm_{}{}".format(*gpu.compute_capability)


def _for_target(job: BuildJob, gpu: CudaDevice) -> BuildJob:
    build = dataclasses.replace(job.options.build, targets=job.options.build.targets or (_target(gpu),))
    return dataclasses.replace(job, options=dataclasses.replace(job.options, build=build))


def _place_facts(job: BuildJob, gpu: CudaDevice, cuda: Cuda) -> dict[str, str]:
    """What an engine depends on beyond its recipe."""
    machine = nvidia.facts()
    exact = f"{gpu.name}, {_target(gpu)}, {gpu.sm_count} SMs"
    return {
        "gpu": "Ampere or newer" if job.options.build.hardware_compatible else exact,
        "driver": f"{machine.driver or machine.l4t}, CUDA {'.'.join(map(str, cuda.driver_version))}",
        "dla": str(job.dla_core if job.dla_core is not None else "none"),
    }
