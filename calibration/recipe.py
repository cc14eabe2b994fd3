"""From a bundle and images to a bundle with int8 variants: learn, search under the guard, prove, write."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgeseg import bundle as bundles
from edgeseg import manifest
from edgeseg.bundle import Bundle
from edgeseg.calibration import ranges as tables
from edgeseg.calibration import table
from edgeseg.calibration.datasets import Dataset, refuse_overlap
from edgeseg.calibration.encode import encode_cpu, encode_tensorrt
from edgeseg.calibration.judging import Judge, Limit
from edgeseg.calibration.network import Network, read_network
from edgeseg.calibration.search import Outcome, Search
from edgeseg.calibration.table import Learnt, Rounding, Tell
from edgeseg.calibration.typed import to_typed_fp16
from edgeseg.calibration.verification import simulated_answers
from edgeseg.errors import BundleError, CalibrationError, InputError
from edgeseg.manifest import Calibration, Variant
from edgeseg.surgery.shared_weights import SharedWeights
from edgeseg.types import Encoding, Image, Model

DEFAULT_METHOD = "mse"
"""Of the rules for ranges, the one whose masks agree best with fp32 on the networks measured (README)."""
ENCODINGS: tuple[Encoding, ...] = ("cpu", "tensorrt", "tensorrt_fp16")
_WEIGHTS = "weights-int8.bin"


@dataclass(frozen=True, slots=True)
class Guard:
    """How accuracy is guarded: on which images, within which limit, for at most how many seconds."""

    images: Dataset
    limit: Limit = Limit()  # noqa: RUF009 (frozen)
    budget_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A calibrated bundle, what the search found per variant, and how long each step took, in seconds."""

    bundle: Bundle
    outcomes: tuple[Outcome, ...]
    seconds: dict[str, float]


def calibrate(
    path: str | Path,
    output: str | Path,
    images: Dataset | None,
    *,
    guard: Guard | None = None,
    method: str | None = None,
    float_layers: Collection[str] = (),
    rounding: Rounding = Rounding(),  # noqa: B008 (frozen)
    encodings: Sequence[Encoding] = ENCODINGS,
    output_strides: Sequence[int] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    tell: Tell = lambda step: None,
) -> Calibrated:
    """Write a copy of the bundle at `path` to `output` with int8 variants of its fp32 ones (`output_strides`: all).

    `images` are what is calibrated on (`edgeseg.calibration.datasets.open_dataset`); None takes ranges and weights
    from the bundle's own earlier calibration, and without a guard its methods and float layers too. `method` is one of
    `ranges.METHODS`; None leaves it to the guard, or is `mse` without one. `float_layers` are left in float whatever
    the guard finds. With a `guard` every variant stays within its limit on the guard's images, which must be others, or
    nothing is written. All int8 variants that the bundle had are replaced.

    Raises CalibrationError where no candidate holds in time; InputError, ImageError, BundleError, ExportError.
    """
    path, output = Path(path), Path(output)
    bundles.refuse_overwrite(output, overwrite=overwrite)
    bundle = Bundle.open(path)
    strides = tuple(dict.fromkeys(output_strides or bundle.output_strides))
    _check(bundle, strides, method, encodings)
    for dataset in (images, None if guard is None else guard.images):
        if dataset is not None and not dataset.samples:
            raise InputError(f"none of the images in {dataset.source} was taken: give some")
    networks = {stride: read_network(bundle, bundle.variant(stride, "fp32")) for stride in strides}
    _check_layers(networks, float_layers)
    clock = _Clock()
    learnt = table.read(bundle, networks) if images is None else {}
    if guard is not None:
        seen = images.digests() if images is not None else _seen(learnt)
        refuse_overlap(guard.images.digests(), seen, "guard images", "calibration images")
    if images is not None:
        learnt = table.learn(bundle, networks, images, rounding, seed=seed, tell=tell)
    clock.lap("calibration")
    earlier = _choices(bundle) if images is None and guard is None else {}
    outcomes = []
    for stride in strides:
        for encoding in (one for one in ENCODINGS if one in encodings and one != "tensorrt_fp16"):
            kept = earlier.get((stride, encoding), Calibration("", DEFAULT_METHOD))
            floats = _fixed(learnt[stride], (*float_layers, *kept.float_layers))
            outcomes.append(Outcome(stride, encoding, method or kept.method, floats))
    if guard is not None:
        _search(bundle, learnt, outcomes, guard, method, tell)
        clock.lap("guard")
    tell("writing")
    written = _write(bundle, output, learnt, outcomes, encodings, guard, overwrite)
    clock.lap("writing and golden frames")
    return Calibrated(written, tuple(outcomes), clock.seconds)


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self._last = round(now - self._last, 2), now


def _check(bundle: Bundle, strides: Sequence[int], method: str | None, encodings: Sequence[Encoding]) -> None:
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


def _check_layers(networks: dict[int, Network], float_layers: Collection[str]) -> None:
    known = {layer.name for network in networks.values() for layer in network.layers}
    for name in float_layers:
        if name not in known:
            raise InputError(f"no layer {name!r} in this network: `edgeseg inspect --all` lists them")


def _seen(learnt: dict[int, Learnt]) -> list[str]:
    """The digests of the images that tables were made of."""
    return [digest for found in learnt.values() for digest in found.ranges.images]


def _choices(bundle: Bundle) -> dict[tuple[int, Encoding], Calibration]:
    """What an earlier calibration chose for the bundle's int8 variants."""
    return {(v.output_stride, v.encoding): v.calibration for v in bundle.manifest.variants if v.calibration}


