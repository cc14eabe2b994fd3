"""Images with and without labels: finding them in folders, drawing disjoint parts, reading one at a time."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from edgeseg import images as image_files
from edgeseg._files import sha256
from edgeseg.calibration import indexed_png
from edgeseg.calibration.layouts import FOLDERS, LAYOUTS, Labelling, Layout, Split, choose_split
from edgeseg.errors import ImageError, InputError
from edgeseg.manifest import ClassInfo
from edgeseg.palette import CAMVID
from edgeseg.types import IGNORE, ClassMap, Image, Size

LayoutName = Literal["auto", "folders", "camvid", "voc", "cityscapes", "ade20k"]
_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and, where there is one, its label file; `name` is the path below the dataset's folder, with "/"."""

    name: str
    image: Path
    label: Path | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples in a fixed order, read when asked for; `lut` is the class per stored label value, -1 for none."""

    source: Path
    samples: tuple[Sample, ...]
    classes: tuple[ClassInfo, ...]
    lut: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labelled(self) -> bool:
        """Whether the images have labels: all have or none has."""
        return self.samples[0].label is not None if self.samples else False

    def frame(self, index: int) -> Image:
        """The image as uint8 (H, W, 3) RGB; raises ImageError."""
        return image_files.read(self.samples[index].image)

    def label(self, index: int, size: Size) -> ClassMap:
        """The label as uint8 (H, W), 255 where no class is; `size` is the image's.

        Raises InputError where there is none, it has another size, or a value that is no class of the bundle.
        """
        sample = self.samples[index]
        if sample.label is None:
            raise InputError(f"no label for {sample.image}: give the folder of the labels (--labels)")
        stored = indexed_png.read(sample.label)
        if stored.shape[:2] != tuple(size):
            raise ImageError(
                f"{sample.label} is {stored.shape[0]}x{stored.shape[1]} (height x width), its image {sample.image} "
                f"{size[0]}x{size[1]}: give labels of the images' size"
            )
        if stored.ndim == 3:
            return indexed_png.classes_of_colors(stored, self.classes, sample.label)
        label = np.array(self.lut, np.int16)[stored]
        if label.min() == _UNKNOWN:
            value = stored[label == _UNKNOWN].min()
            raise InputError(
                f"{sample.label} has the value {value}, which is none of the bundle's {len(self.classes)} classes: if "
                f"it means unlabelled, give ignore={value}"
            )
        return label.astype(np.uint8)

    def take(self, count: int, seed: int) -> Dataset:
        """`count` samples drawn by `seed`; a larger count begins with the same ones."""
        return self.split(seed, count)[0]

    def split(self, seed: int, *counts: int) -> tuple[Dataset, ...]:
        """Parts of so many samples, no sample in two of them, the same on every machine; raises InputError."""
        if min(counts, default=0) < 0 or sum(counts) > len(self):
            asked = " + ".join(map(str, counts))
            raise InputError(f"{asked} images asked for, {self.source} has {len(self)}: ask for fewer")
        # not NumPy's generator, whose streams may change between versions
        drawn = sorted(self.samples, key=lambda sample: _draw(seed, sample.name))
        ends = np.cumsum(counts, dtype=np.int64).tolist()
        return tuple(
            replace(self, samples=tuple(drawn[end - count : end])) for end, count in zip(ends, counts, strict=True)
        )

    def without(self, others: Dataset) -> Dataset:
        """The samples whose image is none of the others', by content; raises ImageError."""
        names, taken = self.digests(), others.digests()
        kept = {name for digest, name in names.items() if digest not in taken}
        return replace(self, samples=tuple(sample for sample in self.samples if sample.name in kept))

    def digests(self) -> dict[str, str]:
        """Sample names by the SHA-256 of their image files, in order; of equal files the first. Raises ImageError."""
        names: dict[str, str] = {}
        for sample in self.samples:
            try:
                names.setdefault(sha256(sample.image), sample.name)
            except OSError as error:
                raise ImageError(f"cannot read {sample.image}: {error.strerror}") from error
        return names


def open_dataset(
    images: str | Path,
    labels: str | Path | None = None,
    *,
    classes: Sequence[ClassInfo],
    layout: LayoutName = "auto",
    split: str | None = None,
    ignore: int | None = None,
) -> Dataset:
    """Find the images below a folder, and their labels below another: PNGs of the same path, or of the same stem.

    Without `labels`, `images` may be the folder of a published dataset (`layout`, recognised by its folders), of which
    `split` is taken. A label holds class indices, or what `layout` writes for them, and 255 or `ignore` where no class
    is; or the classes' own colours. Raises InputError for folders without images, images without labels, and a dataset
    with another number of classes.
    """
    root = _folder(images)
    if ignore is not None and not 0 <= ignore <= IGNORE:
        raise InputError(f"ignore is {ignore}: must be a label's value, 0 to {IGNORE}")
    known: dict[str, Layout] = {"folders": FOLDERS, **LAYOUTS}
    if layout != "auto" and layout not in known:
        raise InputError(f"layout is {layout!r}: must be auto, {', '.join(known)}")
    chosen = _recognise(root, labels is not None, classes) if layout == "auto" else known[layout]
    splits = {"": Split(root, None if labels is None else _folder(labels))}
    if labels is None:
        splits = chosen.splits(root) or (splits if chosen is FOLDERS else {})
    if not splits:
        raise InputError(f"{root} is not laid out as {chosen.title}: it needs {chosen.folders}")
    part = choose_split(splits, split, root)
    if part.labels is not None and chosen.classes not in (None, len(classes)):
        raise InputError(
            f"the bundle has {len(classes)} classes, {chosen.title} has {chosen.classes}: give labels of the bundle's "
            "classes, or the images' folder alone"
        )
    samples, labelling = _samples(part, chosen.labellings)
    return Dataset(root, samples, tuple(classes), _lut(labelling, len(classes), ignore))


