"""From a bundle to a running Segmenter: choose the variant, the backend and the device, and check the answer."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeseg import labels, registry
from edgeseg._machine import processor
from edgeseg.backends.base import Backend, BuildOptions, Options
from edgeseg.bundle import Bundle
from edgeseg.decode import usable_cpus
from edgeseg.errors import BackendError, BundleError, DeviceError, EdgesegError, InputError
from edgeseg.manifest import MIN_IMAGES, Tuned, Variant
from edgeseg.opening import cache_folder, open_session
from edgeseg.segmenter import Segmenter
from edgeseg.types import PRECISIONS, Precision

EMBEDDED = Path(__file__).parent / "data" / "camvid.edgeseg"
"""The bundle that ships with edgeseg: DeepLabV3-MobileNetV2, eleven street classes (model card in the README)."""

_DEFAULT_STRIDE = 16


@dataclass(frozen=True, slots=True)
class _Candidate:
    backend: str
    device: str


@dataclass(frozen=True, slots=True)
class Plan:
    """One variant to try, and what `Segmenter.choice` says of its precision."""

    variant: Variant
    precision: Precision
    said: str


def load(
    bundle_path: str | Path = EMBEDDED,
    *,
    backend: str = "auto",
    device: str = "auto",
    precision: Precision | Literal["auto"] = "auto",
    output_stride: int | None = None,
    classes: labels.Choice | None = None,
    threads: int = 0,
    cache: str | Path | Literal["auto"] | None = "auto",
    self_test: bool = True,
    build: BuildOptions = BuildOptions(),  # noqa: B008 (frozen)
) -> Segmenter:
    """Open a bundle on a backend and device, run one golden frame through it, and hand out the Segmenter.

    Where backend, device, precision, output stride and threads are all left to it, it takes what `edgeseg tune` has
    chosen on this very machine, if the bundle says so.

    `backend="auto"` tries `registry.AUTO_ORDER` for the kind of device ("auto" means the CPU, or with
    backend tensorrt the GPU) and falls back with a
    RuntimeWarning naming the reason; a backend that is named is the only one tried. `precision="auto"` is int8 where
    the bundle has a certificate that holds for this backend and kind of device (`manifest.Certificate`); else fp32,
    fp16 on an NPU or a DLA, which compute nothing finer. `precision="int8"` takes the first of the backend's encodings
    that the bundle has. `precision="bf16"`, only by name, is about twice as fast as fp32 on CPUs that have it.
    `output_stride=None` is 16, or the bundle's finest where it has no 16.
    `classes` keeps some (["road", "car"]) or merges ({"obstacle": ["car", "pole"]}). `threads` limits the network's
    CPU threads (0: the runtime's choice). `cache` is the directory for compiled blobs ("auto": the user's cache
    directory; None: no cache). `self_test` compares one golden frame with what it should give, which is the warm-up
    too and catches a runtime that computes silently wrong. `build` is for backends that compile for minutes.

    Raises BundleError, BackendError (BackendMissing, DeviceError, GoldenError) or InputError, each in one line.
    """
    bundle = Bundle.open(bundle_path, verify=False)
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"precision is {precision!r}: choose among auto, {', '.join(PRECISIONS)}")
    if threads < 0:
        raise InputError(f"threads is {threads}: give 1 or more, or 0 for the runtime's choice")
    chosen_labels = labels.choose(bundle.manifest.classes, classes)
    if (backend, device, precision, output_stride, threads) == ("auto", "auto", "auto", None, 0):
        tuned = tuned_here(bundle)
        if tuned is not None:
            try:
                segmenter = load(
                    bundle_path,
                    backend=tuned.backend,
                    device=tuned.device,
                    precision=tuned.precision,
                    output_stride=tuned.output_stride,
                    classes=classes,
                    threads=tuned.threads,
                    cache=cache,
                    self_test=self_test,
                    build=build,
                )
            except BackendError as error:
                warnings.warn(f"fell back from what was tuned here: {error}", RuntimeWarning, stacklevel=2)
            else:
                segmenter.choice = segmenter.choice.replace("backend as asked", f"tuned here on {tuned.when[:10]}")
                return segmenter
    stride = choose_stride(bundle, output_stride)
    if not isinstance(device, str):
        raise InputError(f"device is {device!r}: give its name, as 'cpu' or 'gpu.1'")
    device = device.lower()
    folder = cache_folder(cache)
    candidates, why = _candidates(backend, device)
    failures: list[tuple[str, BackendError]] = []
    for candidate in candidates:
        try:
            runtime = registry.get(candidate.backend)
            plans = _plans(bundle, stride, runtime, candidate, precision)
        except BackendError as error:
            failures.append((candidate.backend, error))
            continue
        reason = ""
        for plan in plans:
            name = candidate.backend + " int8" * (plan.precision == "int8" and precision == "auto")
            try:
                options = Options(plan.precision, threads, build)
                session = open_session(bundle, plan.variant, runtime, candidate.device, options, folder, self_test)
            except BackendError as error:
                failures.append((name, error))
                if isinstance(error, DeviceError):
                    break
                reason = f" (int8 is certified, but {str(error).partition(': ')[0]})"
                continue
            landed = f"{candidate.backend} {plan.precision}" if reason else name
            for failed, failure in failures:
                warnings.warn(f"fell back from {failed} to {landed}: {failure}", RuntimeWarning, stacklevel=2)
            choice = f"{candidate.backend} on {candidate.device}, {plan.said}{reason}, output stride {stride} ({why})"
            return Segmenter(session, bundle.manifest, plan.variant, chosen_labels, choice)
    if len(failures) == 1:
        raise failures[0][1]
    names: dict[str, list[str]] = {}
    for name, failure in failures:
        names.setdefault(str(failure).replace(f"backend {name}", "the backend"), []).append(name)
    reasons = "; ".join(f"{', '.join(failed)}: {reason}" for reason, failed in names.items())
    raise BackendError(f"no backend can run {bundle.path.name} on {candidates[0].device}: {reasons}")


def tuned_here(bundle: Bundle) -> Tuned | None:
    """What `edgeseg tune` has chosen for this bundle on this machine, None where it has not run here."""
    if not bundle.manifest.tuned:
        return None
    here = processor(), usable_cpus()
    return next((one for one in bundle.manifest.tuned if (one.processor, one.cores) == here), None)


def load_variant(
    bundle: Bundle,
    variant: Variant,
    *,
    backend: str,
    device: str = "cpu",
    precision: Precision | None = None,
    threads: int = 0,
    cache: str | Path | Literal["auto"] | None = "auto",
    self_test: bool = True,
) -> Segmenter:
    """Open exactly this variant on this backend and device; arguments and errors as of `load`.

    `precision=None` is what the device computes the variant in.
    """
    options, folder = Options(precision or executed_precision(variant, device), threads), cache_folder(cache)
    session = open_session(bundle, variant, registry.get(backend), device, options, folder, self_test)
    choice = f"{backend} on {device}, {variant.file} as asked"
    return Segmenter(session, bundle.manifest, variant, labels.choose(bundle.manifest.classes, None), choice)


def device_kind(device: str) -> str:
    """The kind of a device's name: gpu for gpu.1, auto for auto:gpu,cpu."""
    return device.partition(".")[0].partition(":")[0]


