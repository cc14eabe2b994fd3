"""Which configurations a bundle and a machine offer, and opening them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from edgeseg import registry
from edgeseg.backends.base import Backend
from edgeseg.benchmarks.raw import open_raw
from edgeseg.benchmarks.results import Configuration
from edgeseg.benchmarks.sampling import Contender
from edgeseg.bundle import Bundle
from edgeseg.errors import BackendError, BackendMissing, BundleError, EdgesegError, InputError, one_line
from edgeseg.inspection import graphs
from edgeseg.inspection.report import inspect
from edgeseg.loading import choose_stride, device_kind, load, plan_for
from edgeseg.manifest import Variant
from edgeseg.preprocess import Preprocessor
from edgeseg.segmenter import Segmenter
from edgeseg.types import PRECISIONS, Image, Precision

Cache = str | Path | Literal["auto"] | None
"""Where compiled networks are kept, as `load` takes it."""
_ORACLES = ("reference", "simulate")


@dataclass(frozen=True, slots=True)
class Cell:
    """One configuration, opened; or why it cannot be."""

    configuration: Configuration
    contender: Contender | None = None
    failure: str = ""


def grid(
    bundle: Bundle,
    output_strides: Sequence[int] | None,
    backends: Sequence[str] | None,
    precisions: Sequence[Precision] | None,
    threads: int,
    bf16: bool = False,
) -> tuple[Configuration, ...]:
    """Every combination that the bundle and the backends' default devices offer.

    None: all strides; every backend that is here, but not those that only judge; every precision that the bundle has
    and the device computes, bf16 only with `bf16`. Raises InputError, BundleError or BackendError where something named
    is not there.
    """
    for name, chosen in (("output_strides", output_strides), ("backends", backends), ("precisions", precisions)):
        if chosen is not None and not chosen:
            raise InputError(f"{name} is empty: name one, or leave it out for all")
    if threads < 0:
        raise InputError(f"threads is {threads}: give 1 or more, or 0 for the runtime's choice")
    unknown = set(precisions or ()) - set(PRECISIONS)
    if unknown:
        raise InputError(f"precision is {min(unknown)!r}: choose among {', '.join(PRECISIONS)}")
    strides = [choose_stride(bundle, stride) for stride in output_strides or bundle.output_strides]
    runtimes = _present() if backends is None else [registry.get(name) for name in dict.fromkeys(backends)]
    found, refusals = list[Configuration](), list[EdgesegError]()
    for stride in dict.fromkeys(strides):
        for runtime in runtimes:
            device = runtime.default_device
            faster: tuple[Precision, ...] = ("bf16",) if bf16 and runtime.computes_bf16(device) else ()
            for precision in dict.fromkeys(precisions or (*runtime.float_precisions, *faster, "int8")):
                try:
                    plan = plan_for(bundle, stride, runtime, device, precision)
                except (BackendError, BundleError) as refusal:
                    refusals.append(refusal)
                    continue
                encoding = plan.variant.encoding
                found.append(Configuration(runtime.name, device, stride, plan.precision, encoding, threads))
    if not found:
        raise refusals[0]
    return tuple(found)


def load_configuration(bundle: Bundle, configuration: Configuration, cache: Cache) -> Segmenter:
    """Exactly this configuration of a bundle; errors as of `load`."""
    return load(
        bundle.path,
        backend=configuration.backend,
        device=configuration.device,
        precision=cast(Precision, configuration.precision),
        output_stride=configuration.output_stride,
        threads=configuration.threads,
        cache=cache,
    )


def open_cell(bundle: Bundle, configuration: Configuration, frame: Image, cache: Cache) -> Cell:
    """Load a configuration and its raw runner, and run each once; what fails becomes the cell's `failure`."""
    segmenter = None
    try:
        segmenter = load_configuration(bundle, configuration, cache)
        segmenter(frame)
        batch = Preprocessor(bundle.manifest.preprocess).prepare(frame)
        raw = open_raw(bundle.file(segmenter.variant.file), segmenter.info, batch, segmenter.kept)
        if raw is not None:
            raw()
    except EdgesegError as error:
        if segmenter is not None:
            segmenter.close()
        return Cell(configuration, failure=str(error))
    return Cell(configuration, Contender(segmenter, raw))


def multiply_accumulates(bundle: Bundle, output_stride: int) -> int:
    """Of one frame, those on padding included; 0 where the package onnx is not here to count them."""
    try:
        return inspect(graphs.from_bundle(bundle, output_stride=output_stride)).macs
    except EdgesegError:
        return 0


def file_bytes(bundle: Bundle, variant: Variant) -> int:
    """What this variant alone needs on a disk: its graph, and its file of weights, which other variants may share."""
    return sum(bundle.manifest.files[name].bytes for name in (variant.file, variant.weights) if name)


def _present() -> list[Backend]:
    found = []
    for name in registry.names():
        if name in _ORACLES:
            continue
        state = registry.status(name)
        if state.reason.startswith("broken"):  # installed, and left out it would not be missed
            raise BackendError(f"backend {name} is {one_line(state.reason)}: mend it, or name the others (--backend)")
        devices = state.devices
        kinds = {device_kind(device.name) for device in devices if device.available}
        if kinds and (backend := registry.get(name)).default_device in kinds:
            found.append(backend)
    if not found:
        raise BackendMissing('no backend is here to measure: pip install "edgeseg[openvino]", or see `edgeseg doctor`')
    return found
