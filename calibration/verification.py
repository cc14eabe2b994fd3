"""Is a bundle what it says? Hashes, golden frames on every backend here, and what int8 loses on labelled images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from edgeseg import registry
from edgeseg._terminal import status
from edgeseg.backends.base import Options
from edgeseg.bundle import Answers, Bundle, write
from edgeseg.calibration.certificate import MAX_DROP, LabelledImages, measure
from edgeseg.calibration.datasets import open_dataset
from edgeseg.calibration.used_images import refuse_unfit, used_by
from edgeseg.errors import BackendError, BackendMissing, BundleError, DeviceError, InputError
from edgeseg.golden import GoldenResult, compare_golden, network_mask
from edgeseg.loading import device_kind, executed_precision
from edgeseg.manifest import Certificate, Manifest, Variant
from edgeseg.opening import cache_folder, open_session
from edgeseg.types import Encoding, Image, Model, Precision

SIMULATION = "simulate"
"""The backend that judges int8 graphs, and stands in for TensorRT."""


@dataclass(frozen=True, slots=True)
class GoldenCheck:
    """One variant on one backend, computed in `precision`: the worst golden frame, or in `failure` why not."""

    variant: Variant
    backend: str
    device: str
    precision: Precision
    worst: GoldenResult | None
    failure: str = ""

    @property
    def ok(self) -> bool:
        """Every golden frame is within its tolerance."""
        return self.worst is not None and self.worst.ok


@dataclass(frozen=True, slots=True)
class LossCheck:
    """One int8 variant on one backend: the certificate as measured now, or the `failure`, and the bundle's own one.

    With `precision` bf16 one of fp32, of which the bundle says nothing.
    """

    variant: Variant
    backend: str
    device: str
    precision: Precision
    measured: Certificate | None
    recorded: Certificate | None
    failure: str = ""

    @property
    def as_recorded(self) -> bool:
        """Not worse than the recorded interval, as far as both were measured on the same images."""
        if self.measured is None or self.recorded is None or self.recorded.data != self.measured.data:
            return True
        return self.measured.difference >= self.recorded.interval[0]

    @property
    def ok(self) -> bool:
        """The loss is within the limit, and not more than the bundle says."""
        return self.measured is not None and self.measured.within_limit and self.as_recorded


@dataclass(frozen=True, slots=True)
class Verification:
    """Everything that was checked; `notes` says in a line each what could not be."""

    bundle: Bundle
    golden: tuple[GoldenCheck, ...]
    losses: tuple[LossCheck, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Nothing is beyond its tolerance."""
        return all(check.ok for check in self.golden) and all(check.ok for check in self.losses)


def verify(
    path: str | Path,
    images: LabelledImages | str | Path | None = None,
    *,
    backend: str = "auto",
    device: str = "auto",
    precision: Precision | None = None,
    max_drop: float = MAX_DROP,
    certify: bool = False,
    seed: int = 0,
    threads: int = 0,
    cache: str | Path | Literal["auto"] | None = "auto",
) -> Verification:
    """Check a bundle's hashes, all its golden frames on every backend here, and on labelled images what int8 loses.

    `backend="auto"` is every installed one that `load` would try on the device, and for TensorRT's encoding its
    simulation. `precision` is the only one to check, None all but bf16, which computes fp32 variants. `images` are
    labelled ones that calibration has not seen: `edgeseg.calibration.datasets.open_dataset` opens them, which a folder
    alone also goes through; what bf16 loses is measured on them too. `max_drop` is the loss allowed, in points of mIoU.
    `certify` writes what was measured on `MIN_IMAGES` or more into the bundle's manifest, in place of what is said
    there; of int8 only. `cache` is as in `load`, and used by backends that build for minutes.

    Raises BundleError for a damaged bundle, BackendError where the named backend, or every one, is missing, InputError
    for images that were used for calibration, have no labels, or are too few to certify. What is beyond its tolerance
    is reported, not raised.
    """
    if certify and images is None:
        raise InputError("certify needs labelled images to measure on: give them")
    if certify and precision not in (None, "int8"):
        raise InputError(f"certificates are of int8, and precision is {precision}: leave one of them out")
    if not 0 <= max_drop < math.inf:  # NaN is not
        raise InputError(f"max_drop is {max_drop}: give the mIoU points that may be lost, 0 or more")
    bundle = Bundle.open(path)
    used = used_by(bundle)
    if isinstance(images, (str, Path)):
        images = open_dataset(images, classes=bundle.manifest.classes)
    if images is not None:
        refuse_unfit(bundle, images, used, certify)
    runs, notes = _runs(bundle, backend, device.lower(), precision)
    with status() as tell:
        golden = [_golden(bundle, run, threads, cache, tell) for run in runs]
    losses = []
    if images is not None:
        for check in golden:
            if check.ok and check.precision in ("int8", "bf16"):
                losses.append(_loss(bundle, images, check, max_drop, seed, threads))
        if precision is None and not any(variant.precision == "int8" for variant in bundle.manifest.variants):
            notes.append("no int8 variant, so no loss to measure: `edgeseg calibrate` makes one")
    if certify and losses:
        for loss in losses:
            new, old = loss.measured, loss.recorded
            if new is not None and old is not None and new.images < old.images:
                replaced = f"certified on {new.images} images in place of {old.images}"
                notes.append(f"{loss.variant.file} on {loss.backend}: {replaced}")
        bundle = _certified(bundle, losses)
    return Verification(bundle, tuple(golden), tuple(losses), tuple(notes))


