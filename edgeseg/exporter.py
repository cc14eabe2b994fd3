"""From a network to a bundle: one ONNX graph per output stride on one weights file, each checked against the original.

The originals are `edgeseg.sources.torch_source` (any nn.Module) and `edgeseg.sources.onnx_source` (any ONNX file).
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from edgeseg import bundle as bundles
from edgeseg import decode, manifest
from edgeseg.backends.base import Options
from edgeseg.backends.ort import OrtBackend
from edgeseg.bundle import Answers, Bundle
from edgeseg.errors import ExportError, InputError
from edgeseg.palette import voc_palette
from edgeseg.preprocess import Preprocessor
from edgeseg.scene import street_scene
from edgeseg.sources.base import OnnxReading, Source, Stage
from edgeseg.surgery.means import with_pooled_means
from edgeseg.surgery.shared_weights import SharedWeights
from edgeseg.surgery.tensorrt_rules import Finding, by_rule, check
from edgeseg.types import IGNORE, ClassMap, Encoding, Image, Logits, Model, Preprocess, Size

if TYPE_CHECKING:
    from torch import nn

_LOGIT_LIMIT = 1e-3
_MASK_LIMIT = 0.9999
_ROUNDING = 2e-6
"""float32 networks differ by about this share of the logits' scale from one runtime to the next."""
_LARGEST_MEAN = 2.0
_GOLDEN_SEEDS = (0, 8, 13)
_WEIGHTS = "weights-fp32.bin"


def export(
    model: nn.Module | Source | str | Path,
    path: str | Path,
    *,
    input_size: Size,
    classes: Sequence[str | manifest.ClassInfo],
    mean: Sequence[float],
    std: Sequence[float],
    output_strides: Sequence[int] | None = None,
    fit: Literal["stretch", "letterbox"] = "stretch",
    interpolation: Literal["bilinear", "area"] = "bilinear",
    dynamic_batch: bool = False,
    reading: OnnxReading = OnnxReading(),  # noqa: B008 (frozen)
    frames: Sequence[Image] | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Bundle:
    """Export a network as a bundle at `path`.

    `model` is an nn.Module (normalised float32 (N, 3, h, w) in; scores out, as a tensor, in a dict or first in a tuple)
    or the path of an ONNX file. A trailing bilinear upsampling, softmax, sigmoid or argmax is cut off: decoding does it
    exactly, at any frame's size. `classes` are names in channel order (PASCAL VOC's colours unless given); a
    one-channel model has two, background first. `mean` and `std` are per channel for RGB scaled to 0..1.
    `output_strides` turns the network's strides into dilation (`edgeseg.models.set_output_stride`); None exports it as
    it is. `dynamic_batch` makes graphs for any batch size. `reading` tells how to understand an ONNX file.

    Every graph runs in ONNX Runtime on `frames` (RGB, any size; drawn street scenes by default) and is compared with
    the original: beyond 1e-3 on logits (or 2e-6 of their scale, float32's own rounding, if that is more) or below
    99.99 % equal mask pixels, nothing is written. The frames become the golden frames, so they must be free to share.
    What TensorRT would refuse is told in RuntimeWarnings, by layer and remedy; other backends run it.

    Raises ExportError; InputError for arguments that make no sense; BundleError where `path` is taken.
    """
    path = Path(path)
    bundles.refuse_overwrite(path, overwrite=overwrite)
    if output_strides is not None and (not output_strides or min(output_strides) < 1):
        raise InputError(f"output_strides is {tuple(output_strides)}: give at least one, each 1 or more")
    _check_names(classes)
    preprocess = _checked_preprocess(input_size, mean, std, fit, interpolation)
    drawn = [street_scene(seed, input_size)[0] for seed in _GOLDEN_SEEDS] if frames is None else frames
    if not drawn:
        raise InputError("frames is empty: give at least one, or leave it out")
    pixels = [Preprocessor(preprocess).prepare(frame)[0].copy() for frame in drawn]
    reading = dataclasses.replace(reading, channels=reading.channels or len(classes))
    source = _source(model, preprocess, dynamic_batch, reading)
    progress("reading the network")
    infos: tuple[manifest.ClassInfo, ...] = ()
    weights = SharedWeights(_WEIGHTS)
    files: dict[str, bytes] = {}
    variants: list[manifest.Variant] = []
    answers: dict[tuple[int, Encoding], Answers] = {}
    refused: dict[Finding, None] = {}  # most layers are the same at every stride
    for stage in source.stages(output_strides):
        stride = stage.output_stride
        infos = infos or _checked_classes(classes, stage.logits_shape[0])
        progress(f"output stride {stride}: comparing with {source.reference}")
        graph = with_pooled_means(stage.graph())
        graph.graph.name = f"{path.stem}-os{stride}"
        refused |= dict.fromkeys(check(graph))
        weights.take_from(graph)
        name = f"os{stride}-fp32.onnx"
        files[name] = graph.SerializeToString(deterministic=True)
        parity, answers[stride, "float"] = _prove(stage, source.reference, files[name], weights, pixels)
        batch = None if dynamic_batch else 1
        variants.append(manifest.Variant(stride, "fp32", "float", name, stage.logits_shape, batch, _WEIGHTS, parity))
        progress(f"output stride {stride}: {parity.mask_agreement:.4%} of mask pixels equal")
    for line in by_rule(tuple(refused)):
        warnings.warn(f"backend tensorrt will refuse this network: {line}", RuntimeWarning, stacklevel=2)
    files[_WEIGHTS] = weights.data()
    files["golden.npz"] = bundles.pack_golden(pixels, answers)
    made = manifest.Manifest(
        name=path.stem,
        classes=infos,
        head="sigmoid" if variants[0].logits_shape[0] == 1 else "softmax",
        values=stage.values,
        preprocess=preprocess,
        align_corners=stage.align_corners,
        variants=tuple(variants),
        files={name: bundles.describe_file(data) for name, data in files.items()},
        golden=manifest.GoldenInfo("golden.npz", len(pixels), manifest.TOLERANCES),
        producer={"edgeseg": version("edgeseg"), **source.producer},
    )
    return bundles.write(path, made, files, overwrite=overwrite)


def _source(
    model: nn.Module | Source | str | Path, preprocess: Preprocess, dynamic_batch: bool, reading: OnnxReading
) -> Source:
    if isinstance(model, (str, Path)):
        from edgeseg.sources.onnx_source import OnnxSource

        return OnnxSource(model, preprocess, reading=reading, dynamic_batch=dynamic_batch)
    if not isinstance(model, type) and hasattr(model, "stages"):
        return cast(Source, model)
    # A module's class comes from torch, so where torch is absent this is none.
    if not any(kind.__module__.startswith("torch.nn") for kind in type(model).__mro__):
        raise InputError(f"model is a {type(model).__name__}: give an nn.Module or the path of an ONNX file")
    from edgeseg.sources.torch_source import TorchSource

    return TorchSource(cast("nn.Module", model), preprocess, dynamic_batch=dynamic_batch)


def _checked_preprocess(
    size: Size, mean: Sequence[float], std: Sequence[float], fit: str, interpolation: str
) -> Preprocess:
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"input_size is {size}: give (height, width) in pixels")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3 or not np.all(np.isfinite(values)):
            raise InputError(f"{name} is {values}: give three numbers, for RGB scaled to 0..1")
    if min(std) <= 0:
        raise InputError(f"std is {std}: every channel's must be positive")
    if max(map(abs, mean)) > _LARGEST_MEAN or max(std) > _LARGEST_MEAN:
        raise InputError(f"mean {mean} and std {std} look like 0..255: divide by 255, they are for RGB scaled to 0..1")
    if fit not in ("stretch", "letterbox") or interpolation not in ("bilinear", "area"):
        raise InputError(f"fit {fit!r}, interpolation {interpolation!r}: choose stretch or letterbox, bilinear or area")
    return Preprocess(
        (int(size[0]), int(size[1])),
        (float(mean[0]), float(mean[1]), float(mean[2])),
        (float(std[0]), float(std[1]), float(std[2])),
        interpolation,  # type: ignore[arg-type]
        fit,  # type: ignore[arg-type]
    )