def refuse_overlap(mine: Mapping[str, str], other: Iterable[str], what_mine: str, what_other: str) -> None:
    """Raise InputError where an image of `mine` (`Dataset.digests`) is among the digests `other`, whatever its name."""
    taken = set(other)
    shared = [name for digest, name in mine.items() if digest in taken]
    if shared:
        raise InputError(
            f"{len(shared)} of the {len(mine)} {what_mine} are among the {what_other}, {shared[0]} for one: use other "
            "images"
        )


def digest_of(digests: Iterable[str]) -> str:
    """One SHA-256 for a set of images, whatever their order: that of the sorted digests, a line each."""
    return hashlib.sha256("".join(f"{digest}\n" for digest in sorted(set(digests))).encode()).hexdigest()


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()  # names may be any bytes


def _recognise(root: Path, labels_named: bool, classes: Sequence[ClassInfo]) -> Layout:
    # CamVid's folders are anybody's: for a bundle of its classes 11 is void, for others it may be a mistake
    is_camvid = [info.name for info in classes] == [info.name for info in CAMVID]
    if labels_named:
        return LAYOUTS["camvid"] if is_camvid else FOLDERS
    fitting = (layout for name, layout in LAYOUTS.items() if is_camvid or name != "camvid")
    return next((layout for layout in fitting if layout.splits(root)), FOLDERS)


def _folder(path: str | Path) -> Path:
    folder = Path(path)
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is {'a file' if os.path.exists(folder) else 'missing'}: give a folder")
    return folder


def _samples(split: Split, labellings: tuple[Labelling, ...]) -> tuple[tuple[Sample, ...], Labelling]:
    """The split's samples by name, and the first kind of label that all images have."""
    if split.labels is not None and split.images.samefile(split.labels):
        raise InputError(f"{split.images} is given for images and labels: put the labels into a folder of their own")
    found = _walk(split.images, image_files.SUFFIXES, split.labels)
    if split.listed is not None:
        found = _listed(split.listed, found)
    if not found:
        raise InputError(
            f"no images in {split.listed or split.images}: it holds none of {', '.join(sorted(image_files.SUFFIXES))}"
        )
    if split.labels is None:
        return tuple(Sample(name, path) for name, path in found.items()), labellings[-1]
    labels = {_stem(name): path for name, path in _walk(split.labels, frozenset({".png"}), split.images).items()}
    for labelling in labellings:
        keys = {name: _stem(name).removesuffix(labelling.image) + labelling.label for name in found}
        matched = _match(keys, labels)
        missing = [name for name in found if name not in matched]
        if not missing:
            return tuple(Sample(name, path, matched[name]) for name, path in found.items()), labelling
    if not labels:
        raise InputError(f"no labels in {split.labels}: labels are PNG files with their images' names")
    if not matched:
        raise InputError(
            f"{split.labels} does not match {split.images}: no label there has the name of an image, as {missing[0]}"
        )
    raise InputError(
        f"{len(missing)} of {len(found)} images in {split.images} have no label in {split.labels}, {missing[0]} for "
        "one: add their labels, or leave them out"
    )


def _match(keys: dict[str, str], labels: dict[str, Path]) -> dict[str, Path]:
    """Per image the label of the same path, or else of the same stem where no other image or label has it."""
    images_by_stem = Counter(PurePosixPath(key).name for key in keys.values())
    labels_by_stem = Counter(PurePosixPath(key).name for key in labels)
    stems = {PurePosixPath(key).name: path for key, path in labels.items()}
    matched = {}
    for name, key in keys.items():
        stem = PurePosixPath(key).name
        if key in labels:
            matched[name] = labels[key]
        elif images_by_stem[stem] == labels_by_stem[stem] == 1:
            matched[name] = stems[stem]
    return matched


def _walk(folder: Path, suffixes: frozenset[str], without: Path | None) -> dict[str, Path]:
    """Files below a folder by their relative names, sorted; none that is hidden or lies in the folder `without`."""

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error

    left_out = None if without is None else os.path.realpath(without)
    found = {}
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name[0] != "." and os.path.realpath(Path(parent, name)) != left_out]
        for name in files:
            path = Path(parent, name)
            if name[0] != "." and path.suffix.lower() in suffixes:
                found[path.relative_to(folder).as_posix()] = path
    return dict(sorted(found.items()))


def _listed(file: Path, found: dict[str, Path]) -> dict[str, Path]:
    """Those that a text file names by their stems, one a line."""
    try:
        stems = sorted(set(file.read_text(encoding="utf-8").split()))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {file}: {getattr(error, 'strerror', None) or 'it is not text'}") from error
    names = {_stem(name): name for name in found}
    missing = [stem for stem in stems if stem not in names]
    if missing:
        raise InputError(f"{len(missing)} of {len(stems)} images that {file} names are missing, {missing[0]} for one")
    return {names[stem]: found[names[stem]] for stem in stems}


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _lut(labelling: Labelling, count: int, ignore: int | None) -> tuple[int, ...]:
    values = {index: index for index in range(count)}
    if labelling.values is not None:
        values = {**values, **labelling.values}
    values[IGNORE] = IGNORE
    if ignore is not None:
        values[ignore] = IGNORE
    return tuple(values.get(value, _UNKNOWN) for value in range(256))
