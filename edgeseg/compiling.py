"""Compiling ahead of time: what the first load of a bundle would wait for, done before, into the cache."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from edgeseg import caching, registry
from edgeseg.backends.base import BuildOptions, ExecutedLayer, Options
from edgeseg.bundle import Bundle
from edgeseg.errors import BackendError, InputError
from edgeseg.loading import choose_stride, load, plan_for
from edgeseg.opening import blobs_folder, cache_folder, explained, graph_for
from edgeseg.types import Precision

if TYPE_CHECKING:
    from edgeseg.backends.trt import TensorRTBackend


@dataclass(frozen=True, slots=True)
class Compiled:
    """One network in the cache. `places` is the device, or the compute capabilities it was compiled for.

    `built` is False where the cache had it already; `proven` where a golden frame ran on the device. `layers` is what
    the compiler made of it, where it says so and compiled now.
    """

    file: str
    output_stride: int
    precision: Precision
    backend: str
    places: tuple[str, ...]
    built: bool
    proven: bool
    elapsed_ns: int
    bytes: int
    layers: tuple[ExecutedLayer, ...] = ()


def compile_bundle(
    path: str | Path,
    *,
    backend: str = "auto",
    device: str = "auto",
    precision: Precision | Literal["auto"] = "auto",
    output_strides: Sequence[int] | None = None,
    build: BuildOptions = BuildOptions(),  # noqa: B008 (frozen)
    threads: int = 0,
    cache: str | Path | Literal["auto"] = "auto",
    progress: Callable[[str], None] = lambda step: None,
) -> tuple[Compiled, ...]:
    """Compile a bundle's networks into the cache, where `load` with the same arguments finds them.

    All output strides unless some are named; the other arguments are those of `load`. On a device here, each runs a
    golden frame. With `build.targets` TensorRT for RTX compiles for GPUs that need not be here, and nothing runs.

    Raises BackendError naming the file and what the compiler says, also for a backend that keeps nothing compiled;
    BundleError and InputError as `load`.
    """
    bundle = Bundle.open(path, verify=False)
    strides = bundle.output_strides if output_strides is None else tuple(output_strides)
    for stride in strides:
        choose_stride(bundle, stride)
    if build.targets and backend not in ("auto", "tensorrt"):
        raise InputError(f"backend {backend} does not compile for {', '.join(build.targets)}: tensorrt does")
    made = []
    for stride in strides:
        progress(f"output stride {stride}")
        if build.targets:
            made.append(_for_targets(bundle, stride, precision, Options("fp32", threads, build), cache))
        else:
            made.append(_here(bundle, stride, backend, device, precision, Options("fp32", threads, build), cache))
    return tuple(made)


def _here(
    bundle: Bundle,
    stride: int,
    backend: str,
    device: str,
    precision: Precision | Literal["auto"],
    options: Options,
    cache: str | Path | Literal["auto"],
) -> Compiled:
    begin = time.perf_counter_ns()
    with load(
        bundle.path,
        backend=backend,
        device=device,
        precision=precision,
        output_stride=stride,
        threads=options.threads,
        cache=cache,
        build=options.build,
    ) as segmenter:
        info, variant, kept = segmenter.info, segmenter.variant, segmenter.kept
    if kept is None:
        raise BackendError(
            f"nothing was kept of what backend {info.backend} compiled of {variant.file}: it keeps nothing, or "
            f"{cache_folder(cache) or 'the cache'} cannot be written"
        )
    return Compiled(
        variant.file,
        stride,
        cast(Precision, info.precision),
        info.backend,
        (info.device,),
        built=not kept.found,
        proven=True,
        elapsed_ns=time.perf_counter_ns() - begin,
        bytes=sum(path.stat().st_size for path in kept.files),
    )


def _for_targets(
    bundle: Bundle,
    stride: int,
    precision: Precision | Literal["auto"],
    options: Options,
    cache: str | Path | Literal["auto"],
) -> Compiled:
    backend = cast("TensorRTBackend", registry.get("tensorrt"))
    plan = plan_for(bundle, stride, backend, "gpu", precision)
    options = dataclasses.replace(options, precision=plan.precision)
    model = bundle.model(plan.variant)
    blobs = blobs_folder(cache_folder(cache), backend.name, model)
    if blobs is None:
        raise BackendError(f"no cache to compile {plan.variant.file} into: name another directory")
    begin = time.perf_counter_ns()
    with explained(backend, model), graph_for(backend, model, options, blobs) as graph:
        engine = backend.compile_for(graph, options, blobs)
    if engine.kept is None:
        raise BackendError(f"{plan.variant.file} was compiled and not kept: {blobs.parent.parent} cannot be written")
    caching.prune(blobs.parent.parent, keep=blobs)
    return Compiled(
        plan.variant.file,
        stride,
        plan.precision,
        backend.name,
        options.build.targets,
        built=engine.built is not None,
        proven=False,
        elapsed_ns=time.perf_counter_ns() - begin,
        bytes=len(engine.plan),
        layers=engine.built.layers if engine.built is not None else (),
    )
