"""How published datasets lie on disk, and which class each of their label values means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeseg.errors import InputError
from edgeseg.types import IGNORE


@dataclass(frozen=True, slots=True)
class Split:
    """The images of one folder, or those of them that the text file `listed` names, and the folder of their labels."""

    images: Path
    labels: Path | None
    listed: Path | None = None


@dataclass(frozen=True, slots=True)
class Labelling:
    """One kind of label file: the image's stem with its `image` ending replaced by `label`.

    `values` is the class per stored value, for those whose class is not the value itself.
    """

    image: str = ""
    label: str = ""
    values: Mapping[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """One published dataset; `classes` None: any number. `splits` is empty where a folder is laid out otherwise."""

    title: str
    folders: str
    classes: int | None
    splits: Callable[[Path], dict[str, Split]]
    labellings: tuple[Labelling, ...] = (Labelling(),)


def choose_split(splits: dict[str, Split], split: str | None, root: Path) -> Split:
    """The named one, or the only one; raises InputError that lists what there is."""
    if split is None:
        if len(splits) == 1:
            return next(iter(splits.values()))
        raise InputError(f"{root} has several splits: choose one of {', '.join(splits)}")
    for name in (split, _SAME.get(split)):
        if name in splits:
            return splits[name]
    named = ", ".join(filter(None, splits))
    raise InputError(f"{root} has no split {split!r}: " + (f"choose one of {named}" if named else "leave it out"))


_SAME = {"train": "training", "training": "train", "val": "validation", "validation": "val"}
_SPLITS = (*_SAME, "test", "testing")


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(item.name for item in folder.iterdir() if item.is_dir()) if folder.is_dir() else []
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from error


def _existing(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None


def _beside(images: Path, labels: Path) -> dict[str, Split]:
    return {name: Split(images / name, _existing(labels / name)) for name in _subfolders(images) if name in _SPLITS}


def _paired(root: Path) -> dict[str, Split]:
    """`images` beside `labels`, each whole or with a folder per split; or `train` beside `trainannot`."""
    images, labels = root / "images", root / "labels"
    if images.is_dir() and labels.is_dir():
        return _beside(images, labels) or {"": Split(images, labels)}
    names = [name for name in _subfolders(root) if (root / f"{name}annot").is_dir()]
    return {name: Split(root / name, root / f"{name}annot") for name in names}


def _cityscapes(root: Path) -> dict[str, Split]:
    return _beside(root / "leftImg8bit", root / "gtFine")


def _ade20k(root: Path) -> dict[str, Split]:
    return _beside(root / "images", root / "annotations") if (root / "annotations").is_dir() else {}


def _voc(root: Path) -> dict[str, Split]:
    images, labels = root / "JPEGImages", _existing(root / "SegmentationClass")
    lists = sorted((root / "ImageSets" / "Segmentation").glob("*.txt")) if images.is_dir() else []
    return {path.stem: Split(images, labels, path) for path in lists}


_TRAIN_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Cityscapes' label ids in the order of its 19 classes; of the ids 0 to 33 the others are not evaluated."""

FOLDERS = Layout("images and labels", "images and labels, or train and trainannot", None, _paired)
LAYOUTS: dict[str, Layout] = {
    "cityscapes": Layout(
        "Cityscapes", "leftImg8bit/{train,val} and gtFine/{train,val}", 19, _cityscapes,
        (
            Labelling("_leftImg8bit", "_gtFine_labelTrainIds"),
            Labelling("_leftImg8bit", "_gtFine_labelIds",
                      {**dict.fromkeys(range(34), IGNORE), **{raw: index for index, raw in enumerate(_TRAIN_IDS)}}),
        ),
    ),
    "voc": Layout(
        "PASCAL VOC", "JPEGImages, SegmentationClass and ImageSets/Segmentation", 21, _voc,
    ),
    "ade20k": Layout(
        "ADE20K", "images/{training,validation} and annotations/{training,validation}", 150, _ade20k,
        (Labelling(values={0: IGNORE, **{raw: raw - 1 for raw in range(1, 151)}}),),
    ),
    "camvid": Layout(
        "CamVid", "images/{train,val} and labels/{train,val}, or train and trainannot", 11, _paired,
        (Labelling(values={11: IGNORE}),),
    ),
}  # fmt: skip
"""The published ones, in the order in which they are looked for."""
