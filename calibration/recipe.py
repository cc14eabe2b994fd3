"""From a bundle and images to a bundle with int8 variants: learn, search under the guard, prove, write."""

from __future__ import annotations

import functools
import os
import tempfile
import time
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeseg import bundle as bundles
from edgeseg.bundle import Bundle
from edgeseg.calibration import ranges as tables
from edgeseg.calibration import table
from edgeseg.calibration.datasets import Dataset, open_dataset, refuse_overlap
from edgeseg.calibration.judging import Judge, Limit
from edgeseg.calibration.network import Network, read_network
from edgeseg.calibration.search import Outcome, Search
from edgeseg.calibration.table import Learnt, Rounding, Tell
from edgeseg.calibration.writing import encoded, write
from edgeseg.errors import BundleError, CalibrationError, EdgesegError, InputError
from edgeseg.manifest import Calibration
from edgeseg.surgery.tensorrt_rules import by_rule, check, refuse
from edgeseg.types import IGNORE, Encoding

__all__ = ["DEFAULT_METHOD", "ENCODINGS", "Calibrated", "Guard", "Limit", "Rounding", "calibrate", "check_writable"]

DEFAULT_METHOD = "mse"
"""Of the rules for ranges, the one whose masks agreed best with fp32 on the embedded network, by a hair."""
ENCODINGS: tuple[Encoding, ...] = ("cpu", "tensorrt", "tensorrt_fp16")


