"""A bundle at another input size or with other classes: its checkpoint exported, and calibrated, anew."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgeseg import images
from edgeseg.benchmarks.quality import torch_masks
from edgeseg.bundle import Bundle
from edgeseg.calibration.datasets import Dataset, open_dataset, refuse_overlap
from edgeseg.errors import BackendMissing, InputError
from edgeseg.loading import EMBEDDED, choose_stride
from edgeseg.manifest import TOLERANCES, ClassInfo
from edgeseg.scene import street_scene
from edgeseg.types import Size

Tell = Callable[[str], object]

_SIDES = (32, 8192)
"""What a drawn scene may have, and so the golden frames."""
_SCENES, _SEED = 16, 1000
"""Apart from the scenes that are golden frames, and those that benchmarks feed."""
_IMAGES = 64
"""Calibration's own default."""
_PACKAGES = ("torch", "safetensors", "onnx", "onnxscript", "onnxruntime")


def resized(
    bundle: Bundle,
    size: Size,
    folder: Path,
    *,
    weights: Path,
    classes: int | None = None,
    output_strides: Sequence[int] | None = None,
    calibration: Dataset | None = None,
    int8: bool = True,
    progress: Tell = lambda step: None,
) -> Bundle:
    """The bundle's network at another input size (height, width), as a bundle NAME-HxW.edgeseg in `folder`.

    `weights` is its checkpoint (`checkpoints.read_checkpoint`). Classes and preprocessing are the bundle's, output
    strides too unless some are named. With another number of `classes` it is for timing only
    (`checkpoints.with_classes`). Where it has int8 for CPUs, so has the new one (unless not `int8`), calibrated
    on `calibration` or else on drawn scenes, without a guard. `progress` is told each step.

    Raises InputError for a size or classes that cannot be had and a checkpoint that is not the bundle's, BundleError
    for a stride that it lacks, BackendMissing where a package for exporting is not installed, ExportError,
    CalibrationError.
    """
    check_size(size)
    names = _names(bundle, classes)
    strides = [choose_stride(bundle, stride) for stride in dict.fromkeys(output_strides or bundle.output_strides)]
    quantized = [stride for stride in strides if int8 and stride in _quantized(bundle)]
    progress("comparing the checkpoint with the bundle")
    try:
        from edgeseg import exporter
        from edgeseg.benchmarks.checkpoints import read_checkpoint, with_classes
        from edgeseg.calibration import recipe

        model = read_checkpoint(weights)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _PACKAGES:
            raise
        raise BackendMissing(f'exporting needs the package {error.name}: pip install "edgeseg[export]"') from error
    _check_belongs(bundle, weights, max(strides))
    if classes is not None:
        with_classes(model, classes)
    name = f"{bundle.path.resolve().stem}-{size[0]}x{size[1]}.edgeseg"
    preprocess = bundle.manifest.preprocess
    with tempfile.TemporaryDirectory() as temporary:
        exported = exporter.export(
            model,
            (Path(temporary) if quantized else folder) / name,
            input_size=size,
            classes=names,
            mean=preprocess.mean,
            std=preprocess.std,
            output_strides=strides,
            fit=preprocess.fit,
            interpolation=preprocess.interpolation,
            dynamic_batch=bundle.manifest.variants[0].batch is None,
            progress=_steps(progress, "exporting"),
        )
        if not quantized:
            return exported
        if calibration is None:
            progress("drawing scenes to calibrate on")
            calibration = _drawn(exported, Path(temporary) / "scenes")
        return recipe.calibrate(
            exported.path,
            folder / name,
            calibration,
            encodings=("cpu",),
            output_strides=quantized,
            tell=_steps(progress, "calibrating"),
        ).bundle


