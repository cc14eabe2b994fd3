"""From an ONNX file to a TensorRT engine: one builder for TensorRT 8.5 to 11 and TensorRT for RTX.

The module is handed in. Nothing in it raises: what fails returns False, None or -1 and tells the logger why.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from edgeseg.backends.base import ExecutedLayer, Options
from edgeseg.backends.trt_layers import executed_layers
from edgeseg.backends.trt_module import Flavour, flavour_of, logger_of, major_of, register_plugins
from edgeseg.errors import BackendError, DeviceError
from edgeseg.types import Model

_MB = 1 << 20
_EXPLICIT_DLA = 11
"""The first major version whose DLA may run explicit quantization; before, NVIDIA says, it takes none."""
RECIPE = 1
"""Changes with what this file asks of the builder: engines built otherwise are not taken from a cache."""


@dataclass(frozen=True, slots=True)
class BuildJob:
    """Everything a build depends on; `dla_core` None is the GPU."""

    model: Model
    options: Options
    dla_core: int | None = None


def refuse_bad_options(job: BuildJob) -> None:
    """Raise BackendError for build options that make no sense for this graph, before any cache is asked."""
    model, most = job.model, job.options.build.max_batch
    if model.batch is not None and most not in (1, model.batch):
        raise BackendError(
            f"{model.name} is made for batch {model.batch}, not for up to {most}: export it with --dynamic-batch"
        )


@dataclass(frozen=True, slots=True)
class Built:
    """A serialised engine, the timing cache after its build (None: this TensorRT keeps none), and the layers in it.

    `layers` is empty where the builder does not tell them.
    """

    plan: bytes
    timing: bytes | None
    layers: tuple[ExecutedLayer, ...]


def build(
    trt: Any, job: BuildJob, timing: bytes | None = None, tell: Callable[[str], None] = lambda step: None
) -> Built:
    """Compile the graph; `timing` is an earlier build's cache, `tell` hears the builder's phases.

    Takes seconds to many minutes. Except for `options.build.targets` a GPU and its driver must be there, which the
    caller has made sure of: TensorRT crashes without. Raises BackendError naming the file and the layer or option,
    DeviceError for a DLA core that is not there.
    """
    flavour, logger, model = flavour_of(trt), logger_of(trt), job.model
    logger.begin()
    register_plugins(trt, logger)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # pybind11: factory function returned nullptr
        raise BackendError(f"{flavour.title} cannot make a builder: {logger.reason}") from error
    legacy = major_of(flavour) < 10 and not flavour.rtx
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH) if legacy else 0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(os.fspath(model.path)):
        raise BackendError(f"{flavour.title} cannot run {model.name}: {_parser_says(parser) or logger.reason}")
    config = builder.create_builder_config()
    _set_precision(trt, config, flavour, job)
    _set_shapes(builder, network, config, job, logger)
    _set_device(trt, builder, config, flavour, job)
    _set_options(trt, config, flavour, job)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names of layers: neither size nor time
    cache = _set_timing_cache(config, flavour, timing)
    with _held_interrupts() as interrupted:
        monitor = _make_monitor(trt, tell, interrupted)
        if monitor is not None:
            config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        workspace = job.options.build.workspace_bytes
        limited = f" (with a workspace of {workspace / _MB:g} MB)" if workspace is not None else ""
        raise BackendError(f"{flavour.title} cannot compile {model.name}{limited}: {logger.reason}")
    measured = bytes(config.get_timing_cache().serialize()) if cache is not None else None
    layers = executed_layers(logger.layers)
    if job.options.precision == "int8" and layers and not any(layer.precision == "int8" for layer in layers):
        raise BackendError(
            f"{flavour.title} compiled nothing of {model.name} in int8 for {', '.join(job.options.build.targets)}: "
            "leave out the GPUs that have none (sm_75), or choose precision fp16"
        )
    return Built(bytes(plan), measured, layers)


@contextlib.contextmanager
def _held_interrupts() -> Iterator[threading.Event]:
    """Ctrl-C sets a flag, as an exception in a callback would be lost in C++; raises it in the end.

    A second Ctrl-C ends the process. In other threads than the main one nothing is changed.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: object) -> None:
        asked.set()
        signal.signal(number, signal.SIG_DFL)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
    if asked.is_set():
        raise KeyboardInterrupt


def _parser_says(parser: Any) -> str:
    """The parser's first error with the layer's name, where this version tells it."""
    if not parser.num_errors:
        return ""
    error = parser.get_error(0)
    text = " ".join(str(error.desc()).split())
    text = "not supported" if text in ("", "false") else text  # the text of the parser's own assertion
    if not hasattr(error, "node_name"):  # 8.x: the number only
        return f"node {error.node()} of the graph: {text}"
    return f"layer {error.node_name()} ({error.node_operator()}): {text}"


