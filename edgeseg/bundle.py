"""A bundle: the directory `NAME.edgeseg/` that carries a network from export to any device.

The format is specified in the README ("The bundle format"). Reading verifies the SHA-256 of every file it uses, stays
inside the directory, and neither executes nor unpickles anything.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeseg import _wire
from edgeseg._files import replacing_directory, sha256
from edgeseg.errors import BundleError
from edgeseg.manifest import FileInfo, Manifest, Variant, dumps, loads
from edgeseg.types import ClassMap, Encoding, Image, Logits, Model, Precision

MANIFEST = "manifest.json"

Answers = list[tuple[Logits, ClassMap]]
"""Per golden frame the logits (C, h', w') and the class map (h, w)."""


@dataclass(frozen=True, slots=True)
class Golden:
    """One golden frame at network size, with what torch computed for it in float32.

    For an int8 variant the answer is its own graph's, simulated in float: a runtime is judged on computing that graph
    rightly; what quantization loses, the certificate says.
    `frame` uint8 (h, w, 3) RGB; `logits` float32 (C, h', w'); `class_map` uint8 (h, w).
    """

    frame: Image
    logits: Logits
    class_map: ClassMap


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: where it is and what it says. Make one with `Bundle.open`."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Read the manifest and check every file's presence, size and SHA-256.

        With `verify=False` the hashes are left to the moment each file is used (loading one variant of many).
        Raises BundleError where anything is missing, damaged or of another format.
        """
        path = Path(path)
        if not os.path.isdir(path):  # unlike Path.is_dir, it answers for every path
            what = "is a file, a bundle is a directory" if os.path.exists(path) else "does not exist"
            raise BundleError(f"no bundle at {path}: it {what}; make one with `edgeseg export`")
        try:
            text = _inside(path, MANIFEST)[0].read_text(encoding="utf-8")
        except (BundleError, OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{path} is not a bundle: cannot read its {MANIFEST} ({error})") from error
        bundle = cls(path, loads(text, str(path / MANIFEST)))
        for name in bundle.manifest.files:
            bundle.file(name, verify=verify)
        return bundle

    def file(self, name: str, *, verify: bool = True) -> Path:
        """Path of one listed file, checked to lie in the bundle and to have the listed size and SHA-256."""
        info = self.manifest.files.get(name)
        if info is None:
            raise BundleError(f"{self.path} lists no file {name!r}: it has {', '.join(sorted(self.manifest.files))}")
        path, size = _inside(self.path, name)
        again = f"copy it again, or {self._maker(name)} the bundle again"
        try:
            digest = sha256(path) if verify and size == info.bytes else info.sha256
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}): {again}") from error
        if size != info.bytes or digest != info.sha256:
            found = f"{size} bytes instead of {info.bytes}" if size != info.bytes else f"SHA-256 {digest[:12]}…"
            raise BundleError(f"{path} is damaged ({found}, not what the manifest lists): {again}")
        return path

    def _maker(self, name: str) -> str:
        """The command that makes a file, for messages: calibrate for those of int8 variants alone."""
        made: dict[str, set[str | None]] = {"export": set(), "calibrate": set()}
        for variant in self.manifest.variants:
            maker = "calibrate" if variant.precision == "int8" else "export"
            ranges = variant.calibration.ranges if variant.calibration else None
            made[maker] |= {variant.file, variant.weights, ranges}
        return "calibrate" if name in made["calibrate"] - made["export"] else "export"

    @property
    def output_strides(self) -> tuple[int, ...]:
        """The output strides on offer, finest first."""
        return tuple(sorted({variant.output_stride for variant in self.manifest.variants}))

    @property
    def contents(self) -> str:
        """The variants in words, for messages: "8 fp32, 16 fp32, 16 int8 (cpu)"."""
        return ", ".join(
            f"{variant.output_stride} {variant.precision}" + f" ({variant.encoding})" * (variant.encoding != "float")
            for variant in sorted(self.manifest.variants, key=lambda variant: variant.output_stride)
        )

    def variant(self, output_stride: int, precision: Precision, encoding: Encoding = "float") -> Variant:
        """The variant with exactly these properties; raises BundleError listing what there is."""
        for variant in self.manifest.variants:
            if (variant.output_stride, variant.precision, variant.encoding) == (output_stride, precision, encoding):
                return variant
        written = "" if encoding == "float" else f" ({encoding})"
        raise BundleError(
            f"{self.path} has no output stride {output_stride} in {precision}{written}: it has {self.contents}"
        )

    def model(self, variant: Variant) -> Model:
        """Verify the variant's files and hand out what a backend needs to open it."""
        path = self.file(variant.file)
        allowed = {variant.weights} if variant.weights else set()
        try:
            foreign = _wire.external_locations(path.read_bytes()) - allowed
        except _wire.WireError as error:
            raise BundleError(f"{path} is not a well-formed ONNX file ({error}): export the bundle again") from error
        if foreign:
            raise BundleError(
                f"{path} reads its weights from {sorted(foreign)[0]!r}, which its manifest does not allow"
            )
        names = [variant.file, *filter(None, [variant.weights])]
        for name in names[1:]:
            self.file(name)
        digest = hashlib.sha256("".join(self.manifest.files[name].sha256 for name in names).encode()).hexdigest()
        return Model(
            path=path,
            digest=digest,
            precision=variant.precision,
            encoding=variant.encoding,
            input_size=self.manifest.preprocess.input_size,
            logits_shape=variant.logits_shape,
            batch=variant.batch,
        )

    def golden(self, variant: Variant, index: int = 0) -> Golden:
        """Golden frame number `index` with the logits and class map that this variant should give."""
        path = self.file(self.manifest.golden.file)
        answer = _answer(index, variant.output_stride, variant.encoding)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                golden = Golden(
                    frame=arrays[f"frame{index}"],
                    logits=arrays[f"{answer}_logits"],
                    class_map=arrays[f"{answer}_class_map"],
                )
        except Exception as error:  # zipfile, zlib and numpy each have their own way to say damaged
            what = f"golden frame {index} at output stride {variant.output_stride} in {variant.precision}"
            raise BundleError(f"{path} lacks {what}: {error}") from error
        size = self.manifest.preprocess.input_size
        types = [array.dtype for array in (golden.frame, golden.class_map, golden.logits)]
        shapes_fit = (
            golden.frame.shape == (*size, 3)
            and golden.class_map.shape == size
            and golden.logits.shape == variant.logits_shape
        )
        if not shapes_fit or types != [np.uint8, np.uint8, np.float32]:
            raise BundleError(f"{path} holds a golden frame {index} that does not fit its manifest: export it again")
        return golden