def simulated_answers(model: Model, manifest: Manifest, frames: Sequence[Image]) -> Answers:
    """What an int8 graph's golden answers are: its logits, and their class maps, computed literally in float.

    `frames` are uint8 (h, w, 3) of network size. Raises BackendError.
    """
    backend = registry.get(SIMULATION)
    with backend.open(model, "cpu", Options(model.precision), None) as session:
        logits = [session.run(frame[None])[0] for frame in frames]
    return [(values, network_mask(manifest, values)) for values in logits]


class _Run(NamedTuple):
    backend: str
    device: str
    variant: Variant
    precision: Precision


def _runs(bundle: Bundle, backend: str, device: str, precision: Precision | None) -> tuple[list[_Run], list[str]]:
    """What to check, and what there is to say of variants that are not."""
    if device == "auto":
        device = "cpu" if backend == "auto" else registry.get(backend).default_device
    kind = device_kind(device)
    if backend == "auto" and kind not in registry.AUTO_ORDER:
        known = ", ".join(registry.AUTO_ORDER)
        raise DeviceError(f"no device {device!r} for backend auto: choose {known}, or name the backend too")
    places = [(name, device) for name in registry.AUTO_ORDER[kind]] if backend == "auto" else [(backend, device)]
    variants = bundle.manifest.variants
    simulated = {v.output_stride for v in variants if v.encoding == "tensorrt"}
    if backend == "auto" and simulated and precision != "bf16":
        places.append((SIMULATION, "cpu"))
    runs, notes = list[_Run](), list[str]()
    for name, place in places:
        try:
            runtime = registry.get(name)
            wanted: tuple[Encoding, ...] = ("float", *runtime.encodings)
        except BackendMissing as error:
            if backend != "auto":
                raise
            notes.append(f"{name} is not checked: {error}")
            continue
        if precision == "bf16" and not runtime.computes_bf16(place):
            if backend != "auto":
                runtime.refuse_precision(precision, place)
            notes.append(f"{name} is not checked: it does not compute bf16 on {place}")
            continue
        strides = set(bundle.output_strides)
        if backend == "auto" and name == SIMULATION:  # for TensorRT's encoding only: the runtimes compute the rest
            wanted, strides = ("float", "tensorrt"), simulated
        for v in variants:
            if v.encoding in wanted and v.output_stride in strides:
                floats = runtime.float_precisions if place == runtime.default_device else ()
                computed = floats if floats and v.encoding == "float" else (executed_precision(v, place),)
                if precision == "bf16" and v.encoding == "float":
                    computed = (precision,)
                runs += [_Run(name, place, v, one) for one in computed if precision in (None, one)]
    checked = {run.variant.file for run in runs}
    lacking = "no backend here takes" if backend == "auto" else f"{backend} does not take"
    notes += [
        f"{v.file} is not checked: {lacking} the encoding {v.encoding}"
        for v in variants
        if v.file not in checked and v.encoding != "float" and precision in (None, "int8")
    ]
    if not runs:
        told = "; ".join(notes) or f"it has {bundle.contents}, and precision is {precision}"
        raise BackendMissing(f"nothing here can run {bundle.path}: {told}")
    return runs, notes


def _golden(
    bundle: Bundle, run: _Run, threads: int, cache: str | Path | None, tell: Callable[[str], None]
) -> GoldenCheck:
    backend, device, variant, precision = run
    found, count = list[GoldenResult](), bundle.manifest.golden.frames
    runtime, options = registry.get(backend), Options(precision, threads)
    folder = cache_folder(cache) if runtime.builds else None  # what compiles quickly is compiled anew
    try:
        with open_session(bundle, variant, runtime, device, options, folder, self_test=False) as session:
            for index in range(count):
                tell(f"{variant.file} on {backend} {device}: golden frame {index + 1} of {count}")
                found.append(compare_golden(bundle, variant, session, precision, index))
    except DeviceError:
        raise
    except (BackendError, BundleError) as error:
        return GoldenCheck(variant, backend, device, precision, None, str(error))
    # numpy's extremes are NaN where any is
    error_of, agreement = np.max([one.error for one in found]), np.min([one.agreement for one in found])
    worst = GoldenResult(float(error_of), float(agreement), found[0].tolerance)
    return GoldenCheck(variant, backend, device, precision, worst)


def _loss(
    bundle: Bundle, images: LabelledImages, check: GoldenCheck, max_drop: float, seed: int, threads: int
) -> LossCheck:
    variant = check.variant
    here = (check.backend, device_kind(check.device))
    recorded = next((found for found in variant.certificates if _place(found) == here), None)
    try:
        measured = measure(
            bundle,
            images,
            output_stride=variant.output_stride,
            backend=check.backend,
            device=check.device,
            encoding=variant.encoding,
            precision="bf16" if check.precision == "bf16" else "int8",
            limit=max_drop,
            seed=seed,
            threads=threads,
        )
    except (BackendError, BundleError) as error:  # its fp32 variant fails, or is not there
        return LossCheck(variant, check.backend, check.device, check.precision, None, recorded, str(error))
    return LossCheck(variant, check.backend, check.device, check.precision, measured, recorded)


def _certified(bundle: Bundle, losses: Sequence[LossCheck]) -> Bundle:
    """The bundle written again with what was measured in place of what was said of the same backend and device."""
    variants = []
    for variant in bundle.manifest.variants:
        new = {_place(loss.measured): loss.measured for loss in losses if loss.variant == variant and loss.measured}
        kept = [certificate for certificate in variant.certificates if _place(certificate) not in new]
        variants.append(dataclasses.replace(variant, certificates=(*kept, *new.values())))
    manifest = dataclasses.replace(bundle.manifest, variants=tuple(variants))
    files = {name: bundle.file(name).read_bytes() for name in manifest.files}
    return write(bundle.path, manifest, files, overwrite=True)


def _place(certificate: Certificate) -> tuple[str, str]:
    return certificate.backend, certificate.device