@dataclass(frozen=True, slots=True)
class Guard:
    """How accuracy is guarded: on which images, within which limit, for at most how many seconds.

    Raises InputError for images that are no Dataset, and for a time below zero or not a number.
    """

    images: Dataset
    limit: Limit = Limit()  # noqa: RUF009 (frozen)
    budget_s: float = 600.0

    def __post_init__(self) -> None:
        if not isinstance(self.images, Dataset):
            raise InputError(f"the guard's images are {self.images!r}: open them with open_dataset")
        if not self.budget_s >= 0:
            raise InputError(f"budget_s is {self.budget_s}: give seconds, 0 or more")


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A calibrated bundle, what the search found per variant, and how long each step took, in seconds.

    `notes` say what was not done, and what the bundle had that this one has not.
    """

    bundle: Bundle
    outcomes: tuple[Outcome, ...]
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()


def calibrate(
    path: str | Path,
    output: str | Path,
    images: Dataset | str | Path | None,
    *,
    guard: Guard | None = None,
    method: str | None = None,
    float_layers: Collection[str] = (),
    rounding: Rounding = Rounding(),  # noqa: B008 (frozen)
    encodings: Sequence[Encoding] | None = None,
    output_strides: Sequence[int] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    tell: Tell = lambda step: None,
) -> Calibrated:
    """Write a copy of the bundle at `path` to `output` with int8 variants of its fp32 ones (`output_strides`: all).

    `images` are what is calibrated on (`edgeseg.calibration.datasets.open_dataset`, or a folder, all of it); None takes
    ranges and weights from the bundle's own earlier calibration (`output_strides`: those that have one), and without a
    guard its methods and float layers too. `method` is one of `ranges.METHODS`; None leaves it to the guard, or is
    `mse` without one. `float_layers` are left in float whatever the guard finds. With a `guard` every variant stays
    within its limit on the guard's images, which must be others, or nothing is written. `encodings=None` writes all
    of ENCODINGS, those for TensorRT left out with a RuntimeWarning where it would refuse the network. All int8 variants
    that the bundle had are replaced.

    Raises CalibrationError where no candidate holds in time, and where TensorRT would refuse a network that is asked
    for in its encoding; InputError, ImageError, BundleError, ExportError.
    """
    path, output = Path(path), Path(output)
    bundles.refuse_overwrite(output, overwrite=overwrite)
    check_writable(output, BundleError)
    bundle = Bundle.open(path)
    if isinstance(images, (str, Path)):
        images = open_dataset(images, classes=bundle.manifest.classes)
    if not isinstance(images, Dataset | None):
        raise InputError(f"images are {images!r}: give a folder, or what open_dataset returns")
    there = bundle.output_strides if images is not None else table.strides(bundle)
    strides = tuple(dict.fromkeys(there if output_strides is None else output_strides))
    _check(bundle, strides, method, ENCODINGS if encodings is None else encodings, seed)
    for dataset in (images, None if guard is None else guard.images):
        if dataset is not None and not dataset.samples:
            raise InputError(f"none of the images in {dataset.source} was taken: give some")
    networks = {stride: read_network(bundle, bundle.variant(stride, "fp32")) for stride in strides}
    _check_layers(bundle, networks, float_layers)
    encodings = _writable(bundle, networks, encodings)
    clock = _Clock()
    learnt = table.read(bundle, networks) if images is None else {}
    guarded = guard.images.digests() if guard is not None else {}
    if guard is not None:
        refuse_overlap(guarded, images.digests() if images else _seen(learnt), "guard images", "calibration images")
        _check_labels(guard.images)
    if images is not None:
        learnt = table.learn(bundle, networks, images, rounding, seed=seed, tell=tell)
    clock.lap("calibration")
    earlier = _choices(bundle) if images is None and guard is None else {}
    outcomes = []
    for stride in strides:
        for encoding in (one for one in ENCODINGS if one in encodings and one != "tensorrt_fp16"):
            kept = earlier.get((stride, encoding), Calibration("", DEFAULT_METHOD))
            floats = _fixed(learnt[stride], (*float_layers, *kept.float_layers))
            chosen = (method or kept.method, floats)
            # a guard speaks for what it chose, not for what was changed since
            count = len(guarded) or (kept.guard_images if chosen == (kept.method, kept.float_layers) else 0)
            outcomes.append(Outcome(stride, encoding, *chosen, guard_images=count))
    if guard is not None:
        _search(bundle, learnt, outcomes, guard, method, tell)
        clock.lap("guard")
    tell("writing")
    written = write(bundle, output, learnt, outcomes, encodings, guarded, overwrite)
    clock.lap("writing")
    notes = (*_unguarded(guard, again=images is None), *_lost(bundle, written))
    return Calibrated(written, tuple(outcomes), clock.seconds, notes)


def check_writable(path: Path, error: type[EdgesegError] = InputError) -> None:
    """Raise `error` where there is no folder to write `path` into, or nothing can be written there."""
    try:
        folder = os.path.dirname(os.path.realpath(path))
        if not os.path.isdir(folder):
            raise error(f"cannot write {path}: there is no folder {path.parent}")
        with tempfile.TemporaryDirectory(prefix=".", dir=folder):
            pass
    except (OSError, ValueError) as reason:  # ValueError: a NUL in the path
        if isinstance(reason, error):
            raise
        raise error(f"cannot write {path}: {getattr(reason, 'strerror', None) or reason}") from reason


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self._last = round(now - self._last, 2), now


def _check(
    bundle: Bundle, strides: Sequence[int], method: str | None, encodings: Sequence[Encoding], seed: int
) -> None:
    if not strides:
        raise InputError("output_strides is empty: name some, or leave it out")
    if seed < 0:
        raise InputError(f"seed is {seed}: give 0 or more")
    for stride in strides:
        if stride not in bundle.output_strides:
            there = ", ".join(map(str, bundle.output_strides))
            raise BundleError(f"{bundle.path} has no output stride {stride}: it has {there}")
    if method is not None and method not in tables.METHODS:
        raise InputError(f"method is {method!r}: choose one of {', '.join(tables.METHODS)}")
    if not encodings or not set(encodings) <= set(ENCODINGS):
        raise InputError(f"encodings are {tuple(encodings)}: choose among {', '.join(ENCODINGS)}")
    if "tensorrt_fp16" in encodings and "tensorrt" not in encodings:
        raise InputError("encoding tensorrt_fp16 is made of tensorrt: ask for both")


def _check_layers(bundle: Bundle, networks: dict[int, Network], float_layers: Collection[str]) -> None:
    known = {layer.name for network in networks.values() for layer in network.layers}
    for name in float_layers:
        if name not in known:
            raise InputError(f"no layer {name!r} in this network: `edgeseg inspect --all {bundle.path}` lists them")


def _writable(bundle: Bundle, networks: dict[int, Network], asked: Sequence[Encoding] | None) -> Sequence[Encoding]:
    """The encodings asked for, or all; raises CalibrationError, or leaves out, what TensorRT would refuse."""
    if asked is not None and "tensorrt" not in asked:
        return asked
    found = {bundle.variant(stride, "fp32").file: check(network.model) for stride, network in networks.items()}
    if asked is not None:
        for name, findings in found.items():
            refuse(findings, name, CalibrationError)
        return asked
    lines = by_rule(tuple({finding: None for findings in found.values() for finding in findings}))
    for line in lines:
        warnings.warn(
            f"backend tensorrt will refuse this network, its encodings are left out: {line}",
            RuntimeWarning,
            stacklevel=3,
        )
    return ("cpu",) if lines else ENCODINGS


def _check_labels(guard: Dataset) -> None:
    """Refuse labels without a single pixel of a class: nothing could be said of mIoU."""
    if guard.labelled and all(
        (guard.label(index, guard.frame(index).shape[:2]) == IGNORE).all() for index in range(len(guard))
    ):
        raise InputError(f"the guard's labels of {guard.source} are void throughout: give others, or none")


def _seen(learnt: dict[int, Learnt]) -> list[str]:
    """The digests of the images that tables were made of."""
    return [digest for found in learnt.values() for digest in found.ranges.images]


def _choices(bundle: Bundle) -> dict[tuple[int, Encoding], Calibration]:
    """What an earlier calibration chose for the bundle's int8 variants."""
    return {(v.output_stride, v.encoding): v.calibration for v in bundle.manifest.variants if v.calibration}


