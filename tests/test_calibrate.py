"""From a bundle and images to a bundle with int8 variants: what is written and refused."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("onnx", reason="int8 graphs are written with onnx")
pytest.importorskip("onnxruntime", reason="ONNX Runtime observes and judges")

import edgeseg
from edgeseg import images as image_files
from edgeseg._files import sha256
from edgeseg.bundle import Bundle
from edgeseg.calibration import ranges as tables
from edgeseg.calibration import report as reports
from edgeseg.calibration.certificate import measure
from edgeseg.calibration.datasets import Dataset, open_dataset
from edgeseg.calibration.judging import Limit
from edgeseg.calibration.recipe import Calibrated, Guard, calibrate
from edgeseg.calibration.verification import verify
from edgeseg.errors import BundleError, InputError
from edgeseg.testing import TINY, street_scene

SIZE = (64, 96)
COUNT = 6
"""Images calibrated on, and as many for the guard."""


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve drawn scenes, labelled with what TINY says of them in fp32 at stride 16: int8 can only lose."""
    folder = tmp_path_factory.mktemp("street")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    with edgeseg.load(TINY, backend="ort", output_stride=16, cache=None) as segmenter:
        for seed in range(2 * COUNT):
            frame = street_scene(seed, SIZE)[0]
            image_files.write(folder / "images" / f"{seed}.png", frame)
            cv2.imwrite(str(folder / "labels" / f"{seed}.png"), segmenter(frame).class_map)
    return folder


def halves(folder: Path, base: Path = TINY, labels: bool = False) -> tuple[Dataset, Dataset]:
    classes = Bundle.open(base).manifest.classes
    drawn = open_dataset(folder / "images", folder / "labels" if labels else None, classes=classes)
    first, second = drawn.split(0, COUNT, COUNT)
    return first, second


@pytest.fixture(scope="module")
def made(street: Path, tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    """TINY with all its int8 variants, under a guard. Not to be changed."""
    images, guard = halves(street)
    return calibrate(TINY, tmp_path_factory.mktemp("made") / "int8.edgeseg", images, guard=Guard(guard))


def contents(path: Path, suffix: str = "") -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name.endswith(suffix)}


def agreement(path: Path, backend: str, stride: int | None = None) -> float:
    """The share of pixels of unseen scenes on which int8 and fp32 agree, both loaded as anybody would."""
    settings: dict[str, Any] = {"backend": backend, "output_stride": stride, "cache": None}
    frames = [street_scene(seed, SIZE)[0] for seed in range(50, 54)]
    with (
        edgeseg.load(path, precision="fp32", **settings) as fp32,
        edgeseg.load(path, precision="int8", **settings) as int8,
    ):
        return float(np.mean([fp32(frame).class_map == int8(frame).class_map for frame in frames]))


def test_every_variant_is_there_and_right(made: Calibrated) -> None:
    manifest, kinds = made.bundle.manifest, ["cpu", "tensorrt", "tensorrt_fp16"]
    assert [(v.output_stride, v.encoding) for v in manifest.variants if v.precision == "int8"] == [
        (stride, kind) for stride in (8, 16) for kind in kinds
    ]
    before = Bundle.open(TINY).manifest
    assert manifest.variants[: len(before.variants)] == before.variants
    assert all((made.bundle.path / v.file).read_bytes() == (TINY / v.file).read_bytes() for v in before.variants)
    found = verify(made.bundle.path)
    assert found.ok
    assert {check.backend for check in found.golden} >= {"ort", "simulate"}
    for outcome in made.outcomes:
        assert outcome.holds
        assert outcome.measured is not None
        assert outcome.measured.images == COUNT
        assert {trial.method for trial in outcome.trials} == set(tables.METHODS)
        assert outcome.measured.agreement == max(trial.measured.agreement for trial in outcome.trials)


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_int8_agrees_with_fp32_on_scenes_it_has_not_seen(made: Calibrated, backend: str) -> None:
    pytest.importorskip("openvino" if backend == "openvino" else "onnxruntime")
    assert agreement(made.bundle.path, backend, 8) > 0.985


def test_the_tables_name_the_images_and_verify_refuses_them(made: Calibrated, street: Path) -> None:
    parts = halves(street, labels=True)
    for stride in (8, 16):
        ranges = tables.loads(made.bundle.file(f"ranges-os{stride}.json").read_bytes(), "")
        for listed, part in zip((ranges.images, ranges.guard_images), parts, strict=True):
            assert listed == tuple(sha256(sample.image) for sample in part.samples)
    how = made.bundle.variant(8, "int8", "tensorrt_fp16").calibration
    assert how is not None
    assert (how.ranges, how.images, how.guard_images, how.float_layers) == ("ranges-os8.json", COUNT, COUNT, ())
    for part, use in zip(parts, ("calibration images", "images that chose the float layers"), strict=True):
        with pytest.raises(InputError, match=f"{COUNT} of the {COUNT} images are among the {use} of int8.edgeseg"):
            verify(made.bundle.path, part)