def as_asked(
    bundle: Bundle,
    size: Size | None,
    folder: Path,
    *,
    weights: Path | None,
    calibrate_on: Path | None,
    classes: int | None = None,
    apart_from: Dataset | None = None,
    output_strides: Sequence[int] | None = None,
    int8: bool = True,
    progress: Tell = lambda step: None,
) -> tuple[Bundle, str]:
    """What --size, --classes, --weights and --calibrate-on mean: the bundle as it is, or `resized` and the `remark`.

    Raises InputError for options that need others, and for images to calibrate on that are among `apart_from`.
    """
    if size is None and classes is None:
        if calibrate_on is not None:
            raise InputError("--calibrate-on is about int8 of what --size exports anew: give that too")
        return bundle, ""
    if weights is None:
        own = " (in a checkout weights/deeplabv3_mobilenet_v2.safetensors)" if bundle.path == EMBEDDED else ""
        asked = "--classes" if size is None else "--size"
        raise InputError(f"{asked} exports the network anew: give the bundle's checkpoint{own} with --weights")
    if not weights.is_file():
        raise InputError(f"--weights: there is no file {weights}")
    calibration = None
    if calibrate_on is not None:
        if not int8 or not _quantized(bundle):
            raise InputError("--calibrate-on is about int8, and none is measured: leave it out")
        calibration = calibration_images(bundle, calibrate_on, apart_from)
    found = resized(
        bundle,
        size or bundle.manifest.preprocess.input_size,
        folder,
        weights=weights,
        classes=classes,
        output_strides=output_strides,
        calibration=calibration,
        int8=int8,
        progress=progress,
    )
    said, count = remark(found, calibration), len(bundle.manifest.classes)
    if classes is not None and classes > count:
        said += f", with {classes} classes, {classes - count} of them untrained"
    elif classes is not None:
        said += f", with the first {classes} classes of {count}"
    return found, said


def check_size(size: Size) -> None:
    """Raise InputError for an input size (height, width) that `resized` refuses."""
    if not all(_SIDES[0] <= side <= _SIDES[1] for side in size):
        raise InputError(f"input size is {size[0]}x{size[1]}: give height x width, each {_SIDES[0]} to {_SIDES[1]}")


def calibration_images(bundle: Bundle, folder: Path, apart_from: Dataset | None = None) -> Dataset:
    """At most 64 images of a folder, for `resized`; raises InputError where it has none, or one of `apart_from`."""
    found = open_dataset(folder, classes=bundle.manifest.classes)
    found = found.take(min(_IMAGES, len(found)), 0)
    if apart_from is not None:
        refuse_overlap(found.digests(), apart_from.digests(), "images to calibrate on", "images to measure on")
    return found


def remark(bundle: Bundle, calibration: Dataset | None) -> str:
    """In words, how `resized` came to this bundle, `calibration` being what it was given."""
    height, width = bundle.manifest.preprocess.input_size
    said = f"network exported anew at {height}x{width}"
    if not _quantized(bundle):
        return said
    on = f"drawn scenes {_SEED} to {_SEED + _SCENES - 1}"
    if calibration is not None:
        source = "".join(sign if sign.isprintable() else "?" for sign in str(calibration.source))
        on = f"{len(calibration)} image{'s' * (len(calibration) != 1)} of {source}"
    return f"{said}, its int8 calibrated on {on}, without a guard"


def _names(bundle: Bundle, count: int | None) -> list[str | ClassInfo]:
    """The bundle's classes, or as many as asked for."""
    own = list[str | ClassInfo](bundle.manifest.classes)
    if count is None:
        return own
    if bundle.manifest.head == "sigmoid":
        raise InputError(f"{bundle.path} has one channel of scores: its number of classes cannot be changed")
    if not 2 <= count <= 255:
        raise InputError(f"{count} classes were asked for: give 2 to 255")
    return own[:count] + [f"class {index}" for index in range(len(own), count)]


def _quantized(bundle: Bundle) -> set[int]:
    """The output strides that it has in int8 for CPUs."""
    return {variant.output_stride for variant in bundle.manifest.variants if variant.encoding == "cpu"}


def _steps(progress: Tell, work: str) -> Callable[[str], None]:
    def tell(step: str) -> None:
        progress(f"{work}: {step}")

    return tell


def _check_belongs(bundle: Bundle, weights: Path, stride: int) -> None:
    """Refuse another network's checkpoint before minutes of exporting: torch's mask of a golden frame tells."""
    golden = bundle.golden(bundle.variant(stride, "fp32"))
    try:
        mask = torch_masks(bundle, weights, stride)(golden.frame)
    except InputError as error:
        why = str(error).partition(":")[0]  # what could be done about it is not meant here
        raise InputError(
            f"{weights} is not the checkpoint of {bundle.path} ({why}): give the one that the bundle was exported from"
        ) from error
    equal = float(np.mean(mask == golden.class_map))
    if equal < TOLERANCES["fp32"].mask_agreement:
        raise InputError(
            f"{weights} is not the checkpoint of {bundle.path}: at output stride {stride} its mask of a golden frame "
            f"has {equal:.2%} of the pixels equal; give the one that the bundle was exported from"
        )


def _drawn(bundle: Bundle, folder: Path) -> Dataset:
    folder.mkdir()
    for seed in range(_SEED, _SEED + _SCENES):
        images.write(folder / f"{seed}.png", street_scene(seed, bundle.manifest.preprocess.input_size)[0])
    return open_dataset(folder, classes=bundle.manifest.classes)