def _set_precision(trt: Any, config: Any, flavour: Flavour, job: BuildJob) -> None:
    precision = job.options.precision
    if precision == "fp32":
        # TensorRT's default: 10-bit mantissas in what is asked for as fp32.
        config.clear_flag(trt.BuilderFlag.TF32)
    if flavour.strong:
        return
    if precision in ("fp16", "int8"):  # beside int8, what is not quantized may run in fp16
        config.set_flag(trt.BuilderFlag.FP16)
    if precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)


def _set_shapes(builder: Any, network: Any, config: Any, job: BuildJob, logger: Any) -> None:
    model, most = job.model, job.options.build.max_batch
    if model.batch is not None:
        return
    profile = builder.create_optimization_profile()
    one, full = (1, *model.input_size, 3), (most, *model.input_size, 3)
    profile.set_shape(network.get_input(0).name, one, full, full)
    if config.add_optimization_profile(profile) < 0:
        raise BackendError(f"TensorRT refuses batches of 1 to {most} for {model.name}: {logger.reason}")


def _set_device(trt: Any, builder: Any, config: Any, flavour: Flavour, job: BuildJob) -> None:
    build = job.options.build
    if build.targets:
        if not flavour.rtx:
            raise BackendError(
                f"{flavour.title} compiles for the GPU of its own machine, not for {', '.join(build.targets)}: compile "
                "on that device; only TensorRT for RTX compiles for others"
            )
        config.num_compute_capabilities = len(build.targets)
        for index, target in enumerate(build.targets):
            config.set_compute_capability(_capability(trt, target), index)
    if job.dla_core is None:
        return
    cores = builder.num_DLA_cores
    if job.dla_core >= cores:
        has = f"dla.0 to dla.{cores - 1}" if cores else "no DLA that this version serves"
        raise DeviceError(f"no device dla.{job.dla_core} for {flavour.title}: this machine has {has}; use gpu")
    if job.options.precision == "fp32":
        raise BackendError("a DLA computes fp16 and int8, not fp32: choose precision fp16")
    if job.options.precision == "int8" and major_of(flavour) < _EXPLICIT_DLA:
        raise BackendError(
            f"the DLA of {flavour.title} takes no explicit quantization, and would leave all to the GPU: choose fp16"
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = job.dla_core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _capability(trt: Any, target: str) -> Any:
    name = target.upper().replace("_", "")  # sm_86 -> SM86
    there = [known for known in vars(trt.ComputeCapability) if known.startswith("SM")]
    if name not in there:
        known = ", ".join(f"sm_{one[2:]}" for one in sorted(there, key=lambda one: int(one[2:])))
        raise BackendError(f"no compute capability {target!r} for {flavour_of(trt).title}: it compiles for {known}")
    return getattr(trt.ComputeCapability, name)


def _set_options(trt: Any, config: Any, flavour: Flavour, job: BuildJob) -> None:
    build = job.options.build
    if build.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, build.workspace_bytes)
    if build.optimization_level is not None:
        _need(config, "builder_optimization_level", "optimization_level", flavour)
        config.builder_optimization_level = build.optimization_level
    if build.hardware_compatible:
        if flavour.rtx:
            raise BackendError(f"{flavour.title} has no option hardware_compatible: name the targets instead")
        _need(config, "hardware_compatibility_level", "hardware_compatible", flavour)
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if build.version_compatible:
        if flavour.rtx:  # its lean runtime is not in the package
            raise BackendError(f"{flavour.title} has no option version_compatible: leave it out")
        _need(trt.BuilderFlag, "VERSION_COMPATIBLE", "version_compatible", flavour)
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)


def _need(owner: Any, name: str, option: str, flavour: Flavour) -> None:
    if not hasattr(owner, name):
        raise BackendError(f"{flavour.title} has no option {option}: leave it out, or use 8.6 and later")


def _set_timing_cache(config: Any, flavour: Flavour, timing: bytes | None) -> Any:
    if flavour.rtx:  # it measures nothing while it compiles
        return None
    for data in ([timing] if timing else []) + [b""]:  # an older one may be refused
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _make_monitor(trt: Any, tell: Callable[[str], None], interrupted: threading.Event) -> Any:
    """An IProgressMonitor that tells phases and ends the build on Ctrl-C; None before TensorRT 10."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            tell(f"{phase_name} {step + 1}/{self._steps.get(phase_name, step + 1)}")
            return not interrupted.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
