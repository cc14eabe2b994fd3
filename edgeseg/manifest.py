"""What a bundle says about itself: the records behind `manifest.json` (format 1, specified in the README)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from edgeseg._records import RecordError, from_json, to_json
from edgeseg.errors import BundleError
from edgeseg.types import IGNORE, Encoding, GraphPrecision, Precision, Preprocess

FORMAT = 1
"""Version of the bundle format this code writes and reads. 1: the first (edgeseg 0.1)."""

MIN_IMAGES = 20
"""Images that a certificate needs: of fewer, the bootstrap sees too little of how images differ, and its interval says
nothing (of one image it has no width at all)."""

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
class Calibration:
    """How an int8 variant came about: the table of ranges (a file of the bundle), and what was chosen from it.

    `float_layers` are the layers kept in float, `images` and `guard_images` how many of each were used.
    """

    ranges: str
    method: str
    float_layers: tuple[str, ...] = ()
    images: int = 0
    guard_images: int = 0


@dataclass(frozen=True, slots=True)
class Certificate:
    """What an int8 variant was measured to lose on one backend: mIoU in percent, differences int8 minus fp32 in points.

    `interval` is the 95 % bootstrap interval of `difference` over images; `agreement` the share of pixels whose class
    is the fp32 graph's on the same backend (which is torch's: see `Parity`), `worst_image` where it is smallest. `data`
    names the labelled images by SHA-256 of their contents, `limit` the loss that was allowed.

    It holds where the loss is within `limit`, measured on `MIN_IMAGES` or more. `limit` has no ceiling: what a point is
    worth, whoever certifies knows. `runtime` is the version that was measured and binds no other: at load a golden
    frame shows whether another computes the same graph, and measuring again renews the certificate.
    """

    backend: str
    device: str
    runtime: str
    images: int
    data: str
    miou_fp32: float
    miou: float
    difference: float
    interval: tuple[float, float]
    iou_difference: dict[str, float]
    agreement: float
    worst_image: str
    worst_agreement: float
    limit: float

    @property
    def within_limit(self) -> bool:
        """Whether the loss stays within the limit."""
        return self.difference >= -self.limit

    @property
    def holds(self) -> bool:
        """Whether `precision="auto"` may go by it: within the limit, on enough images."""
        return self.within_limit and self.images >= MIN_IMAGES


@dataclass(frozen=True, slots=True)
class Variant:
    """One ONNX file: the network at one output stride, precision and encoding."""

    output_stride: int
    precision: GraphPrecision
    encoding: Encoding
    file: str
    logits_shape: tuple[int, int, int]
    batch: int | None = 1
    weights: str | None = None
    parity: Parity | None = None
    calibration: Calibration | None = None
    certificates: tuple[Certificate, ...] = ()


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a runtime may stray from the golden frames: share of the logits' scale, share of mask pixels."""

    logits: float
    mask_agreement: float


TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(1e-3, 0.9999),
    "fp16": Tolerance(5e-2, 0.99),
    "bf16": Tolerance(1e-1, 0.98),
    "int8": Tolerance(2e-1, 0.96),
}
"""Defaults per executed precision, also for bundles that do not name it.

bf16 rounds to 2^-8: sixty layers that each round weights and activations, as often up as down, stray by sqrt(120) x
2^-8 = 0.04. Seen were 0.037 and 0.997 on DeepLabV3-MobileNetV2, and 0.987 on a network of noise; the limits leave about
twice that. int8's are for runtimes computing one and the same graph: where two round a step apart the steps add up, to
0.09 and 0.984 on DeepLabV3-MobileNetV2; a wrong sign of the activations gives 0.36 and 0.75.
"""


@dataclass(frozen=True, slots=True)
class GoldenInfo:
    """Which file holds the golden frames, how many, and what may differ per precision."""

    file: str
    frames: int
    tolerances: dict[str, Tolerance]


@dataclass(frozen=True, slots=True)
class Tuned:
    """What `edgeseg tune` chose on one machine, known by its `processor` and the `cores` that a process may use there.

    `load` with nothing chosen takes it on that machine. `p50_ns` is the median of the whole frame, of frames of
    `frame_size` (height, width); `miou` in percent on the images given, None without; `when` the time, as in ISO 8601.
    """

    processor: str
    cores: int
    backend: str
    device: str
    precision: Precision
    output_stride: int
    threads: int
    frame_size: tuple[int, int]
    p50_ns: int
    when: str
    miou: float | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """All of `manifest.json`. `head` is how scores become classes: argmax, or a threshold for one channel.

    `values` is what the graphs give: logits, or probabilities where the network upsamples those itself (an argmax of
    upsampled probabilities is another mask than one of upsampled logits).
    """

    name: str
    classes: tuple[ClassInfo, ...]
    head: Literal["softmax", "sigmoid"]
    preprocess: Preprocess
    align_corners: bool
    variants: tuple[Variant, ...]
    files: dict[str, FileInfo]
    golden: GoldenInfo
    producer: dict[str, str] = field(default_factory=dict)
    values: Literal["logits", "probabilities"] = "logits"
    tuned: tuple[Tuned, ...] = ()
    format: int = FORMAT