def _checked_classes(classes: Sequence[str | manifest.ClassInfo], channels: int) -> tuple[manifest.ClassInfo, ...]:
    expected = 2 if channels == 1 else channels
    if len(classes) != expected:
        binary = " (a one-channel model has two classes: background, then the object)" if channels == 1 else ""
        raise InputError(f"{len(classes)} class names for {channels} channels: give {expected}{binary}")
    if expected > IGNORE:
        raise InputError(f"{expected} classes: a class map holds 1 to {IGNORE}")
    colors = voc_palette(expected)
    return tuple(
        item if isinstance(item, manifest.ClassInfo) else manifest.ClassInfo(item, color)
        for item, color in zip(classes, colors, strict=True)
    )


def _check_names(classes: Sequence[str | manifest.ClassInfo]) -> None:
    names = [item if isinstance(item, str) else item.name for item in classes]
    if len(set(names)) != len(names) or not all(names):
        raise InputError(f"class names must be different and not empty: {', '.join(map(repr, names))}")


def _prove(
    stage: Stage, reference: str, graph: bytes, weights: SharedWeights, pixels: list[Image]
) -> tuple[manifest.Parity, Answers]:
    """Run one graph in ONNX Runtime; raises ExportError where it strays from the original."""
    size = (pixels[0].shape[0], pixels[0].shape[1])
    worst, equal, scale = 0.0, 0, 0.0
    answers: Answers = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        path.write_bytes(graph)
        (path.parent / _WEIGHTS).write_bytes(weights.data())
        model = Model(path, hashlib.sha256(graph).hexdigest(), "fp32", "float", size, stage.logits_shape)
        with OrtBackend().open(model, "cpu", Options(), None) as session:
            for frame in pixels:
                found = session.run(frame[None])[0]
                verdict = stage.judge(frame, found)
                if not (np.isfinite(found).all() and np.isfinite(verdict.logits).all()):
                    raise ExportError("the network's output has NaN or infinity on a golden frame: check the weights")
                worst, scale = max(worst, verdict.error), max(scale, verdict.scale)
                mask = _mask(found, size, stage)
                equal += int(np.count_nonzero(mask == verdict.class_map))
                answers.append((verdict.logits, verdict.class_map))
    agreement = equal / (len(pixels) * size[0] * size[1])
    limit = max(_LOGIT_LIMIT, _ROUNDING * scale)
    if not (worst <= limit and agreement >= _MASK_LIMIT):  # so that NaN fails
        raise ExportError(
            f"the graph at output stride {stage.output_stride} does not compute what {reference} does: logits differ "
            f"by {worst:.3g} (limit {limit:.3g}), {agreement:.4%} of mask pixels agree (limit {_MASK_LIMIT:.2%}); "
            f"nothing was written"
        )
    parity = manifest.Parity(len(pixels), float(f"{worst:.3g}"), agreement, reference, OrtBackend.version)
    return parity, answers


def _mask(logits: Logits, size: Size, stage: Stage) -> ClassMap:
    wants = decode.Wants(probabilities=stage.values == "probabilities")
    return decode.decode(logits, size, grid=decode.Grid(stage.align_corners), wants=wants).class_map
