"""`edgeseg tune`: what it chooses, what it writes, and that `load` goes by it on this machine and on no other."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import edgeseg
from edgeseg import images, loading
from edgeseg._machine import processor
from edgeseg.benchmarks.grid import grid
from edgeseg.benchmarks.results import Accuracy, Configuration
from edgeseg.benchmarks.tune import _offered, tune
from edgeseg.benchmarks.tune_choice import Candidate, choose, explain
from edgeseg.bundle import Bundle, write
from edgeseg.calibration.datasets import open_dataset
from edgeseg.cli import main
from edgeseg.decode import usable_cpus
from edgeseg.errors import BundleError, InputError
from edgeseg.manifest import Certificate, Tuned, dumps, loads
from edgeseg.testing import TINY, street_scene

pytest.importorskip("onnxruntime")

HERE = Tuned(processor(), usable_cpus(), "ort", "cpu", "fp32", 8, 1, (64, 96), 500_000, "2026-01-02T03:04:05+00:00")
OTHER = (64, 96)
FAST: dict[str, Any] = {"backends": ["ort"], "frame_size": (64, 96), "seconds": 0.1, "cache": None}


@pytest.fixture
def bundle(tiny_int8: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_int8, tmp_path / "tiny.edgeseg"))


@pytest.fixture
def tuned(tmp_path: Path) -> Callable[..., Path]:
    """TINY with a choice in its manifest."""

    def make(*records: Tuned) -> Path:
        base = Bundle.open(TINY)
        files = {name: (TINY / name).read_bytes() for name in base.manifest.files}
        manifest = dataclasses.replace(base.manifest, tuned=records)
        return write(tmp_path / "tuned.edgeseg", manifest, files, overwrite=True).path

    return make


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes labelled with what TINY says of them in fp32 at stride 16, which so has mIoU 100."""
    folder = tmp_path_factory.mktemp("labelled")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    with edgeseg.load(TINY, backend="ort", output_stride=16, cache=None) as segmenter:
        for seed in range(4):
            frame = street_scene(seed, (64, 96))[0]
            images.write(folder / "images" / f"{seed}.png", frame)
            cv2.imwrite(str(folder / "labels" / f"{seed}.png"), segmenter(frame).class_map)
    return folder


@dataclasses.dataclass(frozen=True)
class Street:
    """A small U-Net of input size 32x48 with int8, its checkpoint, and images.

    Two that int8 was calibrated on, two more, and four labelled with what torch says of them at `OTHER`.
    """

    bundle: Path
    weights: Path
    used: Path
    more: Path
    labelled: Path


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Street:
    pytest.importorskip("torch", reason="networks are exported anew from torch")
    pytest.importorskip("onnxscript", reason="torch exports with it")
    safetensors = pytest.importorskip("safetensors.torch")
    from edgeseg.benchmarks.networks import calm
    from edgeseg.benchmarks.quality import torch_masks
    from edgeseg.calibration.recipe import calibrate
    from edgeseg.models import unet

    folder = tmp_path_factory.mktemp("street")
    for name, seeds in (("used", (0, 1)), ("more", (2, 3)), ("labelled/images", range(4, 8))):
        (folder / name).mkdir(parents=True)
        for seed in seeds:
            images.write(folder / name / f"{seed}.png", street_scene(seed, (64, 96))[0])
    model = unet(num_classes=3, base_channels=2).eval()
    calm(model)
    safetensors.save_file(model.state_dict(), folder / "unet.safetensors")
    exported = edgeseg.export(
        model, folder / "float.edgeseg", input_size=(32, 48), classes=["a", "b", "c"], mean=(0.5,) * 3, std=(0.25,) * 3
    )
    made = calibrate(exported.path, folder / "street.edgeseg", folder / "used", encodings=("cpu",)).bundle
    larger = dataclasses.replace(made.manifest.preprocess, input_size=OTHER)
    answers = torch_masks(
        Bundle(made.path, dataclasses.replace(made.manifest, preprocess=larger)), folder / "unet.safetensors", 1
    )
    (folder / "labelled/labels").mkdir()
    for seed in range(4, 8):
        frame = images.read(folder / "labelled/images" / f"{seed}.png")
        cv2.imwrite(str(folder / "labelled/labels" / f"{seed}.png"), answers(frame))
    return Street(made.path, folder / "unet.safetensors", folder / "used", folder / "more", folder / "labelled")