def _unguarded(guard: Guard | None, *, again: bool) -> list[str]:
    if guard is not None:
        return []
    kept = "; rules and layers in float are the earlier calibration's, where not given" if again else ""
    return [f"no guard ran: nothing was measured{kept}"]


def _lost(before: Bundle, after: Bundle) -> list[str]:
    """What the bundle had in int8 that is not in this one."""
    old = {v.file: v for v in before.manifest.variants if v.precision == "int8"}
    if not old:
        return []
    replaced = [Path(name).stem for name in old if name in after.manifest.files]
    dropped = [Path(name).stem for name in old if name not in after.manifest.files]
    said = [f"{what}: {', '.join(names)}" for what, names in (("replaced", replaced), ("dropped", dropped)) if names]
    if any(variant.certificates for variant in old.values()):
        said.append("certificates are void: edgeseg verify --certify")
    return [f"int8 variants {'; '.join(said)}"]


def _fixed(found: Learnt, float_layers: Collection[str]) -> tuple[str, ...]:
    names = {layer.name for layer in found.network.layers}
    return tuple(sorted(found.float_only | (names & set(float_layers))))


def _search(
    bundle: Bundle, learnt: dict[int, Learnt], outcomes: list[Outcome], guard: Guard, method: str | None, tell: Tell
) -> None:
    """Search every variant, each with its share of the time that is left; the rest of it tells what layers cost."""
    end = time.monotonic() + guard.budget_s
    searches: list[Search] = []
    for stride, found in learnt.items():
        tell(f"output stride {stride}: fp32 on {len(guard.images)} guard images")
        judge = Judge(bundle, bundle.variant(stride, "fp32"), guard.images)
        for outcome in (one for one in outcomes if one.output_stride == stride):
            now = time.monotonic()
            deadline = now + (end - now) / (len(outcomes) - len(searches))
            encode = functools.partial(encoded, found, outcome.encoding)
            search = Search(judge, encode, found.network.layers, guard.limit, deadline, outcome, tell)
            search.run([method] if method else tables.METHODS, frozenset(outcome.float_layers))
            searches.append(search)
            if outcome.measured is not None and not outcome.holds:
                why, advice = "up to all layers but one in float", "allow more loss"
                if not search.exhausted:
                    why = "; ".join(["time ran out", *outcome.notes])
                    advice = f"give more time than {guard.budget_s:g} s, or allow more loss"
                raise CalibrationError(
                    f"output stride {stride} in encoding {outcome.encoding} loses too much: "
                    f"{guard.limit.text(outcome.measured)} with {len(outcome.float_layers)} layers in float, the best "
                    f"of {len(outcome.trials)} tried ({why}): {advice}; nothing was written"
                )
    for search in sorted(searches, key=lambda search: -search.outcome.output_stride):  # the fastest graphs first
        if search.outcome.encoding == "cpu":
            search.deadline = end
            search.cost_layers()
