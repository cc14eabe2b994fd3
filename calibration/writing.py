"""The bundle that a calibration makes: int8 graphs beside the float ones, and the answers they are held to."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import onnx

from edgeseg import bundle as bundles
from edgeseg import manifest
from edgeseg.bundle import Bundle
from edgeseg.calibration import ranges as tables
from edgeseg.calibration.encode import encode_cpu, encode_tensorrt
from edgeseg.calibration.search import Outcome
from edgeseg.calibration.table import Learnt
from edgeseg.calibration.verification import simulated_answers
from edgeseg.errors import BundleError, CalibrationError
from edgeseg.manifest import Calibration, Variant
from edgeseg.surgery.half import to_typed_fp16
from edgeseg.surgery.shared_weights import SharedWeights
from edgeseg.surgery.tensorrt_rules import check, refuse
from edgeseg.types import Encoding, Image, Model

_WEIGHTS = "weights-int8.bin"


def encoded(found: Learnt, encoding: Encoding, method: str, float_layers: Collection[str]) -> onnx.ModelProto:
    """One output stride's graph in int8; raises BundleError where its table lacks the method."""
    if method not in found.ranges.methods:
        raise BundleError(f"the table of {found.ranges.graph} has no method {method!r}: calibrate again, with images")
    encode = encode_cpu if encoding == "cpu" else encode_tensorrt
    return encode(found.network, found.ranges.methods[method], found.weights, float_layers)


def write(
    bundle: Bundle,
    output: Path,
    learnt: dict[int, Learnt],
    outcomes: Sequence[Outcome],
    encodings: Sequence[Encoding],
    guarded: Collection[str],
    overwrite: bool,
) -> Bundle:
    """The bundle with its float variants as they are, new int8 ones beside them, and their golden answers.

    `guarded` are the digests of the guard's images. Raises BundleError; CalibrationError for a graph that
    TensorRT would refuse.
    """
    floats = tuple(variant for variant in bundle.manifest.variants if variant.precision != "int8")
    kept = {bundle.manifest.golden.file, *(name for v in floats for name in (v.file, v.weights) if name)}
    files = {name: bundle.file(name).read_bytes() for name in bundle.manifest.files if name in kept}
    shared, variants = SharedWeights(_WEIGHTS), []
    for outcome in outcomes:
        stride, found = outcome.output_stride, learnt[outcome.output_stride]
        # layers that an earlier guard left in float, and this one must, were chosen on its images
        guards = tuple(dict.fromkeys((*found.ranges.guard_images, *guarded)))
        ranges = dataclasses.replace(found.ranges, guard_images=guards)
        name = f"ranges-os{stride}.json"
        files[name] = tables.dumps(ranges)
        how = Calibration(name, outcome.method, outcome.float_layers, len(ranges.images), outcome.guard_images)
        model = encoded(found, outcome.encoding, outcome.method, outcome.float_layers)
        made: dict[Encoding, onnx.ModelProto] = {outcome.encoding: model}
        if outcome.encoding == "tensorrt" and "tensorrt_fp16" in encodings:
            made["tensorrt_fp16"] = to_typed_fp16(model)
        for encoding, graph in made.items():
            file = f"os{stride}-int8-{encoding.replace('_', '-')}.onnx"
            graph.graph.name = file.removesuffix(".onnx")
            if encoding != "cpu":
                refuse(check(graph), file, CalibrationError)
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
        tuned=(),  # among other variants
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