def test_the_guard_measures_what_a_certificate_says(street: Path, tmp_path: Path) -> None:
    images, guard = halves(street, labels=True)
    found = calibrate(
        TINY,
        tmp_path / "a.edgeseg",
        images,
        guard=Guard(guard, Limit(max_drop=30)),
        method="minmax",
        encodings=["cpu"],
        output_strides=[16],
    )
    (outcome,) = found.outcomes
    assert outcome.measured is not None
    said = measure(found.bundle, guard, output_stride=16, backend="ort")
    assert outcome.measured.difference == pytest.approx(said.difference, abs=1e-4)
    assert outcome.measured.agreement == pytest.approx(said.agreement, abs=1e-6)
    assert said.difference < 0
    assert len(outcome.layers) == 7  # all but the classifier, which is in float anyway
    assert all(cost.miou_gain is not None and cost.milliseconds is not None for cost in outcome.layers)


def test_without_a_guard_nothing_is_measured_and_the_same_seed_gives_the_same_bytes(
    street: Path, tmp_path: Path
) -> None:
    images, _ = halves(street)
    paths = [tmp_path / folder / "a.edgeseg" for folder in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        found = calibrate(TINY, path, images, output_strides=[16, 16], encodings=["cpu", "cpu"], seed=3)
        (outcome,) = found.outcomes
        assert (outcome.method, outcome.measured, outcome.trials, outcome.layers) == ("mse", None, [], [])
    assert contents(paths[0]) == contents(paths[1])
    variants = Bundle.open(paths[0]).manifest.variants
    assert [(v.output_stride, v.encoding) for v in variants] == [(8, "float"), (16, "float"), (16, "cpu")]
    with pytest.raises(BundleError, match="no tensorrt variant of output stride 16 that says how"):
        calibrate(paths[0], tmp_path / "b.edgeseg", None)


def test_the_report_names_what_the_limit_was_held_with(made: Calibrated) -> None:
    told = reports.lines(made)
    assert told[0].startswith(f"{made.bundle.path}: calibration ")
    assert sum(line.split()[2:3] == ["entropy"] for line in told) >= 4  # tried for every variant
    assert "output stride 8, cpu: what the costliest of 7 layers gain in float" in told


def test_again_without_images(made: Calibrated, street: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    again = calibrate(made.bundle.path, tmp_path / "again" / "int8.edgeseg", None)
    assert contents(again.bundle.path) == contents(made.bundle.path)
    other = calibrate(again.bundle.path, again.bundle.path, None, method="entropy", overwrite=True)
    for variant in (v for v in made.bundle.manifest.variants if v.calibration):
        how = other.bundle.variant(variant.output_stride, "int8", variant.encoding).calibration
        assert how is not None
        assert variant.calibration is not None
        assert how.guard_images == (COUNT if variant.calibration.method == "entropy" else 0)  # what its guard chose
    assert [note.split(":")[0] for note in other.notes] == ["no guard ran", "int8 variants replaced"]
    graphs = contents(other.bundle.path, "int8-cpu.onnx")
    assert set(graphs) == {"os8-int8-cpu.onnx", "os16-int8-cpu.onnx"}
    assert not graphs.items() & contents(made.bundle.path, "int8-cpu.onnx").items()
    images, _ = halves(street)
    with pytest.raises(InputError, match=f"{COUNT} of the {COUNT} guard images are among the calibration images"):
        calibrate(made.bundle.path, tmp_path / "b.edgeseg", None, guard=Guard(images))


def test_an_image_is_known_by_its_content(street: Path, tmp_path: Path) -> None:
    images, _ = halves(street)
    (tmp_path / "renamed").mkdir()
    shutil.copy(images.samples[2].image, tmp_path / "renamed" / "other.png")
    guard = open_dataset(tmp_path / "renamed", classes=images.classes)
    with pytest.raises(InputError, match=r"1 of the 1 guard images are among the calibration images, other\.png"):
        calibrate(TINY, tmp_path / "a.edgeseg", images, guard=Guard(guard))
    with pytest.raises(InputError, match=r"none of the images in .*renamed was taken"):
        calibrate(TINY, tmp_path / "a.edgeseg", images, guard=Guard(guard.take(0, 0)))
    assert not (tmp_path / "a.edgeseg").exists()


def test_what_python_may_not_ask_for(street: Path, tmp_path: Path) -> None:
    images, guard = halves(street, labels=True)
    (tmp_path / "void").mkdir()
    for sample in guard.samples:
        cv2.imwrite(str(tmp_path / "void" / sample.name), np.full(SIZE, 255, np.uint8))
    samples = tuple(replace(sample, label=tmp_path / "void" / sample.name) for sample in guard.samples)
    output = tmp_path / "a.edgeseg"
    with pytest.raises(InputError, match=r"labels of .* are void throughout"):
        calibrate(TINY, output, images, guard=Guard(replace(guard, samples=samples)))
    with pytest.raises(InputError, match="missing is missing: give a folder"):
        calibrate(TINY, output, "missing")
    with pytest.raises(InputError, match=r"images are \['a.png'\]: give a folder"):
        calibrate(TINY, output, ["a.png"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="output_strides is empty"):
        calibrate(TINY, output, images, output_strides=[])
    with pytest.raises(InputError, match="seed is -1: give 0 or more"):
        calibrate(TINY, output, images, seed=-1)
    for limit in ({"max_drop": math.nan}, {"max_disagreement": math.nan}, {"max_drop": -1}):
        with pytest.raises(InputError, match="give 0 to 100"):
            Limit(**limit)
    with pytest.raises(InputError, match="budget_s is nan"):
        Guard(guard, budget_s=math.nan)
    assert not output.exists()
