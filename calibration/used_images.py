"""Which images a bundle was calibrated on, and whether others are fit to measure it on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgeseg._records import RecordError, from_json
from edgeseg.bundle import Bundle
from edgeseg.calibration.certificate import LabelledImages
from edgeseg.calibration.datasets import refuse_overlap
from edgeseg.errors import BundleError, InputError
from edgeseg.manifest import MIN_IMAGES


@dataclass(frozen=True, slots=True)
class Used:
    """What a table of ranges says of the images it was made from: their SHA-256 (all of it: `calibration.ranges`)."""

    images: tuple[str, ...]
    guard_images: tuple[str, ...] = ()


def used_by(bundle: Bundle) -> dict[str, Used]:
    """Per table of ranges the images it was made from; raises BundleError for what is no table."""
    found = {}
    for name in {v.calibration.ranges: None for v in bundle.manifest.variants if v.calibration is not None}:
        try:
            used = from_json(Used, json.loads(bundle.file(name).read_bytes()), "ranges")
            for digest in (*used.images, *used.guard_images):
                if not re.fullmatch("[0-9a-f]{64}", digest):
                    raise RecordError(f"ranges names an image {digest[:60]!r}: must be a SHA-256")
        except (ValueError, RecursionError) as error:  # RecordError is a ValueError
            raise BundleError(f"{bundle.path / name} is not a table of ranges ({error}): calibrate again") from error
        found[name] = used
    return found


def refuse_unfit(bundle: Bundle, images: LabelledImages, used: dict[str, Used], certify: bool) -> None:
    """Raise InputError for what cannot be measured on, before minutes go into golden frames."""
    if not isinstance(images, LabelledImages):
        raise InputError(
            f"images is a {type(images).__name__}: give edgeseg.calibration.datasets.open_dataset(folder, "
            "classes=bundle.manifest.classes), or the folder"
        )
    if not images.samples:
        raise InputError("images is empty: give labelled images")
    digests = images.digests()
    if certify and len(digests) < MIN_IMAGES:
        raise InputError(
            f"a certificate needs {MIN_IMAGES} different images or more, these are {len(digests)}: give more, or "
            "measure without certify"
        )
    refuse_used(bundle, digests, used)
    height, width = images.frame(0).shape[:2]
    images.label(0, (height, width))


def refuse_used(bundle: Bundle, digests: Mapping[str, str], used: dict[str, Used]) -> None:
    """Raise InputError where any of these images (`Dataset.digests`) went into the bundle's int8 variants."""
    for seen in used.values():
        refuse_overlap(digests, seen.images, "images", f"calibration images of {bundle.path.name}")
        refuse_overlap(
            digests, seen.guard_images, "images", f"images that chose the float layers of {bundle.path.name}"
        )


def flattered(digests: Mapping[str, str], used: dict[str, Used]) -> str:
    """Whether accuracy in int8 says too much, being of images that int8 was made with: a sentence, or nothing.

    `digests` are those of the images that it is measured on (`Dataset.digests`), `used` the bundle's (`used_by`).
    """
    count = len(digests.keys() & {one for seen in used.values() for one in (*seen.images, *seen.guard_images)})
    if not count:
        return ""
    return f"Accuracy in int8 is flattered: {count} of the {len(digests)} images were used to calibrate it."
