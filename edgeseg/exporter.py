"""From an nn.Module to a bundle: one ONNX graph per output stride on one weights file, each checked against torch.

torch and onnx are imported here, in `edgeseg.tracing` and in `edgeseg.models` only.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgeseg import bundle as bundles
from edgeseg import decode, manifest
from edgeseg.backends.base import Options
from edgeseg.bundle import Bundle
from edgeseg.errors import ExportError, InputError
from edgeseg.palette import voc_palette
from edgeseg.preprocess import Preprocessor
from edgeseg.scene import street_scene
from edgeseg.tracing import PixelNetwork, SharedWeights, trace
from edgeseg.types import IGNORE, ClassMap, Image, Logits, Preprocess, Size

_LOGIT_LIMIT = 1e-3
_MASK_LIMIT = 0.9999
_ROUNDING = 2e-6
"""float32 networks differ by about this share of the logits' scale from one runtime to the next."""
_GOLDEN_SEEDS = (0, 8, 13)
_WEIGHTS = "weights-fp32.bin"

Answers = list[tuple[Logits, ClassMap]]


def export(
    model: nn.Module,
    path: str | Path,
    *,
    input_size: Size,
    classes: Sequence[str | manifest.ClassInfo],
    mean: Sequence[float],
    std: Sequence[float],
    output_strides: Sequence[int] = (16,),
    fit: Literal["stretch", "letterbox"] = "stretch",
    interpolation: Literal["bilinear", "area"] = "bilinear",
    frames: Sequence[Image] | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Bundle:
    """Export `model` (normalised float32 (N, 3, h, w) in, low-resolution logits out) as a bundle at `path`.

    `classes` are names in channel order (PASCAL VOC's colours unless given); a one-channel model has two, background
    first. `mean` and `std` are per channel for RGB scaled to 0..1. A model with a method `set_output_stride` is
    exported at each of `output_strides`, another only at its own. Every graph runs in ONNX Runtime on `frames` (RGB,
    any size; drawn street scenes by default) and is compared with torch: beyond 1e-3 on logits (or 2e-6 of their
    scale, float32's own rounding, if that is more) or below 99.99 % equal mask pixels, nothing is written. The frames
    become the bundle's golden frames, so they must be free to share.

    Raises ExportError; InputError for arguments that make no sense; BundleError where `path` is taken.
    """
    path = Path(path)
    bundles.refuse_overwrite(path, overwrite=overwrite)
    if not output_strides or min(output_strides) < 1:
        raise InputError(f"output_strides is {tuple(output_strides)}: give at least one, each 1 or more")
    preprocess = _checked_preprocess(input_size, mean, std, fit, interpolation)
    drawn = [street_scene(seed, input_size)[0] for seed in _GOLDEN_SEEDS] if frames is None else frames
    pixels = [Preprocessor(preprocess).prepare(frame)[0].copy() for frame in drawn]
    model = copy.deepcopy(model).eval().cpu()
    weights = SharedWeights(_WEIGHTS)
    files: dict[str, bytes] = {}
    variants: list[manifest.Variant] = []
    answers: dict[int, Answers] = {}
    for stride in sorted(set(output_strides)):
        _set_output_stride(model, stride)
        progress(f"output stride {stride}: computing torch's answers")
        answers[stride] = _torch_answers(model, pixels, preprocess)
        shape = answers[stride][0][0].shape
        _check_stride(shape, input_size, stride)
        progress(f"output stride {stride}: tracing")
        proto = trace(PixelNetwork(model, preprocess), input_size, f"{path.stem}-os{stride}")
        weights.take_from(proto)
        name = f"os{stride}-fp32.onnx"
        files[name] = proto.SerializeToString(deterministic=True)
        variants.append(
            manifest.Variant(stride, "fp32", "float", name, (shape[0], shape[1], shape[2]), weights=_WEIGHTS)
        )
    channels = variants[0].logits_shape[0]
    files[_WEIGHTS] = weights.data()
    files["golden.npz"] = bundles.pack_golden(pixels, answers)
    draft = manifest.Manifest(
        name=path.stem,
        classes=_checked_classes(classes, channels),
        head="sigmoid" if channels == 1 else "softmax",
        preprocess=preprocess,
        align_corners=False,
        variants=tuple(variants),
        files={name: bundles.describe_file(data) for name, data in files.items()},
        golden=manifest.GoldenInfo("golden.npz", len(pixels), manifest.TOLERANCES),
        producer={name: version(name) for name in ("edgeseg", "torch", "onnx", "onnxscript")},
    )
    with tempfile.TemporaryDirectory() as folder:
        unproven = bundles.write(Path(folder) / path.name, draft, files)
        proven = []
        for variant in variants:
            progress(f"output stride {variant.output_stride}: comparing with torch")
            parity = _compare(unproven, variant, pixels, answers[variant.output_stride])
            proven.append(dataclasses.replace(variant, parity=parity))
    final = dataclasses.replace(draft, variants=tuple(proven))
    return bundles.write(path, final, files, overwrite=overwrite)


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
    infos = tuple(
        item if isinstance(item, manifest.ClassInfo) else manifest.ClassInfo(item, color)
        for item, color in zip(classes, colors, strict=True)
    )
    names = [info.name for info in infos]
    if len(set(names)) != len(names) or not all(names):
        raise InputError(f"class names must be different and not empty: {', '.join(map(repr, names))}")
    return infos


def _set_output_stride(model: nn.Module, stride: int) -> None:
    knob = getattr(model, "set_output_stride", None)
    if callable(knob):
        knob(stride)


def _check_stride(shape: tuple[int, ...], size: Size, stride: int) -> None:
    if shape[1:] != (-(-size[0] // stride), -(-size[1] // stride)):
        raise ExportError(
            f"the model gives {shape[1]}x{shape[2]} logits for a {size[0]}x{size[1]} input, which is not output stride "
            f"{stride}: ask for the stride it has, or give it a method set_output_stride"
        )


@torch.inference_mode()
def _torch_answers(model: nn.Module, pixels: list[Image], preprocess: Preprocess) -> Answers:
    """Logits and class maps as torch computes them from normalised floats: the oracle of the whole export."""
    answers: Answers = []
    for frame in pixels:
        normalised = (frame / np.float32(255) - np.array(preprocess.mean, np.float32)) / np.array(
            preprocess.std, np.float32
        )
        x = torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1), dtype=np.float32))[None]
        try:
            logits = model(x)
        except Exception as error:  # whatever the user's module raises
            raise ExportError(f"the model fails on a {tuple(x.shape)} input: {error}") from error
        if not isinstance(logits, torch.Tensor) or logits.ndim != 4 or not logits.is_floating_point():
            found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise ExportError(f"the model returns {found}: a float tensor (N, classes, h, w) of logits is needed")
        upsampled = functional.interpolate(logits, preprocess.input_size, mode="bilinear", align_corners=False)[0]
        mask = upsampled[0] > 0 if len(upsampled) == 1 else upsampled.argmax(0)
        answers.append((logits[0].float().numpy().copy(), mask.to(torch.uint8).numpy().copy()))
    return answers