def _fixed(found: Learnt, float_layers: Collection[str]) -> tuple[str, ...]:
    names = {layer.name for layer in found.network.layers}
    return tuple(sorted(found.float_only | (names & set(float_layers))))


def _encode(found: Learnt, encoding: Encoding, method: str, float_layers: Collection[str]) -> onnx.ModelProto:
    if method not in found.ranges.methods:
        raise BundleError(f"the table of {found.ranges.graph} has no method {method!r}: calibrate again, with images")
    encode = encode_cpu if encoding == "cpu" else encode_tensorrt
    return encode(found.network, found.ranges.methods[method], found.weights, float_layers)


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
            encode = functools.partial(_encode, found, outcome.encoding)
            search = Search(judge, encode, found.network.layers, guard.limit, deadline, outcome, tell)
            search.run([method] if method else tables.METHODS, frozenset(outcome.float_layers))
            searches.append(search)
            if outcome.measured is not None and not outcome.holds:
                raise CalibrationError(
                    f"output stride {stride} in encoding {outcome.encoding} loses too much: "
                    f"{guard.limit.text(outcome.measured)} with {len(outcome.float_layers)} layers in float, the best "
                    f"of {len(outcome.trials)} tried: allow more loss, or more time than {guard.budget_s:g} s; nothing "
                    "was written"
                )
    for search in sorted(searches, key=lambda search: -search.outcome.output_stride):  # the fastest graphs first
        if search.outcome.encoding == "cpu":
            search.deadline = end
            search.cost_layers()


def _write(
    bundle: Bundle,
    output: Path,
    learnt: dict[int, Learnt],
    outcomes: Sequence[Outcome],
    encodings: Sequence[Encoding],
    guard: Guard | None,
    overwrite: bool,
) -> Bundle:
    """The bundle with its float variants as they are, new int8 ones beside them, and their golden answers."""
    floats = tuple(variant for variant in bundle.manifest.variants if variant.precision != "int8")
    kept = {bundle.manifest.golden.file, *(name for v in floats for name in (v.file, v.weights) if name)}
    files = {name: bundle.file(name).read_bytes() for name in bundle.manifest.files if name in kept}
    guarded = guard.images.digests() if guard is not None else {}
    shared, variants = SharedWeights(_WEIGHTS), []
    for outcome in outcomes:
        stride, found = outcome.output_stride, learnt[outcome.output_stride]
        # layers that an earlier guard left in float, and this one must, were chosen on its images
        guards = tuple(dict.fromkeys((*found.ranges.guard_images, *guarded)))
        ranges = dataclasses.replace(found.ranges, guard_images=guards)
        name = f"ranges-os{stride}.json"
        files[name] = tables.dumps(ranges)
        how = Calibration(name, outcome.method, outcome.float_layers, len(ranges.images), len(ranges.guard_images))
        model = _encode(found, outcome.encoding, outcome.method, outcome.float_layers)
        made: dict[Encoding, onnx.ModelProto] = {outcome.encoding: model}
        if outcome.encoding == "tensorrt" and "tensorrt_fp16" in encodings:
            made["tensorrt_fp16"] = to_typed_fp16(model)
        for encoding, graph in made.items():
            file = f"os{stride}-int8-{encoding.replace('_', '-')}.onnx"
            graph.graph.name = file.removesuffix(".onnx")
            shared.take_from(graph)
            files[file] = graph.SerializeToString(deterministic=True)
            variants.append(
                dataclasses.replace(
                    bundle.variant(stride, "fp32"),
                    precision="int8",
                    encoding=encoding,
                    file=file,
                    weights=_WEIGHTS,
                    parity=None,
                    calibration=how,
                )
            )
    files[_WEIGHTS] = shared.data()
    files[bundle.manifest.golden.file] = _golden(bundle, floats, variants, files)
    made_manifest = dataclasses.replace(
        bundle.manifest,
        name=output.stem,
        variants=(*floats, *variants),
        files={name: bundles.describe_file(data) for name, data in files.items()},
        golden=dataclasses.replace(bundle.manifest.golden, tolerances=manifest.TOLERANCES),
    )
    return bundles.write(output, made_manifest, files, overwrite=overwrite)


def _golden(bundle: Bundle, floats: Sequence[Variant], variants: Sequence[Variant], files: dict[str, bytes]) -> bytes:
    """golden.npz with the answers of the float variants as they are, and those of the new ones, simulated."""
    indices = range(bundle.manifest.golden.frames)
    known = {(v.output_stride, v.encoding): [bundle.golden(v, index) for index in indices] for v in floats}
    frames: list[Image] = [golden.frame for golden in next(iter(known.values()))]
    answers = {key: [(golden.logits, golden.class_map) for golden in goldens] for key, goldens in known.items()}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / _WEIGHTS).write_bytes(files[_WEIGHTS])
        for variant in variants:
            if variant.encoding == "tensorrt_fp16":
                continue
            graph = Path(folder) / variant.file
            graph.write_bytes(files[variant.file])
            model = Model(
                path=graph,
                digest=bundles.describe_file(files[variant.file]).sha256,
                precision="int8",
                encoding=variant.encoding,
                input_size=bundle.manifest.preprocess.input_size,
                logits_shape=variant.logits_shape,
                batch=variant.batch,
            )
            answers[variant.output_stride, variant.encoding] = simulated_answers(model, bundle.manifest, frames)
    return bundles.pack_golden(frames, answers)
