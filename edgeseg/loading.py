"""From a bundle to a running Segmenter: choose the variant, the backend and the device, and check the answer."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgeseg import decode, labels, registry
from edgeseg.backends.base import Options, Session
from edgeseg.bundle import Bundle
from edgeseg.errors import BackendError, BundleError, DeviceError, EdgesegError, GoldenError, InputError
from edgeseg.manifest import Tolerance, Variant
from edgeseg.segmenter import Segmenter
from edgeseg.types import Precision

EMBEDDED = Path(__file__).parent / "data" / "camvid.edgeseg"
"""The bundle that ships with edgeseg: DeepLabV3-MobileNetV2, eleven street classes (model card in the README)."""

_DEFAULT_STRIDE = 16


@dataclass(frozen=True, slots=True)
class _Candidate:
    backend: str
    device: str


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
) -> Segmenter:
    """Open a bundle on a backend and device, run one golden frame through it, and hand out the Segmenter.

    `backend="auto"` tries `registry.AUTO_ORDER` for the kind of device ("auto" means the CPU) and falls back with a
    RuntimeWarning naming the reason; a backend that is named is the only one tried. `precision="auto"` is fp32, fp16 on
    an NPU, which computes nothing finer. `output_stride=None` is 16, or the bundle's finest where it has no 16.
    `classes` keeps some (["road", "car"]) or merges ({"obstacle": ["car", "pole"]}). `threads` limits the network's
    CPU threads (0: the runtime's choice). `cache` is the directory for compiled blobs ("auto": the user's cache
    directory; None: no cache). `self_test` compares one golden frame with what torch computed at export, which is the
    warm-up too and catches a runtime that computes silently wrong.

    Raises BundleError, BackendError (BackendMissing, DeviceError, GoldenError) or InputError, each in one line.
    """
    bundle = Bundle.open(bundle_path, verify=False)
    if precision not in ("auto", "fp32", "fp16", "int8"):
        raise InputError(f"precision is {precision!r}: choose auto, fp32, fp16 or int8")
    if threads < 0:
        raise InputError(f"threads is {threads}: give 1 or more, or 0 for the runtime's choice")
    chosen_labels = labels.choose(bundle.manifest.classes, classes)
    stride = _stride(bundle, output_stride)
    device = device.lower()
    folder = _cache_folder(cache)
    candidates, why = _candidates(backend, device)
    failures: list[tuple[str, EdgesegError]] = []
    for candidate in candidates:
        executed: Precision = ("fp16" if candidate.device == "npu" else "fp32") if precision == "auto" else precision
        variant = _variant(bundle, stride, executed)
        try:
            session = _open(bundle, variant, candidate, Options(executed, threads), folder, self_test)
        except (BackendError, BundleError) as error:
            if isinstance(error, BundleError) or len(candidates) == 1:
                raise
            failures.append((candidate.backend, error))
            continue
        for name, failure in failures:
            warnings.warn(f"fell back from {name} to {candidate.backend}: {failure}", RuntimeWarning, stacklevel=2)
        choice = f"{candidate.backend} on {candidate.device}, {executed}, output stride {stride} ({why})"
        return Segmenter(session, bundle.manifest, variant, chosen_labels, choice)
    reasons = "; ".join(f"{name}: {failure}" for name, failure in failures)
    raise BackendError(f"no backend can run {bundle.path.name} on {device}: {reasons}")


def _candidates(backend: str, device: str) -> tuple[list[_Candidate], str]:
    place = "cpu" if device == "auto" else device
    if backend != "auto":
        return [_Candidate(backend, place)], "backend as asked"
    kind = place.split(".")[0].split(":")[0]
    order = registry.AUTO_ORDER.get(kind)
    if order is None:
        known = ", ".join(registry.AUTO_ORDER)
        raise DeviceError(f"no device {device!r} for backend auto: choose {known}, or name the backend too")
    return [_Candidate(name, place) for name in order], f"first that works of {', '.join(order)} for {kind}"


def _stride(bundle: Bundle, asked: int | None) -> int:
    there = bundle.output_strides
    if asked is None:
        return _DEFAULT_STRIDE if _DEFAULT_STRIDE in there else there[0]
    if asked not in there:
        raise BundleError(f"{bundle.path} has no output stride {asked}: it has {', '.join(map(str, there))}")
    return asked


def _variant(bundle: Bundle, stride: int, precision: Precision) -> Variant:
    # fp16 is how a device computes the fp32 graph, not another file
    return bundle.variant(stride, "int8", "cpu") if precision == "int8" else bundle.variant(stride, "fp32")


def _open(
    bundle: Bundle, variant: Variant, candidate: _Candidate, options: Options, cache: Path | None, self_test: bool
) -> Session:
    backend = registry.get(candidate.backend)
    model = bundle.model(variant)
    blobs = cache / candidate.backend / model.digest[:32] if cache else None
    had_blobs = blobs is not None and any(blobs.glob("*"))
    session = backend.open(model, candidate.device, options, blobs)
    if not (self_test and backend.self_test):
        return session
    try:
        check_golden(bundle, variant.output_stride, session, options.precision)
    except GoldenError as error:
        session.close()
        if blobs is None or not had_blobs:
            raise
        # What was cached may be damaged: compile again before blaming the runtime.
        shutil.rmtree(blobs, ignore_errors=True)
        session = _open(bundle, variant, candidate, options, cache, self_test)
        warnings.warn(
            f"recompiled {variant.file}: what {blobs} held was damaged ({error})", RuntimeWarning, stacklevel=3
        )
    except EdgesegError:
        session.close()
        raise
    return session


def check_golden(bundle: Bundle, output_stride: int, session: Session, precision: Precision, index: int = 0) -> None:
    """Run one golden frame and compare with torch's logits and mask; raises GoldenError beyond the tolerance."""
    golden = bundle.golden(output_stride, index)
    tolerance = bundle.manifest.golden.tolerances.get(precision, Tolerance(0.0, 1.0))
    found = session.run(golden.frame[None])[0]
    scale = float(np.abs(golden.logits).max()) or 1.0
    error = float(np.abs(found - golden.logits).max()) / scale if found.shape == golden.logits.shape else np.inf
    wants = decode.Wants(probabilities=bundle.manifest.values == "probabilities")
    grid = decode.Grid(bundle.manifest.align_corners)
    mask = decode.decode(found, bundle.manifest.preprocess.input_size, grid=grid, wants=wants).class_map
    agreement = float(np.mean(mask == golden.class_map))
    # written so that NaN fails
    if not (error <= tolerance.logits and agreement >= tolerance.mask_agreement):
        info = session.describe()
        raise GoldenError(
            f"{info.runtime} on {info.device_name} does not compute what torch did: golden frame {index} at output "
            f"stride {output_stride} has logits off by {error:.2%} of their scale (limit {tolerance.logits:.2%}) and "
            f"{agreement:.3%} equal mask pixels (limit {tolerance.mask_agreement:.2%}): use another backend "
            f"or precision"
        )


def _cache_folder(cache: str | Path | None) -> Path | None:
    if cache is None:
        return None
    folder = cache_home() if cache == "auto" else Path(cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if cache != "auto":
            raise InputError(f"cannot use the cache directory {folder}: {error.strerror or error}") from error
        warnings.warn(
            f"no cache for compiled networks: cannot make {folder} ({error.strerror})", RuntimeWarning, stacklevel=3
        )
        return None
    return folder


def cache_home() -> Path:
    """Where compiled blobs go by default: the platform's cache directory, `edgeseg` inside it."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edgeseg"