def candidate(name: str, stride: int, p50_ms: float, miou: float | None = None) -> Candidate:
    accuracy = None if miou is None else Accuracy(20, "", miou, (miou, miou), 0, {}, 0, 0, 1, "")
    return Candidate(Configuration(name, "cpu", stride, "fp32", "float"), (int(1e6 * p50_ms),), accuracy)


def test_what_is_chosen_with_accuracy() -> None:
    pool = [candidate("a", 32, 5, 60.0), candidate("b", 16, 9, 71.9), candidate("c", 16, 12, 72.05),
            candidate("d", 8, 20, 72.1)]  # fmt: skip
    assert choose(pool, 5, 25, None)[0].configuration.backend == "b"  # 0.2 points less, and the fastest of these
    assert choose(pool[:1], 5, 8, None)[0].configuration.backend == "a"
    assert choose(pool, 4, None, 60)[0].configuration.backend == "a"
    assert choose(pool, 4, None, 72.06)[0].configuration.backend == "d"
    assert choose(pool, 5, 25, 72)[0].configuration.backend == "c"
    last = "their best mIoU is 72.10, this the fastest within 0.2 points of it"
    assert choose(pool, 5, 25, None)[1] == f"4 of 5 stayed within 25 ms; {last}"
    assert choose(pool, 5, 25, 72)[1] == f"4 of 5 stayed within 25 ms, 2 of these reached mIoU 72; {last}"
    assert choose(pool, 4, None, 72)[1] == "2 of 4 reached mIoU 72; this is the fastest of them"
    best = r"the most accurate is d .*72\.10; ask for a lower mIoU"
    for measured, limit, told in (
        (5, 25, f"of the 4 within 25 ms: {best} or allow a frame more time$"),
        (4, 25, f"of the 4 within 25 ms: {best}$"),  # more time brings no others
        (4, None, f"of all 4: {best}$"),
    ):
        with pytest.raises(InputError, match=f"^nothing reaches mIoU 80 {told}"):
            choose(pool, measured, limit, 80)


def test_what_is_chosen_without() -> None:
    pool = [candidate("a", 16, 5), candidate("b", 8, 9), candidate("c", 8, 12)]
    chosen, why = choose(pool, 12, 15, None)
    assert chosen.configuration.backend == "b"
    assert why == "3 of 12 stayed within 15 ms; 8 is their finest output stride, this its fastest"


def test_what_was_close_is_told_by_time() -> None:
    found = [candidate(name, 8, p50_ms) for name, p50_ms in (("a", 1), ("b", 7), ("c", 10), ("d", 11), ("e", 13))]
    assert explain(found[2], found[2], "so", "", found)[2] == (
        "close: b cpu fp32 os8 7.00 ms; d cpu fp32 os8 11.00 ms; e cpu fp32 os8 13.00 ms"
    )


def test_what_is_finest_among_input_sizes() -> None:
    pool = [
        dataclasses.replace(candidate("a", stride, p50_ms), input_size=size)
        for stride, p50_ms, size in ((8, 5, (120, 160)), (8, 9, (240, 320)), (16, 12, (512, 512)))
    ]
    chosen, why = choose(pool, 3, 15, None)
    assert chosen is pool[1]
    assert why == "3 of 3 stayed within 15 ms; 30x40 on the frame is their finest grid, this its fastest"
    assert str(chosen) == "a cpu fp32 os8 at 240x320 9.00 ms"


def test_the_choice_is_written_and_load_goes_by_it(tmp_path: Path) -> None:
    found = tune(TINY, tmp_path / "new.edgeseg", max_latency_ms=10_000, **FAST)
    assert [line.split(": ")[0] for line in found.explanation] == ["chosen", "why", "close"]
    assert (found.tuned.backend, found.tuned.output_stride, found.tuned.precision) == ("ort", 8, "fp32")
    assert (found.tuned.processor, found.tuned.cores, found.tuned.miou) == (processor(), usable_cpus(), None)
    assert sorted(one.configuration.output_stride for one in found.candidates) == [8, 16]
    assert found.candidates[0].p50_ns <= found.candidates[1].p50_ns
    assert "no labelled images" in found.notes[0]
    written = Bundle.open(tmp_path / "new.edgeseg")
    assert (written.manifest.name, written.manifest.tuned) == ("new", (found.tuned,))
    with edgeseg.load(written.path, cache=None) as segmenter:
        assert segmenter.choice == f"ort on cpu, fp32, output stride 8 (tuned here on {found.tuned.when[:10]})"
        frame = street_scene(0, (64, 96))[0]
        expected = edgeseg.load(TINY, backend="ort", output_stride=8, cache=None)(frame).class_map
        np.testing.assert_array_equal(segmenter(frame).class_map, expected)