def _compare(unproven: Bundle, variant: manifest.Variant, pixels: list[Image], answers: Answers) -> manifest.Parity:
    """Run one variant in ONNX Runtime; raises ExportError where it strays from torch."""
    from edgeseg.backends.ort import OrtBackend  # the vendor is imported when it is needed

    worst, equal, scale = 0.0, 0, 0.0
    size = unproven.manifest.preprocess.input_size
    with OrtBackend().open(unproven.model(variant), "cpu", Options(), None) as session:
        for frame, (logits, mask) in zip(pixels, answers, strict=True):
            found = session.run(frame[None])[0]
            worst = max(worst, float(np.abs(found - logits).max()))
            scale = max(scale, float(np.abs(logits).max()))
            equal += int(np.count_nonzero(decode.class_map(found, size) == mask))
    agreement = equal / (len(pixels) * size[0] * size[1])
    limit = max(_LOGIT_LIMIT, _ROUNDING * scale)
    if not (worst <= limit and agreement >= _MASK_LIMIT):
        raise ExportError(
            f"{variant.file} does not compute what torch does: logits differ by {worst:.3g} (limit {limit:.3g}), "
            f"{agreement:.4%} of mask pixels agree (limit {_MASK_LIMIT:.2%}); nothing was written"
        )
    return manifest.Parity(
        frames=len(pixels),
        max_abs_logit_error=float(f"{worst:.3g}"),
        mask_agreement=agreement,
        reference=f"torch {torch.__version__}",
        runtime=OrtBackend.version,
    )
