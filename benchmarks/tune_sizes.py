"""The bundles that compete where other input sizes are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgeseg.benchmarks.resized import check_size, remark, resized
from edgeseg.bundle import Bundle
from edgeseg.calibration.datasets import Dataset, refuse_overlap
from edgeseg.errors import InputError
from edgeseg.types import Size


def check_sizes(
    sizes: Sequence[Size],
    weights: Path | None,
    calibrate_on: Dataset | None,
    images: Dataset | None,
    output: str | Path | None,
) -> None:
    """Raise InputError for what cannot be asked for together, before anything is opened."""
    if not sizes and (weights is not None or calibrate_on is not None):
        raise InputError("a checkpoint and images to calibrate on are for other input sizes: give those too")
    for size in sizes:
        check_size(size)
    if sizes and weights is None:
        raise InputError(
            "other input sizes are exported anew: give the bundle's checkpoint (--weights; in a checkout the embedded "
            "network's is weights/deeplabv3_mobilenet_v2.safetensors)"
        )
    if sizes and output is None:
        raise InputError("another input size may win, and is another bundle: say where to write it (-o)")
    if calibrate_on is not None and images is None:
        raise InputError(
            "images to calibrate on are for int8 at other input sizes, which competes where its mIoU can be measured: "
            "give labelled images too"
        )
    if calibrate_on is not None and images is not None:
        refuse_overlap(calibrate_on.digests(), images.digests(), "images to calibrate on", "images to measure on")


def by_size(
    bundle: Bundle,
    sizes: Sequence[Size],
    weights: Path | None,
    calibrate_on: Dataset | None,
    folder: Path,
    notes: list[str],
    progress: Callable[[str], object],
    *,
    int8: bool,
) -> dict[Size | None, Bundle]:
    """The bundle alone, under None; or where there are others each under its input size, exported into `folder`.

    `int8` makes int8 of others, where the bundle has it. `notes` are told how they came about.
    """
    own = bundle.manifest.preprocess.input_size
    others = [size for size in dict.fromkeys(sizes) if size != own]
    if weights is None or not others:
        return {None: bundle}
    found: dict[Size | None, Bundle] = {own: bundle}
    for size in others:
        made = resized(bundle, size, folder, weights=weights, calibration=calibrate_on, int8=int8, progress=progress)
        notes.append(remark(made, calibrate_on))
        found[size] = made
    return found
