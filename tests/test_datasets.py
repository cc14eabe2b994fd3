"""Finding images and labels in every layout, the values of labels, seeded parts, and what is refused."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")

from edgeseg import images
from edgeseg.calibration.datasets import Dataset, digest_of, open_dataset, refuse_overlap
from edgeseg.calibration.layouts import LAYOUTS
from edgeseg.errors import EdgesegError, ImageError, InputError
from edgeseg.manifest import ClassInfo
from edgeseg.palette import CAMVID, voc_palette

SIZE = (4, 6)
THREE = tuple(ClassInfo(name, color) for name, color in zip("abc", voc_palette(4)[1:], strict=True))


def many(count: int) -> tuple[ClassInfo, ...]:
    return tuple(ClassInfo(str(index), color) for index, color in enumerate(voc_palette(count)))


def write(path: Path, *values: int) -> Path:
    """A file of the values in turn: a label, or as good as any image where only names matter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.resize(np.array(values or (0,), np.uint8), SIZE))
    return path


def values(dataset: Dataset, index: int = 0) -> list[int]:
    return np.unique(dataset.label(index, SIZE)).tolist()


def names(dataset: Dataset) -> list[str]:
    return [sample.name for sample in dataset.samples]


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        open_dataset(*arguments, **{"classes": THREE, **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


# folders


def test_images_alone(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "deep/er/c.tif", ".hidden.png", ".cache/d.png"):
        write(tmp_path / name, 7)
    (tmp_path / "notes.txt").write_text("no image")
    dataset = open_dataset(tmp_path, classes=THREE)
    assert names(dataset) == ["a.JPG", "b.png", "deep/er/c.tif"]
    assert len(dataset) == 3
    assert not dataset.labelled
    assert dataset.frame(1).shape == (*SIZE, 3)
    with pytest.raises(InputError, match=r"no label for .*a.JPG"):
        dataset.label(0, SIZE)


def test_labels_by_path_then_by_stem(tmp_path: Path) -> None:
    for name in ("x/1.jpg", "y/1.png", "y/2.jpg"):
        write(tmp_path / "in" / name)
    for number, name in enumerate(("x/1.png", "y/1.png", "elsewhere/2.PNG")):
        write(tmp_path / "out" / name, number)
    dataset = open_dataset(tmp_path / "in", tmp_path / "out", classes=THREE)
    assert dataset.labelled
    assert [values(dataset, index) for index in range(3)] == [[0], [1], [2]]
    # the same stem twice says nothing about which label is whose
    write(tmp_path / "out" / "other" / "2.png")
    assert "1 of 3 images" in refused(tmp_path / "in", tmp_path / "out")


def test_one_folder_in_the_other(tmp_path: Path) -> None:
    write(tmp_path / "1.png")
    write(tmp_path / "labels" / "1.png", 2)
    dataset = open_dataset(tmp_path, tmp_path / "labels", classes=THREE)
    assert names(dataset) == ["1.png"]
    assert values(dataset) == [2]
    write(tmp_path / "images" / "1.png")
    write(tmp_path / "labels" / "images" / "1.jpg")
    assert values(open_dataset(tmp_path / "labels" / "images", tmp_path / "labels", classes=THREE)) == [2]
    assert "a folder of their own" in refused(tmp_path, tmp_path)


def test_values_are_classes_or_ignored_or_refused(tmp_path: Path) -> None:
    write(tmp_path / "in" / "1.png")
    write(tmp_path / "out" / "1.png", 0, 2, 7, 255)
    dataset = open_dataset(tmp_path / "in", tmp_path / "out", classes=THREE)
    with pytest.raises(InputError, match=r"out/1.png has the value 7, .* 3 classes: .* give ignore=7"):
        dataset.label(0, SIZE)
    dataset = open_dataset(tmp_path / "in", tmp_path / "out", classes=THREE, ignore=7)
    label = dataset.label(0, SIZE)
    assert label.dtype == np.uint8
    assert np.array_equal(label, np.resize([0, 2, 255, 255], SIZE))
    assert "ignore is 256" in refused(tmp_path / "in", ignore=256)


def test_palettes_are_read_as_indices_and_colours_as_classes(tmp_path: Path) -> None:
    write(tmp_path / "in" / "1.png")
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "1.png"
    truth = np.resize(np.array([0, 1, 2, 255], np.uint8), SIZE)
    images.write_class_map(path, truth, tuple(info.color for info in THREE))
    dataset = open_dataset(tmp_path / "in", tmp_path / "out", classes=THREE)
    assert np.array_equal(dataset.label(0, SIZE), truth)
    images.write(path, images.read(path))  # the palette's colours, void black
    assert np.array_equal(dataset.label(0, SIZE), truth)
    one_color = (THREE[0], ClassInfo("d", THREE[0].color))
    with pytest.raises(InputError, match="'a' and 'd' have one colour"):
        open_dataset(tmp_path / "in", tmp_path / "out", classes=one_color).label(0, SIZE)
    images.write(path, np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(InputError, match="in no colour of the bundle's classes"):
        dataset.label(0, SIZE)


def test_unreadable_labels(tmp_path: Path) -> None:
    write(tmp_path / "in" / "1.png")
    path = write(tmp_path / "out" / "1.png")
    dataset = open_dataset(tmp_path / "in", tmp_path / "out", classes=THREE)
    with pytest.raises(ImageError, match=r"out/1.png is 4x6 .*in/1.png 8x6: "):
        dataset.label(0, (8, 6))
    path.write_bytes(b"text")
    with pytest.raises(ImageError, match="is not a PNG"):
        dataset.label(0, SIZE)


def test_folders_that_do_not_serve(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    file = write(tmp_path / "in" / "1.png")
    write(tmp_path / "in" / "2.png")
    write(tmp_path / "other" / "3.png")
    write(tmp_path / "some" / "2.png")
    write(tmp_path / "lossy" / "1.jpg")
    assert "is missing: give a folder" in refused(tmp_path / "no")
    assert "1.png is a file: give a folder" in refused(file)
    assert "1.png is a file: give a folder" in refused(tmp_path / "in", file)
    assert f"no images in {tmp_path / 'empty'}" in refused(tmp_path / "empty")
    assert f"no labels in {tmp_path / 'lossy'}" in refused(tmp_path / "in", tmp_path / "lossy")
    assert "other does not match" in refused(tmp_path / "in", tmp_path / "other")
    assert "1 of 2 images" in (words := refused(tmp_path / "in", tmp_path / "some"))
    assert "1.png for one" in words
    assert "layout is 'coco'" in refused(tmp_path / "in", layout="coco")
    assert "has no split 'val': leave it out" in refused(tmp_path / "in", split="val")
    for layout in LAYOUTS:
        assert "is not laid out as" in refused(tmp_path / "in", layout=layout)


# published layouts


@pytest.mark.parametrize("form", ["{folder}/{split}", "{split}{annot}"])
def test_camvid(tmp_path: Path, form: str) -> None:
    for split in ("train", "val"):
        write(tmp_path / form.format(folder="images", split=split, annot="") / f"{split}1.jpg")
        write(tmp_path / form.format(folder="labels", split=split, annot="annot") / f"{split}1.png", 3, 11)
    assert "several splits: choose one of train, val" in refused(tmp_path, classes=CAMVID)
    assert "no split 'test': choose one of train, val" in refused(tmp_path, classes=CAMVID, split="test")
    dataset = open_dataset(tmp_path, classes=CAMVID, split="validation")
    assert names(dataset) == ["val1.jpg"]
    assert values(dataset) == [3, 255]
    # the same folders with other classes: 11 is void only where that is said
    with pytest.raises(InputError, match="has the value 11"):
        values(open_dataset(tmp_path, classes=many(5), split="val"))
    assert values(open_dataset(tmp_path, classes=many(11), split="val", layout="camvid")) == [3, 255]
    assert "bundle has 5 classes, CamVid has 11" in refused(tmp_path, classes=many(5), split="val", layout="camvid")


def test_images_beside_labels_without_splits(tmp_path: Path) -> None:
    write(tmp_path / "images" / "1.jpg")
    write(tmp_path / "labels" / "1.png", 2)
    assert values(open_dataset(tmp_path, classes=THREE)) == [2]


def test_voc(tmp_path: Path) -> None:
    for name in ("2007_1", "2007_2", "2007_3"):
        write(tmp_path / "JPEGImages" / f"{name}.jpg")
    (tmp_path / "SegmentationClass").mkdir()
    truth = np.resize(np.array([0, 20, 255], np.uint8), SIZE)
    images.write_class_map(tmp_path / "SegmentationClass" / "2007_3.png", truth, voc_palette(21))
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, text in (("train", "2007_1\n2007_3\n"), ("val", "2007_3\n"), ("odd", "2007_9\n2007_3\n"), ("none", "")):
        (lists / f"{split}.txt").write_text(text)
    dataset = open_dataset(tmp_path, classes=many(21), split="val")
    assert names(dataset) == ["2007_3.jpg"]
    assert np.array_equal(dataset.label(0, SIZE), truth)
    assert "1 of 2 images" in refused(tmp_path, classes=many(21), split="train")
    assert "2007_9 for one" in refused(tmp_path, classes=many(21), split="odd")
    assert "none.txt" in refused(tmp_path, classes=many(21), split="none")
    assert "bundle has 3 classes, PASCAL VOC has 21" in refused(tmp_path, split="val")
    shutil.rmtree(tmp_path / "SegmentationClass")
    assert not open_dataset(tmp_path, classes=THREE, split="train").labelled  # images serve any bundle


def test_cityscapes(tmp_path: Path) -> None:
    for city, number in (("bonn", 1), ("ulm", 2)):
        write(tmp_path / "leftImg8bit" / "val" / city / f"{city}_{number}_leftImg8bit.png")
        write(tmp_path / "gtFine" / "val" / city / f"{city}_{number}_gtFine_labelIds.png", 0, 7, 8, 30, 33, 255)
        write(tmp_path / "gtFine" / "val" / city / f"{city}_{number}_gtFine_instanceIds.png", 99)
    write(tmp_path / "leftImg8bit" / "test" / "rom" / "rom_3_leftImg8bit.png")
    dataset = open_dataset(tmp_path, classes=many(19), split="val")
    assert names(dataset) == ["bonn/bonn_1_leftImg8bit.png", "ulm/ulm_2_leftImg8bit.png"]
    assert values(dataset, 1) == [0, 1, 18, 255]
    assert not open_dataset(tmp_path, classes=many(19), split="test").labelled
    for city, number in (("bonn", 1), ("ulm", 2)):
        write(tmp_path / "gtFine" / "val" / city / f"{city}_{number}_gtFine_labelTrainIds.png", 5, 255)
    assert values(open_dataset(tmp_path, classes=many(19), split="val")) == [5, 255]
    folders = tmp_path / "leftImg8bit" / "val", tmp_path / "gtFine" / "val"
    assert values(open_dataset(*folders, classes=many(19), layout="cityscapes")) == [5, 255]
    assert "bundle has 11 classes, Cityscapes has 19" in refused(tmp_path, classes=CAMVID, split="val")


def test_ade20k(tmp_path: Path) -> None:
    write(tmp_path / "images" / "validation" / "ADE_val_1.jpg")
    write(tmp_path / "annotations" / "validation" / "ADE_val_1.png", 0, 1, 150)
    dataset = open_dataset(tmp_path, classes=many(150), split="val")
    assert values(dataset) == [0, 149, 255]
    assert "bundle has 3 classes, ADE20K has 150" in refused(tmp_path, split="validation")
    write(tmp_path / "annotations" / "validation" / "ADE_val_1.png", 151)
    with pytest.raises(InputError, match="has the value 151"):
        values(dataset)


# parts


def numbered(folder: Path, count: int = 8) -> Dataset:
    for number in range(count):
        write(folder / f"{number}.png", number)
    return open_dataset(folder, classes=THREE)


def test_parts_are_the_same_everywhere_and_disjoint(tmp_path: Path) -> None:
    dataset = numbered(tmp_path)
    first, second, none = dataset.split(1, 5, 3, 0)
    # the order of the SHA-256 of "1:0.png" to "1:7.png", by sha256sum
    assert "".join(sample.image.stem for sample in first.samples + second.samples) == "74526130"
    assert len(none) == 0
    assert not none.labelled
    assert dataset.take(2, seed=1).samples == first.samples[:2]
    assert dataset.take(8, seed=2).samples != dataset.take(8, seed=1).samples
    assert dataset.split(1) == ()
    for counts in ((9,), (5, 4), (-1,)):
        with pytest.raises(InputError, match="has 8: ask for fewer"):
            dataset.split(1, *counts)


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text exist on Linux")
def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    write(tmp_path / "1.png").rename(tmp_path / "\udcff.png")
    assert names(open_dataset(tmp_path, classes=THREE).take(1, seed=0)) == ["\udcff.png"]


def test_overlap_is_seen_by_content(tmp_path: Path) -> None:
    here, there = numbered(tmp_path / "here"), tmp_path / "there"
    write(there / "other.png", 200)
    digests = here.digests()
    contents = [sample.image.read_bytes() for sample in here.samples]
    assert list(digests) == [hashlib.sha256(content).hexdigest() for content in contents]
    clean = open_dataset(there, classes=THREE).digests()
    refuse_overlap(clean, digests, "images", "images of the calibration")
    shutil.copy(tmp_path / "here" / "5.png", there / "renamed.png")
    both = open_dataset(there, classes=THREE).digests()
    with pytest.raises(InputError) as caught:
        refuse_overlap(both, digests, "images to verify", "images of the calibration")
    told = "1 of the 2 images to verify are among the images of the calibration, renamed.png for one: use other images"
    assert str(caught.value) == told
    (there / "renamed.png").unlink()
    assert open_dataset(there, classes=THREE).digests() == clean


def test_digest_of_a_set() -> None:
    assert digest_of(["b", "a"]) == digest_of(iter(["a", "b", "a"])) == hashlib.sha256(b"a\nb\n").hexdigest()
    assert digest_of(["a"]) != digest_of(["a", "b"])


def test_equal_files_count_once_and_a_vanished_one_is_told(tmp_path: Path) -> None:
    dataset = numbered(tmp_path, 2)
    shutil.copy(tmp_path / "0.png", tmp_path / "1.png")
    assert list(dataset.digests().values()) == ["0.png"]
    (tmp_path / "1.png").unlink()
    with pytest.raises(EdgesegError, match=r"cannot read .*1.png: No such file"):
        dataset.digests()


# real data


def test_camvid_as_it_is(data: Path) -> None:
    root = data / "data" / "camvid"
    train, val = (open_dataset(root, classes=CAMVID, split=split) for split in ("train", "val"))
    assert (len(train), len(val)) == (367, 101)
    frame = val.frame(0)
    raw = cv2.imread(str(val.samples[0].label), cv2.IMREAD_UNCHANGED)
    label = val.label(0, frame.shape[:2])
    assert np.array_equal(label, np.where(raw == 11, 255, raw))
    assert 11 in raw
    refuse_overlap(val.digests(), train.digests(), "images", "images")
    named = open_dataset(root / "images" / "val", root / "labels" / "val", classes=CAMVID)
    assert named.samples == val.samples
    assert named.lut == val.lut