def _candidates(backend: str, device: str) -> tuple[list[_Candidate], str]:
    if backend != "auto":
        place = registry.get(backend).default_device if device == "auto" else device
        return [_Candidate(backend, place)], "backend as asked"
    place = "cpu" if device == "auto" else device
    kind = device_kind(place)
    order = registry.AUTO_ORDER.get(kind)
    if order is None:
        known = ", ".join(registry.AUTO_ORDER)
        raise DeviceError(f"no device {device!r} for backend auto: choose {known}, or name the backend too")
    if kind != "cpu":  # whoever names an accelerator has its runtime; other makers' need not be told of
        order = tuple(filter(registry.installed, order)) or order
    return [_Candidate(name, place) for name in order], f"first that works of {', '.join(order)} for {kind}"


def choose_stride(bundle: Bundle, asked: int | None) -> int:
    """The output stride to run; raises BundleError where the bundle has no such one."""
    there = bundle.output_strides
    if asked is None:
        return _DEFAULT_STRIDE if _DEFAULT_STRIDE in there else there[0]
    if asked not in there:
        raise BundleError(f"{bundle.path} has no output stride {asked}: it has {', '.join(map(str, there))}")
    return asked


def plan_for(
    bundle: Bundle, stride: int, backend: Backend, device: str, precision: Precision | Literal["auto"]
) -> Plan:
    """What `load` would try first on this backend; errors as there."""
    return _plans(bundle, stride, backend, _Candidate(backend.name, device), precision)[0]


def _plans(
    bundle: Bundle, stride: int, backend: Backend, candidate: _Candidate, precision: Precision | Literal["auto"]
) -> list[Plan]:
    """What to try on one backend, first to last; raises BundleError or BackendError where there is nothing."""
    if precision == "int8":
        return [Plan(_int8(bundle, stride, backend), "int8", "int8")]
    # fp16 and bf16 are how a device computes the fp32 graph, not other files
    floats = bundle.variant(stride, "fp32")
    if precision != "auto":
        backend.refuse_precision(precision, candidate.device)
        return [Plan(floats, precision, precision)]
    executed = executed_precision(floats, candidate.device)
    try:
        variant = _int8(bundle, stride, backend)
    except EdgesegError:
        return [Plan(floats, executed, executed)]
    here = candidate.backend, device_kind(candidate.device)
    found = next((c for c in variant.certificates if (c.backend, c.device) == here), None)
    if found is None:
        return [Plan(floats, executed, f"{executed} (int8 is not certified for it)")]
    # adding 0.0 makes -0.0 a zero
    said = f"{round(found.difference, 2) + 0.0:+.2f} mIoU on {found.images} image{'s' * (found.images != 1)}"
    if found.images < MIN_IMAGES:
        return [Plan(floats, executed, f"{executed} (int8 has {said}, a certificate needs {MIN_IMAGES})")]
    if not found.holds:
        return [Plan(floats, executed, f"{executed} (int8 has {said}, allowed is -{found.limit:g})")]
    return [Plan(variant, "int8", f"int8, certified: {said}"), Plan(floats, executed, executed)]


def executed_precision(variant: Variant, device: str) -> Precision:
    """What a device computes a variant in: NPUs and DLAs have nothing finer than fp16."""
    return "fp16" if variant.precision == "fp32" and device_kind(device) in ("npu", "dla") else variant.precision


def _int8(bundle: Bundle, stride: int, backend: Backend) -> Variant:
    """The int8 variant in the first of the backend's encodings that the bundle has."""
    there = {v.encoding: v for v in bundle.manifest.variants if (v.output_stride, v.precision) == (stride, "int8")}
    for encoding in backend.encodings:
        if encoding in there:
            return there[encoding]
    advice = f"calibrate it, `edgeseg calibrate {bundle.path} --images DIR -o NEW.edgeseg`"
    if not there:
        raise BundleError(f"{bundle.path} has no output stride {stride} in int8: it has {bundle.contents}; {advice}")
    unfit = "; ".join(f"{encoding}: {backend.refusal(encoding)}" for encoding in there)
    raise BackendError(
        f"{bundle.path} has no int8 variant at output stride {stride} that backend {backend.name} takes ({unfit}): "
        f"{advice}"
    )