def test_bundles_of_the_installation_stay_as_they_are() -> None:
    for path in (TINY, edgeseg.EMBEDDED):
        with pytest.raises(InputError, match=r"belongs to the installation: write the choice into a copy \(-o\)"):
            tune(path, max_latency_ms=10_000, **FAST)


def test_in_place_keeps_other_machines_and_replaces_this_one(tuned: Callable[..., Path]) -> None:
    other = dataclasses.replace(HERE, processor="Other CPU")
    path = tuned(other, HERE)
    found = tune(path, max_latency_ms=10_000, **FAST)
    assert found.tuned != HERE
    assert Bundle.open(path).manifest.tuned == (other, found.tuned)
    assert Bundle.open(path).manifest.name == "tiny"


def test_with_labels_what_is_right_wins(bundle: Path, labelled: Path) -> None:
    dataset = open_dataset(labelled / "images", labelled / "labels", classes=Bundle.open(bundle).manifest.classes)
    found = tune(bundle, max_latency_ms=10_000, images=dataset, **FAST)
    assert (found.tuned.output_stride, found.tuned.precision, found.tuned.miou) == (16, "fp32", 100)
    assert any(one.configuration.precision == "int8" and one.accuracy for one in found.candidates)
    assert "mIoU of 4 images says little" in found.notes[-1]
    assert tune(bundle, min_miou=99.99, images=dataset, **FAST).tuned.output_stride == 16
    before = (bundle / "manifest.json").read_bytes()
    told = r"nothing segments a 64x96 frame in 0\.0001 ms: the fastest is ort cpu .*; allow a frame more time$"
    with pytest.raises(InputError, match=told):
        tune(bundle, images=dataset, max_latency_ms=1e-4, **FAST)
    assert (bundle / "manifest.json").read_bytes() == before


def test_without_labels_int8_needs_a_certificate_that_holds(tiny_int8: Path) -> None:
    bundle = Bundle.open(tiny_int8)
    cells = grid(bundle, None, ["ort", "openvino"], None, 0)
    kept, notes = _offered(bundle, cells, certified=True)
    assert {one.precision for one in kept} == {"fp32"}
    named = "openvino cpu int8 os8, ort cpu int8 os16, openvino cpu int8 os16"
    assert notes[1] == f"left out, as no certificate of theirs holds: ort cpu int8 os8, {named}"
    made = Certificate("ort", "cpu", "", 101, "", 60, 59.88, -0.12, (-0.2, 0), {}, 1, "", 1, 0.2)
    variants = [dataclasses.replace(v, certificates=(made,) * (v.encoding == "cpu")) for v in bundle.manifest.variants]
    certified = Bundle(bundle.path, dataclasses.replace(bundle.manifest, variants=tuple(variants)))
    kept, notes = _offered(certified, cells, certified=True)
    assert {one.backend for one in kept if one.precision == "int8"} == {"ort"}
    assert notes[1] == "left out, as no certificate of theirs holds: openvino cpu int8 os8, openvino cpu int8 os16"
    assert _offered(bundle, cells, certified=False) == (list(cells), [])


@pytest.mark.parametrize(
    "asked", [{"backend": "ort"}, {"device": "cpu"}, {"precision": "fp32"}, {"output_stride": 16}, {"threads": 2}]
)
def test_whatever_is_asked_for_overrides_it(tuned: Callable[..., Path], asked: dict[str, Any]) -> None:
    with edgeseg.load(tuned(HERE), cache=None, **asked) as segmenter:
        assert "output stride 16" in segmenter.choice


