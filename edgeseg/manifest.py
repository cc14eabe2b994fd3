"""What a bundle says about itself: the records behind `manifest.json` (format 1, specified in the README)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from edgeseg._records import RecordError, from_json, to_json
from edgeseg.errors import BundleError
from edgeseg.types import IGNORE, Encoding, Precision, Preprocess

FORMAT = 1
"""Version of the bundle format this code writes and reads. 1: the first (edgeseg 0.1)."""

Rgb = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """One class: its name and the colour it is drawn in."""

    name: str
    color: Rgb


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of the bundle, by its plain name in the manifest's table."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Parity:
    """How close the exported graph came to torch on `frames` frames, at export."""

    frames: int
    max_abs_logit_error: float
    mask_agreement: float
    reference: str
    runtime: str


@dataclass(frozen=True, slots=True)
class Variant:
    """One ONNX file: the network at one output stride, precision and encoding."""

    output_stride: int
    precision: Precision
    encoding: Encoding
    file: str
    logits_shape: tuple[int, int, int]
    batch: int | None = 1
    weights: str | None = None
    parity: Parity | None = None


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a runtime may stray from the golden frames: share of the logits' scale, share of mask pixels."""

    logits: float
    mask_agreement: float


TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(1e-3, 0.9999),
    "fp16": Tolerance(5e-2, 0.99),
    "int8": Tolerance(3e-1, 0.95),
}
"""Defaults per executed precision; int8's is loose because its real proof is the certificate."""


@dataclass(frozen=True, slots=True)
class GoldenInfo:
    """Which file holds the golden frames, how many, and what may differ per precision."""

    file: str
    frames: int
    tolerances: dict[str, Tolerance]


@dataclass(frozen=True, slots=True)
class Manifest:
    """All of `manifest.json`. `head` is how scores become classes: argmax, or a threshold for one channel."""

    name: str
    classes: tuple[ClassInfo, ...]
    head: Literal["softmax", "sigmoid"]
    preprocess: Preprocess
    align_corners: bool
    variants: tuple[Variant, ...]
    files: dict[str, FileInfo]
    golden: GoldenInfo
    producer: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT


def dumps(manifest: Manifest) -> str:
    """The manifest as text: sorted keys, two spaces, a final newline; the same bytes for the same content."""
    return json.dumps(to_json(manifest), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def loads(text: str, where: str) -> Manifest:
    """Parse and check `manifest.json`; raises BundleError naming the first thing wrong."""
    try:
        data: Any = json.loads(text)
    except ValueError as error:
        raise BundleError(f"{where} is not JSON ({error}): export the bundle again") from error
    number = data.get("format") if isinstance(data, dict) else None
    if number != FORMAT:
        raise BundleError(f"{where} has format {number!r}, this edgeseg reads format {FORMAT}: update edgeseg or export again")
    try:
        manifest = from_json(Manifest, data, "manifest")
        _check(manifest)
    except RecordError as error:
        raise BundleError(f"{where}: {error}") from error
    return manifest


def _check(manifest: Manifest) -> None:
    """What types cannot say: names confined to the bundle, references that resolve, counts that agree."""
    for name in manifest.files:
        if not name or name != name.replace("\\", "/").split("/")[-1] or name in (".", "..") or ":" in name:
            raise RecordError(f"manifest.files names {name!r}: only plain file names inside the bundle are allowed")
    channels = 1 if manifest.head == "sigmoid" else len(manifest.classes)
    if not 1 <= len(manifest.classes) <= IGNORE or (manifest.head == "sigmoid" and len(manifest.classes) != 2):
        raise RecordError(f"manifest.classes has {len(manifest.classes)} entries, which a {manifest.head} head cannot have")
    if not manifest.variants:
        raise RecordError("manifest.variants is empty")
    for index, variant in enumerate(manifest.variants):
        for name in filter(None, (variant.file, variant.weights)):
            if name not in manifest.files:
                raise RecordError(f"manifest.variants[{index}] refers to {name!r}, which manifest.files does not list")
        if variant.logits_shape[0] != channels or min(variant.logits_shape) < 1:
            raise RecordError(
                f"manifest.variants[{index}].logits_shape is {list(variant.logits_shape)}: {channels} channels expected"
            )
    if manifest.golden.file not in manifest.files:
        raise RecordError(f"manifest.golden.file {manifest.golden.file!r} is not in manifest.files")
    if min(manifest.preprocess.input_size) < 1:
        raise RecordError(f"manifest.preprocess.input_size is {list(manifest.preprocess.input_size)}: must be positive")
