"""Choosing output stride, precision, backend and threads on this machine, and writing the choice into the bundle.

Input sizes too, where the bundle's checkpoint is given.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import cast

from edgeseg._machine import processor
from edgeseg.benchmarks import quality
from edgeseg.benchmarks.feed import frames_of
from edgeseg.benchmarks.grid import Cache, grid, load_configuration
from edgeseg.benchmarks.results import Configuration
from edgeseg.benchmarks.sampling import Contender, Goal, sample
from edgeseg.benchmarks.spread import ratio, spread
from edgeseg.benchmarks.tune_choice import Candidate, choose, explain, named
from edgeseg.benchmarks.tune_sizes import by_size, check_sizes
from edgeseg.bundle import Bundle, refuse_overwrite, write
from edgeseg.calibration.datasets import Dataset
from edgeseg.calibration.used_images import refuse_used, used_by
from edgeseg.decode import usable_cpus
from edgeseg.errors import BackendError, BundleError, InputError
from edgeseg.loading import EMBEDDED, device_kind
from edgeseg.manifest import MIN_IMAGES, Tuned
from edgeseg.segmenter import Segmenter
from edgeseg.types import Image, Precision, Size

_ROUNDS = 12

Tell = Callable[[str], object]
Key = tuple[Size | None, Configuration]
"""A configuration, and of which input size where several compete."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen and written into `bundle`, and all that was measured, fastest first.

    `explanation` is three lines: what, why, what else was close. `notes` say in a line each what was not measured, or
    how far the figures can be trusted.
    """

    bundle: Bundle
    tuned: Tuned
    explanation: tuple[str, str, str]
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]


def tune(
    bundle_path: str | Path,
    output: str | Path | None = None,
    *,
    max_latency_ms: float | None = None,
    min_miou: float | None = None,
    images: Dataset | None = None,
    backends: Sequence[str] | None = None,
    frame_size: Size = (1080, 1920),
    seconds: float = 20.0,
    sizes: Sequence[Size] = (),
    weights: Path | None = None,
    calibrate_on: Dataset | None = None,
    overwrite: bool = False,
    cache: Cache = "auto",
    progress: Tell = lambda step: None,
) -> Choice:
    """Measure what the bundle and the backends offer here, choose, and write the choice into the manifest.

    Whole frames of `frame_size` take turns (`benchmarks.sampling`) for `seconds`. `max_latency_ms` is the limit of
    their median: of what keeps it, the most accurate is taken, or what is faster and within `MAX_DROP` points of it, as
    int8 may lose that too. With `min_miou` alone it is the fastest that reaches it; with both, the former among those.
    mIoU is measured on the labelled `images`, which also give the frames. Without them only `max_latency_ms` can be
    asked for: the finest output stride that keeps it is taken, int8 only with a certificate that holds, bf16 never. The
    threads are chosen last, and are the runtime's choice unless another number is surely faster.

    Other input `sizes` of the network compete too, exported anew from the bundle's checkpoint `weights`
    (`benchmarks.resized`), their int8 calibrated on `calibrate_on`, or on drawn scenes. Without `images` the finest is
    then what divides the frame most finely, and their int8, which has no certificate, is left out. All configurations
    of all sizes are open at once, so that they take turns: memory is the sum of theirs.

    The bundle is written in place, or as `output`; those that ship with edgeseg only as that, and with `sizes` always:
    it is the bundle of the size that won. Where nothing fits, nothing is written. Raises InputError, also where int8
    was calibrated on any of the `images`; BundleError, BackendError; ExportError, CalibrationError of other sizes.
    """
    _check(max_latency_ms, min_miou, images, seconds)
    check_sizes(sizes, weights, calibrate_on, images, output)
    bundle = Bundle.open(bundle_path)
    target = _target(bundle, output, overwrite)
    if images is not None:
        refuse_used(bundle, images.digests(), used_by(bundle))
    frames, _ = frames_of(images, frame_size)

    def offered(one: Bundle) -> tuple[list[Configuration], list[str]]:
        everything = grid(one, None, backends, None, 0, bf16=images is not None)
        return _offered(one, everything, certified=images is None)

    own, notes = offered(bundle)
    with tempfile.TemporaryDirectory() as folder:
        bundles = by_size(bundle, sizes, weights, calibrate_on, Path(folder), notes, progress, int8=images is not None)
        keys = [(size, each) for size, one in bundles.items() for each in (own if one is bundle else offered(one)[0])]
        with ExitStack() as held:
            opened = _open(bundles, keys, cache, held, notes, progress)
            found = _sampled(opened, frames, seconds, notes, progress)
            if not found:
                raise BackendError(f"nothing could be measured: {notes[0] if notes else 'no backend'}")
            pool = [one for one in found if max_latency_ms is None or one.p50_ns <= 1e6 * max_latency_ms]
            if not pool:
                size = f"{frame_size[0]}x{frame_size[1]}"
                raise InputError(
                    f"nothing segments a {size} frame in {max_latency_ms:g} ms: the fastest is {found[0]}; "
                    "allow a frame more time"
                )
            if images is not None:
                for index, one in enumerate(pool):
                    progress(f"accuracy of {one.name} on {len(images)} images")
                    accuracy = quality.measure(opened[one.input_size, one.configuration], images)
                    pool[index] = replace(one, accuracy=accuracy)
                known = {one.name: one for one in pool}
                found = [known.get(one.name, one) for one in found]
        if images is not None and len(images) < MIN_IMAGES:
            notes.append(
                f"mIoU of {len(images)} image{'s' * (len(images) != 1)} says little: give {MIN_IMAGES} or more"
            )
        chosen, why = choose(pool, len(found), max_latency_ms, min_miou)
        bundle = bundles[chosen.input_size]
        final, said = _threads(bundle, chosen, frames, seconds / 2, cache, progress)
        tuned = _record(final, frame_size)
        written = _write(bundle, target, tuned, overwrite)
    return Choice(written, tuned, explain(chosen, final, why, said, found), tuple(found), tuple(notes))


def _check(max_latency_ms: float | None, min_miou: float | None, images: Dataset | None, seconds: float) -> None:
    if max_latency_ms is None and min_miou is None:
        raise InputError("tune needs a goal: give the most time a frame may take, or the least mIoU")
    if max_latency_ms is not None and not 0 < max_latency_ms < math.inf:  # NaN is not
        raise InputError(f"max_latency_ms is {max_latency_ms}: give milliseconds above 0")
    if min_miou is not None and not 0 <= min_miou <= 100:
        raise InputError(f"min_miou is {min_miou}: give percent, 0 to 100")
    if min_miou is not None and images is None:
        raise InputError("mIoU can only be asked for where it can be measured: give labelled images")
    if images is not None and not images.labelled:
        raise InputError(f"the images in {images.source} have no labels, so they tell no mIoU: give their labels")
    if not 0 < seconds < math.inf:
        raise InputError(f"seconds is {seconds}: give a number above 0")


def _target(bundle: Bundle, output: str | Path | None, overwrite: bool) -> Path:
    """Where the choice goes, asked before minutes of measuring."""
    if output is not None:
        refuse_overwrite(Path(output), overwrite=overwrite)
    target = bundle.path if output is None else Path(output)
    if target.resolve().parent == EMBEDDED.parent.resolve():
        raise InputError(f"{target.name} belongs to the installation: write the choice into a copy (-o)")
    if (folder := target.resolve().parent).exists() and not os.access(folder, os.W_OK):
        raise BundleError(f"cannot write {target}: {folder} is read-only")
    return target


def _offered(
    bundle: Bundle, configurations: Sequence[Configuration], certified: bool
) -> tuple[list[Configuration], list[str]]:
    """The configurations to measure; with `certified` no int8 whose loss nobody has measured."""
    if not certified:
        return list(configurations), []
    sure = {
        (variant.output_stride, variant.encoding, certificate.backend, certificate.device)
        for variant in bundle.manifest.variants
        for certificate in variant.certificates
        if certificate.holds
    }
    unsure = [
        one
        for one in configurations
        if one.precision == "int8"
        and (one.output_stride, one.encoding, one.backend, device_kind(one.device)) not in sure
    ]
    notes = ["no labelled images: chosen by the finest output stride, and int8 by its certificates"]
    if unsure:
        notes.append(f"left out, as no certificate of theirs holds: {', '.join(one.name for one in unsure)}")
    return [one for one in configurations if one not in unsure], notes


def _open(
    bundles: Mapping[Size | None, Bundle],
    keys: Sequence[Key],
    cache: Cache,
    held: ExitStack,
    notes: list[str],
    progress: Tell,
) -> dict[Key, Segmenter]:
    opened = {}
    for size, configuration in keys:
        name = named(size, configuration)
        progress(f"opening {name}")
        try:
            segmenter = load_configuration(bundles[size], configuration, cache)
        except BackendError as error:
            notes.append(f"{name} does not run: {error}")
            continue
        opened[size, configuration] = held.enter_context(segmenter)
    return opened


def _sampled(
    opened: dict[Key, Segmenter], frames: Sequence[Image], seconds: float, notes: list[str], progress: Tell
) -> list[Candidate]:
    """Fastest first."""
    if not opened:
        return []
    contenders = [Contender(segmenter) for segmenter in opened.values()]
    latencies = sample(contenders, frames, Goal(seconds, _ROUNDS), tell=progress).latencies
    noise = spread([latency.frame_ns for latency in latencies])
    notes += [f"noisy: {reason}" for reason in noise.reasons]
    found = [
        Candidate(one, latency.frame_ns, input_size=size)
        for (size, one), latency in zip(opened, latencies, strict=True)
    ]
    return sorted(found, key=lambda one: one.p50_ns)


def _threads(
    bundle: Bundle, chosen: Candidate, frames: Sequence[Image], seconds: float, cache: Cache, progress: Tell
) -> tuple[Candidate, str]:
    """The chosen one with the number of threads that is surely faster than the runtime's own choice, if any is."""
    cpus, kept = usable_cpus(), (chosen, ", threads as the runtime chooses")
    if device_kind(chosen.configuration.device) != "cpu" or cpus == 1:
        return kept
    counts = [0, *sorted({2**power for power in range(cpus.bit_length())} | {cpus})]
    with ExitStack() as held:
        tried = [(chosen.input_size, replace(chosen.configuration, threads=count)) for count in counts]
        opened = _open({chosen.input_size: bundle}, tried, cache, held, [], progress)
        found = {one.configuration: one for one in _sampled(opened, frames, seconds, [], progress)}
    usual = found.pop(chosen.configuration, None)
    if usual is None:
        return kept
    faster = []
    for one in found.values():
        share, (_, high) = ratio(one.frame_ns, usual.frame_ns)
        if high < 1 and 1 - share > spread([one.frame_ns, usual.frame_ns]).claim:
            faster.append((share, one))
    if not faster:
        return kept
    share, best = min(faster, key=lambda one: one[0])
    said = f", {best.configuration.threads} threads ({share:.2f} of the time of the runtime's own choice)"
    return replace(best, accuracy=chosen.accuracy), said


def _record(chosen: Candidate, frame_size: Size) -> Tuned:
    one = chosen.configuration
    return Tuned(
        processor=processor(),
        cores=usable_cpus(),
        backend=one.backend,
        device=one.device,
        precision=cast(Precision, one.precision),
        output_stride=one.output_stride,
        threads=one.threads,
        frame_size=frame_size,
        p50_ns=chosen.p50_ns,
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        miou=None if chosen.accuracy is None else chosen.accuracy.miou,
    )


def _write(bundle: Bundle, target: Path, tuned: Tuned, overwrite: bool) -> Bundle:
    """The bundle with this machine's choice in place of an earlier one."""
    files = {name: bundle.file(name).read_bytes() for name in bundle.manifest.files}
    kept = [one for one in bundle.manifest.tuned if (one.processor, one.cores) != (tuned.processor, tuned.cores)]
    manifest = replace(bundle.manifest, tuned=(*kept, tuned))
    if target == bundle.path:
        return write(target, manifest, files, overwrite=True)
    return write(target, replace(manifest, name=target.stem), files, overwrite=overwrite)