def test_other_machines_ignore_it_and_what_fails_falls_back(
    tuned: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in (dataclasses.replace(HERE, processor="Other"), dataclasses.replace(HERE, cores=HERE.cores + 1)):
        assert edgeseg.load(tuned(other), cache=None).output_stride == 16
    path = tuned(HERE)
    with pytest.raises(InputError, match="no class 'car'"):
        edgeseg.load(path, classes=["car"])
    broken = tuned(dataclasses.replace(HERE, backend="gone"))
    with pytest.warns(RuntimeWarning, match="fell back from what was tuned here: unknown backend 'gone'"):
        assert edgeseg.load(broken, cache=None).output_stride == 16
    monkeypatch.setattr(loading, "usable_cpus", lambda: HERE.cores + 1)  # another machine
    assert edgeseg.load(path, cache=None).output_stride == 16


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"output_stride": 4}, r"manifest.tuned\[0\] has output stride 4 in fp32: no variant has"),
        ({"precision": "int8"}, r"manifest.tuned\[0\] has output stride 8 in int8"),
        ({"precision": "fp8"}, r"manifest.tuned\[0\].precision is 'fp8'"),
        ({"threads": -1}, r"manifest.tuned\[0\].threads is -1: must be 0 or more"),
        ({"cores": 0}, r"manifest.tuned\[0\].cores is 0: must be 1 or more"),
        ({"p50_ns": 0}, r"manifest.tuned\[0\].p50_ns is 0"),
        ({"frame_size": (0, 3)}, r"manifest.tuned\[0\].frame_size is 0"),
        ({"when": None}, r"manifest.tuned\[0\].when is None: must be one line of text"),
    ],
)
def test_a_manifest_that_is_wrong_about_it_is_refused(change: dict[str, Any], named: str) -> None:
    manifest = Bundle.open(TINY).manifest
    wrong = dataclasses.replace(manifest, tuned=(dataclasses.replace(HERE, **change),))
    with pytest.raises(BundleError, match=named):
        loads(dumps(wrong), "here")


def test_a_machine_is_listed_once_and_unknown_keys_are_ignored() -> None:
    manifest = Bundle.open(TINY).manifest
    with pytest.raises(BundleError, match=r"manifest.tuned\[1\] is of .* again: one per machine"):
        loads(dumps(dataclasses.replace(manifest, tuned=(HERE, HERE))), "here")
    data = json.loads(dumps(dataclasses.replace(manifest, tuned=(HERE,))))
    data["tuned"][0]["newer"] = 1
    assert loads(json.dumps(data), "here").tuned == (HERE,)
    assert "tuned" not in dumps(manifest)


def test_the_processor_is_what_the_files_say(tmp_path: Path) -> None:
    assert processor(tmp_path)  # no files: what Python knows
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson Orin Nano\0")
    assert processor(tmp_path) == "NVIDIA Jetson Orin Nano"
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Some  CPU @ 3 GHz\n")
    assert processor(tmp_path) == "Some CPU @ 3 GHz"


def test_the_command(tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new.edgeseg"
    common = ["tune", TINY, "--frames", "64x96", "--seconds", "1", "--backend", "ort"]
    goal = ["--max-latency", "10s", "--min-miou", "50", "--data", labelled / "images", "--labels", labelled / "labels"]
    assert main(list(map(str, [*common, *goal, "-o", new, "--json"]))) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["tuned"]["output_stride"], report["tuned"]["miou"]) == (16, 100)
    assert [one["interval"] for one in report["candidates"] if one["output_stride"] == 16] == [[100, 100]]
    for arguments, named in (
        ([TINY], "tune needs a goal: --max-latency 20ms, or --min-miou 60 with --data"),
        ([TINY, "--max-latency", "soon"], "'soon' is not a time"),
        ([TINY, "--max-latency", "nan"], "'nan' is not a time"),
        ([TINY, "--max-latency", "-3ms"], "'-3ms' is not above 0: give 20ms or 0.02s"),
        ([TINY, "--max-latency", "0"], "'0' is not above 0"),
        ([TINY, "--min-miou", "60"], "name them with --data"),
        ([TINY, "--max-latency", "20ms", "-o", new], "exists: choose another path"),
        ([TINY, "--max-latency", "20ms", "--backend", "magic", "-o", tmp_path / "b"], "unknown backend 'magic'"),
        (["--max-latency", "20ms"], "belongs to the installation"),
        ([TINY, "--max-latency", "20ms", "--seconds", "0"], "--seconds"),
        ([TINY, "--max-latency", "20ms", "--data", labelled / "images", "-o", tmp_path / "b"], "have no labels"),
        ([tmp_path / "none", "--max-latency", "20ms"], "no bundle at"),
    ):
        assert main(["tune", *map(str, arguments)]) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert named in err
    assert not (tmp_path / "b").exists()