def dumps(manifest: Manifest) -> str:
    """The manifest as text: sorted keys, two spaces, a final newline; the same bytes for the same content."""
    return json.dumps(to_json(manifest), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def loads(text: str, where: str) -> Manifest:
    """Parse and check `manifest.json`; raises BundleError naming the first thing wrong."""
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not JSON ({error}): export the bundle again") from error
    number = data.get("format") if isinstance(data, dict) else FORMAT
    if number is None or (isinstance(number, int) and number != FORMAT):
        raise BundleError(
            f"{where} has format {number!r}, this edgeseg reads format {FORMAT}: update edgeseg or export again"
        )
    try:
        manifest = from_json(Manifest, data, "manifest")
        _check(manifest)
    except (RecordError, RecursionError) as error:
        raise BundleError(f"{where}: {error}") from error
    return manifest


def _check(manifest: Manifest) -> None:
    """What types cannot say: names confined to the bundle, references that resolve, counts that agree."""
    for name in manifest.files:
        if not name or name != name.replace("\\", "/").split("/")[-1] or name in (".", "..") or ":" in name:
            raise RecordError(f"manifest.files names {name!r}: only plain file names inside the bundle are allowed")
    _check_classes(manifest)
    if not manifest.variants:
        raise RecordError("manifest.variants is empty")
    for index, variant in enumerate(manifest.variants):
        _check_variant(manifest, variant, f"manifest.variants[{index}]")
    golden, preprocess = manifest.golden, manifest.preprocess
    if golden.file not in manifest.files:
        raise RecordError(f"manifest.golden.file {golden.file!r} is not in manifest.files")
    if golden.frames < 1:
        raise RecordError(f"manifest.golden.frames is {golden.frames}: must be 1 or more")
    if min(preprocess.input_size) < 1:
        raise RecordError(f"manifest.preprocess.input_size is {list(preprocess.input_size)}: must be positive")
    if not 0 <= preprocess.pad <= 255:
        raise RecordError(f"manifest.preprocess.pad is {preprocess.pad}: must be a grey level, 0 to 255")
    _check_tuned(manifest)


def _check_classes(manifest: Manifest) -> None:
    count, names = len(manifest.classes), [info.name for info in manifest.classes]
    if not 1 <= count <= IGNORE or (manifest.head == "sigmoid" and count != 2):
        raise RecordError(f"manifest.classes has {count} entries, which a {manifest.head} head cannot have")
    for index, info in enumerate(manifest.classes):
        if not info.name or info.name in names[:index]:
            raise RecordError(f"manifest.classes[{index}].name is {info.name!r}: names must differ and not be empty")
        if not all(0 <= level <= 255 for level in info.color):
            raise RecordError(f"manifest.classes[{index}].color is {list(info.color)}: levels must be 0 to 255")


def _check_variant(manifest: Manifest, variant: Variant, where: str) -> None:
    for name in (variant.file, variant.weights, variant.calibration and variant.calibration.ranges):
        if name is not None and name not in manifest.files:
            raise RecordError(f"{where} refers to {name!r}, which manifest.files does not list")
    # a runtime chooses its reader by the suffix, and only ONNX is searched for the names of other files
    if not variant.file.endswith(".onnx"):
        raise RecordError(f"{where}.file is {variant.file!r}: must end in .onnx")
    if (variant.encoding == "float") != (variant.precision != "int8"):
        raise RecordError(f"{where} has precision {variant.precision} in encoding {variant.encoding}: int8 has others")
    channels = 1 if manifest.head == "sigmoid" else len(manifest.classes)
    if variant.logits_shape[0] != channels or min(variant.logits_shape) < 1:
        raise RecordError(f"{where}.logits_shape is {list(variant.logits_shape)}: {channels} channels expected")
    for key, value in (("output_stride", variant.output_stride), ("batch", variant.batch)):
        if value is not None and value < 1:
            raise RecordError(f"{where}.{key} is {value}: must be 1 or more")


def _check_tuned(manifest: Manifest) -> None:
    offered = {(variant.output_stride, variant.precision) for variant in manifest.variants}
    machines = set[tuple[str, int]]()
    for index, tuned in enumerate(manifest.tuned):
        where = f"manifest.tuned[{index}]"
        # fp16 is how a device computes the fp32 graph
        if (tuned.output_stride, "int8" if tuned.precision == "int8" else "fp32") not in offered:
            raise RecordError(f"{where} has output stride {tuned.output_stride} in {tuned.precision}: no variant has")
        for key, value, least in (
            ("cores", tuned.cores, 1),
            ("threads", tuned.threads, 0),
            ("frame_size", min(tuned.frame_size), 1),
            ("p50_ns", tuned.p50_ns, 1),
        ):
            if value < least:
                raise RecordError(f"{where}.{key} is {value}: must be {least} or more")
        if (tuned.processor, tuned.cores) in machines:
            raise RecordError(f"{where} is of {tuned.processor!r} with {tuned.cores} cores again: one per machine")
        machines.add((tuned.processor, tuned.cores))
