"""The grid: every output stride, precision and backend of a bundle on this machine, from raw frame to mask."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from edgeseg._files import sha256
from edgeseg.benchmarks import feed, host, quality, sampling
from edgeseg.benchmarks.energy import Meter, find_meter
from edgeseg.benchmarks.grid import Cache, Cell, file_bytes, grid, multiply_accumulates, open_cell
from edgeseg.benchmarks.results import Accuracy, Configuration, FixedRate, Measurement, Noise, Results
from edgeseg.benchmarks.spread import LIMIT, spread
from edgeseg.benchmarks.start import measure_start
from edgeseg.benchmarks.watch import disturbances
from edgeseg.bundle import MANIFEST, Bundle
from edgeseg.calibration.datasets import Dataset, open_dataset
from edgeseg.calibration.used_images import flattered, used_by
from edgeseg.errors import BackendError, InputError
from edgeseg.loading import EMBEDDED
from edgeseg.registry import get
from edgeseg.segmenter import Segmenter
from edgeseg.types import Image, Precision, Size

THOROUGH = sampling.Goal(60, 1024)
"""Seconds per configuration, and queries: MLPerf Inference's rules, version 0.5, "Scenarios", single stream (later
versions ask for 600 s)."""
_ROUNDS = 12
_SECONDS = 60.0
_RATE_S, _ENERGY_S, _LEAD_S = 3.0, 1.0, 0.3

Tell = Callable[[str], object]


def bench(
    bundle_path: str | Path = EMBEDDED,
    *,
    output_strides: Sequence[int] | None = None,
    backends: Sequence[str] | None = None,
    precisions: Sequence[Precision] | None = None,
    frame_size: Size = (1080, 1920),
    images: str | Path | Dataset | None = None,
    weights: Path | None = None,
    threads: int = 0,
    seconds: float = _SECONDS,
    thorough: bool = False,
    rates: Sequence[float] = (),
    starts: bool = True,
    cache: Cache = "auto",
    command: str = "",
    progress: Tell = lambda step: None,
    root: Path = Path("/"),
) -> Results:
    """Measure the grid of what is named, or of all that is here, one stream of frames, taking turns.

    `images` gives the frames instead of drawn scenes, resized to `frame_size`; where it is labelled, accuracy is
    measured on the images as they are, and agreement with torch where `weights` names the bundle's checkpoint, else
    with the same stride in fp32. `seconds` is how long all configurations together are sampled, 12 rounds at least;
    `thorough` means `THOROUGH` for each. `rates` are cameras to simulate, in Hz. `starts` measures cold starts in
    processes of their own: of one stride per backend and precision, of all if thorough; where a backend compiles for
    minutes, only then. `progress` is told each step. `root` is where /proc and /sys are.

    What cannot be opened says so in its measurement; a RuntimeWarning and the results' method say where int8 is judged
    on images that it was calibrated on. Raises InputError, BundleError or BackendError where something
    named is not there, or nothing can be opened.
    """
    _check(frame_size, seconds, rates)
    began, load = datetime.now(timezone.utc), host.load_average(root)
    bundle = Bundle.open(bundle_path)
    manifest = bundle.manifest
    if isinstance(images, (str, Path)):
        images = open_dataset(images, classes=manifest.classes)
    configurations = grid(bundle, output_strides, backends, precisions, threads)
    flattery = _flattery(bundle, configurations, images)
    frames, fed = feed.frames_of(images, frame_size)
    with ExitStack() as held:
        cells = []
        for configuration in configurations:
            progress(f"opening {configuration.name}")
            cells.append(open_cell(bundle, configuration, frames[0], cache))
            if opened := cells[-1].contender:
                held.enter_context(opened.segmenter)
        contenders = {cell.configuration: cell.contender for cell in cells if cell.contender}
        if not contenders:
            raise BackendError(f"nothing could be measured: {cells[0].failure}")
        found = {cell.configuration: _described(bundle, cell) for cell in cells}
        if starts:
            for configuration in _starting(list(contenders), thorough):
                progress(f"starting {configuration.name} in a process of its own")
                start = measure_start(bundle.path, configuration, frame_size)
                found[configuration] = replace(found[configuration], start=start)
        segmenters = {configuration: one.segmenter for configuration, one in contenders.items()}
        if images is not None and images.labelled:
            for configuration, accuracy in _accuracies(bundle, segmenters, images, weights, progress).items():
                found[configuration] = replace(found[configuration], accuracy=accuracy)
        goal = sampling.Goal(seconds, _ROUNDS)
        if thorough:
            goal = sampling.Goal(max(seconds, THOROUGH.seconds * len(contenders)), THOROUGH.rounds)
        sampled = sampling.sample(list(contenders.values()), frames, goal, tell=progress, root=root)
        state = host.facts([one.runtime for one in found.values()], root)
        meter = find_meter(root)
        for configuration, latency in zip(contenders, sampled.latencies, strict=True):
            segmenter = segmenters[configuration]
            found[configuration] = replace(
                found[configuration],
                latency=latency,
                rates=_rates(segmenter, frames, rates, configuration, progress),
                energy_mj=_energy(segmenter, frames, meter, configuration, progress),
            )
        shown = {configuration.name: segmenter for configuration, segmenter in segmenters.items()}
        samples = feed.pictures(images, frames, shown, manifest.classes, progress)
    return Results(
        bundle=manifest.name,
        bundle_digest=sha256(bundle.path / MANIFEST),
        input_size=manifest.preprocess.input_size,
        classes={info.name: "#{:02x}{:02x}{:02x}".format(*info.color) for info in manifest.classes},
        frames=fed,
        host=state,
        noise=_noise(sampled, load),
        method=_method(starts, thorough, meter, flattery),
        command=command,
        began=began.isoformat(timespec="seconds"),
        measurements=tuple(found.values()),
        samples=samples,
    )


def _check(frame_size: Size, seconds: float, rates: Sequence[float]) -> None:
    if min(frame_size) < 1:
        raise InputError(f"frame_size is {frame_size}: give (height, width) in pixels, each 1 or more")
    if not 0 < seconds < float("inf"):
        raise InputError(f"seconds is {seconds}: give a number above 0")
    for hz in rates:
        if not 0 < hz <= 1000:
            raise InputError(f"rate is {hz}: give frames per second, above 0 and up to 1000")


def _flattery(bundle: Bundle, configurations: Sequence[Configuration], images: Dataset | None) -> str:
    """What is to be said where int8 is judged on images that it was made with; warned of too, before the minutes."""
    if images is None or not images.labelled or all(one.precision != "int8" for one in configurations):
        return ""
    said = flattered(images.digests(), used_by(bundle))
    if said:
        warnings.warn(said, RuntimeWarning, stacklevel=3)
    return said


def _described(bundle: Bundle, cell: Cell) -> Measurement:
    if cell.contender is None:
        return Measurement(cell.configuration, failure=" ".join(cell.failure.split()))
    segmenter = cell.contender.segmenter
    return Measurement(
        cell.configuration,
        runtime=segmenter.info.runtime,
        device_name=segmenter.info.device_name,
        macs=multiply_accumulates(bundle, segmenter.output_stride),
        graph_bytes=file_bytes(bundle, segmenter.variant),
    )


def _starting(configurations: list[Configuration], thorough: bool) -> list[Configuration]:
    """Whose cold start is measured: stride 16 or else the first, of each backend and precision."""
    if thorough:
        return configurations
    chosen: dict[tuple[str, str], Configuration] = {}
    for one in sorted(configurations, key=lambda one: one.output_stride != 16):
        if not get(one.backend).builds:
            chosen.setdefault((one.backend, one.precision), one)
    return list(chosen.values())


def _accuracies(
    bundle: Bundle, segmenters: dict[Configuration, Segmenter], images: Dataset, weights: Path | None, tell: Tell
) -> dict[Configuration, Accuracy]:
    """Agreement is with torch, or with the first configuration of the same stride in fp32, else with itself."""
    found, references = {}, dict[int, tuple[quality.Predict, str]]()
    for configuration, segmenter in segmenters.items():
        stride = configuration.output_stride
        if stride in references:
            continue
        if weights is not None:
            references[stride] = (quality.remembered(quality.torch_masks(bundle, weights, stride)), "torch fp32")
        elif configuration.precision == "fp32":
            references[stride] = (quality.remembered(_masks(segmenter)), configuration.name)
    for configuration, segmenter in segmenters.items():
        tell(f"accuracy of {configuration.name} on {len(images)} images")
        reference, name = references.get(configuration.output_stride, (None, configuration.name))
        found[configuration] = quality.measure(segmenter, images, reference=reference, reference_name=name)
    return found


def _masks(segmenter: Segmenter) -> quality.Predict:
    return lambda frame: segmenter(frame).class_map


def _rates(
    segmenter: Segmenter, frames: Sequence[Image], rates: Sequence[float], configuration: Configuration, tell: Tell
) -> tuple[FixedRate, ...]:
    found = []
    for hz in rates:
        tell(f"{configuration.name} at {hz:g} Hz")
        found.append(sampling.fixed_rate(segmenter, frames, hz, _RATE_S))
    return tuple(found)


def _energy(
    segmenter: Segmenter, frames: Sequence[Image], meter: Meter | None, configuration: Configuration, tell: Tell
) -> float | None:
    """Of one frame, frame after frame; None where nothing measures this device's."""
    if meter is None or not meter.covers(configuration.device):
        return None
    tell(f"energy of {configuration.name}")

    def work(seconds: float) -> int:
        count, end = 0, time.perf_counter() + seconds
        while count < len(frames) or time.perf_counter() < end:
            segmenter(frames[count % len(frames)])
            count += 1
        return count

    work(_LEAD_S)  # sensors average over what was before
    counts: list[int] = []
    found = meter.millijoules(lambda: counts.append(work(_ENERGY_S)))
    return None if found is None else found / counts[0]


def _noise(sampled: sampling.Sampled, load: float | None) -> Noise:
    found = spread([latency.frame_ns for latency in sampled.latencies])
    reasons = (*found.reasons, *disturbances(sampled.moments, load))
    if not sampled.steady:
        reasons += (f"times were not steady after {sampled.latencies[0].warmup} rounds of warm-up",)
    return Noise(round(found.claim, 5), bool(reasons), reasons)


def _method(starts: bool, thorough: bool, meter: Meter | None, flattery: str) -> str:
    said = [flattery, sampling.METHOD] if flattery else [sampling.METHOD]
    if thorough:
        said.append(
            f"At least {THOROUGH.rounds} frames and {THOROUGH.seconds:g} s per configuration, as MLPerf Inference 0.5 "
            "asks of a single stream."
        )
    if starts:
        which = "every configuration" if thorough else "one stride per backend and precision"
        said.append(f"Cold starts: {which}, each in two processes of its own, with an empty and with a full cache.")
    if meter is not None:
        said.append(
            f"Energy: {meter.name}, all of it, while frame follows frame for {_ENERGY_S:g} s, after {_LEAD_S:g} s."
        )
    said.append(f"Noisy means that a difference of {LIMIT:.0%} cannot be told.")
    return " ".join(said)