def test_another_input_size_wins_where_it_is_more_right(
    street: Street, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, manifest = tmp_path / "new.edgeseg", (street.bundle / "manifest.json").read_bytes()
    arguments = [
        street.bundle, "--size", "32x48,64x96", "--weights", street.weights, "--calibrate-on", street.more,
        "--data", street.labelled, "--max-latency", "10s",
        "--frames", "64x96", "--seconds", "1", "--backend", "ort", "-o", new, "--json",
    ]  # fmt: skip
    assert main(["tune", *map(str, arguments)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert re.match(r"chosen: ort cpu fp32 os1( t\d+)? at 64x96 ", report["explanation"][0])
    assert " at 32x48 " in report["explanation"][2]
    assert any(f"calibrated on 2 images of {street.more}" in note for note in report["notes"])
    miou = {(*one["input_size"], one["precision"]): one["miou"] for one in report["candidates"]}
    assert set(miou) == {(*size, precision) for size in ((32, 48), OTHER) for precision in ("fp32", "int8")}
    assert miou[32, 48, "fp32"] < miou[64, 96, "fp32"] == report["tuned"]["miou"] == pytest.approx(100, abs=0.01)
    written = Bundle.open(new).manifest
    assert tuple(report["input_size"]) == written.preprocess.input_size == OTHER
    assert (written.name, [one.p50_ns for one in written.tuned]) == ("new", [report["tuned"]["p50_ns"]])
    assert (street.bundle / "manifest.json").read_bytes() == manifest
    with edgeseg.load(new, cache=None) as segmenter:
        assert "tuned here on" in segmenter.choice
        label = cv2.imread(str(street.labelled / "labels/4.png"), cv2.IMREAD_UNCHANGED)
        found = segmenter(images.read(street.labelled / "images/4.png")).class_map
        assert np.mean(found == label) >= 0.9999


def test_without_labels_other_sizes_compete_in_float_only(street: Street, tmp_path: Path) -> None:
    new = tmp_path / "new.edgeseg"
    found = tune(street.bundle, new, max_latency_ms=10_000, sizes=[OTHER], weights=street.weights, **FAST)
    assert {(one.input_size, one.configuration.precision) for one in found.candidates} == {
        ((32, 48), "fp32"),
        (OTHER, "fp32"),
    }
    assert found.bundle.manifest.preprocess.input_size == OTHER
    finest = "64x96 on the frame is their finest grid, this its fastest"
    assert found.explanation[1] == f"why: 2 of 2 stayed within 10000 ms; {finest}"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--size", "64"], "'64' is not a size"),
        (["--size", "8x8", "--weights", "W", "-o", "O"], "input size is 8x8: give height x width, each 32 to 8192"),
        (["--size", "64x96", "-o", "O"], "give the bundle's checkpoint (--weights"),
        (["--size", "64x96", "--weights", "W"], "say where to write it (-o)"),
        (["--weights", "W", "-o", "O"], "are for other input sizes: give those too"),
        (["--size", "64x96", "--weights", "W", "--calibrate-on", "MORE", "-o", "O"], "give labelled images too"),
        (["--size", "64x96", "--weights", "W", "--calibrate-on", "IMAGES", "--data", "DATA", "-o", "O"],
         "4 of the 4 images to calibrate on are among the images to measure on"),
        (["--data", "USED", "--labels", "LABELS"], "1 of the 2 images are among the calibration images of "),
    ],
)  # fmt: skip
def test_what_cannot_be_tuned_is_one_line(
    street: Street, tmp_path: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed, labels = tmp_path / "mixed", tmp_path / "labels"  # one that int8 was calibrated on among others
    mixed.mkdir()
    labels.mkdir()
    for source in (street.used / "0.png", street.labelled / "images/4.png"):
        shutil.copy(source, mixed)
        shutil.copy(street.labelled / "labels/4.png", labels / source.name)
    paths = {
        "W": street.weights, "O": tmp_path / "out.edgeseg", "MORE": street.more, "DATA": street.labelled,
        "IMAGES": street.labelled / "images", "USED": mixed, "LABELS": labels,
    }  # fmt: skip
    arguments = [street.bundle, "--max-latency", "10s", *(paths.get(one, one) for one in options)]
    assert main(["tune", *map(str, arguments)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert told in err