def _inside(folder: Path, name: str) -> tuple[Path, int]:
    """Path and size of a plain file in `folder`; raises BundleError if it is missing, another kind, or leads out."""
    path = folder / name
    try:
        real = path.resolve()
        if real.parent != folder.resolve():
            raise BundleError(f"{path} leads out of the bundle (a link to {real}): refused")
        found = path.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        reason = getattr(error, "strerror", None) or error
        raise BundleError(f"{path} cannot be read ({reason}): copy or export the bundle again") from error
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
        raise BundleError(f"{path} is not a plain file: copy or export the bundle again")
    return path, found.st_size


def pack_golden(frames: list[Image], answers: Mapping[tuple[int, Encoding], Answers]) -> bytes:
    """The bytes of golden.npz: frames, and per (output stride, encoding) each frame's logits and class map.

    `tensorrt_fp16` shares the answers of `tensorrt` and needs none. Deterministic: the same arrays in the same order
    give the same bytes.
    """
    arrays: dict[str, np.ndarray] = {f"frame{index}": frame for index, frame in enumerate(frames)}
    for (output_stride, encoding), results in answers.items():
        for index, (logits, class_map) in enumerate(results):
            answer = _answer(index, output_stride, encoding)
            arrays[f"{answer}_logits"] = logits
            arrays[f"{answer}_class_map"] = class_map
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _answer(index: int, output_stride: int, encoding: Encoding) -> str:
    """How golden.npz calls one frame's answer, up to _logits and _class_map."""
    suffix = "" if encoding == "float" else "_" + encoding.removesuffix("_fp16")
    return f"frame{index}_os{output_stride}{suffix}"


def describe_file(data: bytes) -> FileInfo:
    """The manifest's entry for a file with these bytes."""
    return FileInfo(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def write(path: Path, manifest: Manifest, files: dict[str, bytes], *, overwrite: bool = False) -> Bundle:
    """Write a bundle whole: into a temporary directory, verified there, then renamed to `path`.

    `files` holds exactly the files of `manifest.files`. Raises BundleError where it does not, where the manifest would
    not be read back, and where `path` exists and `overwrite` is False, is not a bundle, or cannot be written; what was
    there before then stays.
    """
    refuse_overwrite(path, overwrite=overwrite)
    manifest = loads(dumps(manifest), str(path / MANIFEST))
    given = {name: describe_file(data) for name, data in files.items()}
    for name in sorted({*given, *manifest.files}):
        if given.get(name) != manifest.files.get(name):
            raise BundleError(f"cannot write {path}: {name} as given is not what the manifest lists")
    with replacing_directory(path, BundleError) as temporary:
        try:
            for name, data in files.items():
                (temporary / name).write_bytes(data)
            (temporary / MANIFEST).write_text(dumps(manifest), encoding="utf-8", newline="\n")
        except OSError as error:
            raise BundleError(f"cannot write {path}: {error.strerror or error}") from error
        Bundle.open(temporary)
    return Bundle(path, manifest)


def refuse_overwrite(path: Path, *, overwrite: bool) -> None:
    """Raise BundleError if `path` is taken: by anything but a bundle, or by a bundle that may not be replaced."""
    if not os.path.exists(path):
        return
    try:  # a web page has a manifest.json too
        data = json.loads((path / MANIFEST).read_bytes())
        is_bundle = {"format", "variants", "files"} <= data.keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        is_bundle = False
    if not is_bundle:
        raise BundleError(f"{path} exists and is not a bundle: choose another path")
    if not overwrite:
        raise BundleError(f"{path} exists: choose another path, or allow overwriting it (--overwrite)")
