"""`edgeseg calibrate`: what it prints, reports and draws, and what it refuses in one line."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

pytest.importorskip("onnx", reason="int8 graphs are written with onnx")
pytest.importorskip("onnxruntime", reason="ONNX Runtime observes and judges")

import edgeseg
from edgeseg import images as image_files
from edgeseg._terminal import status
from edgeseg.bundle import Bundle
from edgeseg.calibration.datasets import open_dataset
from edgeseg.calibration.recipe import calibrate
from edgeseg.cli import main
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


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["calibrate", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_reports_all_that_it_measured(
    street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--images", street / "images", "--labels", street / "labels", "--count", COUNT, "--max-drop", 30]
    options += ["--report", tmp_path / "a.json", "--plot", tmp_path / "a.png", "-o", tmp_path / "a.edgeseg"]
    code, out, error = run(capsys, TINY, *options, "--output-stride", 16, "--json", "--float-layers", "point, pooled")
    assert (code, error) == (0, "")
    report = json.loads(out)
    assert report == json.loads((tmp_path / "a.json").read_text())
    assert set(report) == {"bundle", "seconds", "notes", "variants"}
    assert set(report["seconds"]) == {"calibration", "guard", "writing"}
    for variant in report["variants"]:
        assert variant["output_stride"] == 16
        assert variant["float_layers"] == ["point", "pooled"]
        assert variant["limit"] == {"max_drop": 30.0, "max_disagreement": 1.0}
        assert set(variant["trials"][0]) == {
            "method",
            "float_layers",
            "measured",
            "milliseconds",
            "milliseconds_fp32",
        }
        assert set(variant["measured"]) == {"images", "difference", "agreement"}
    assert {cost["layer"] for cost in report["variants"][0]["layers"]}.isdisjoint({"point", "pooled", "classifier"})
    plot = image_files.read(tmp_path / "a.png")
    assert plot.shape[1] > 1000

    code, out, error = run(capsys, tmp_path / "a.edgeseg", "-o", tmp_path / "b.edgeseg")
    assert (code, error) == (0, "")
    row = next(line for line in out.splitlines() if line.startswith("16      cpu"))
    assert row.endswith("point, pooled    not measured")
    assert (
        "no guard ran: nothing was measured; rules and layers in float are the earlier calibration's, where not given"
        in out
    )


def test_a_guard_from_the_same_folder_takes_the_other_images(
    street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = open_dataset(street / "images", classes=Bundle.open(TINY).manifest.classes)
    before, output = tmp_path / "before.edgeseg", tmp_path / "a.edgeseg"
    calibrate(TINY, before, drawn.take(COUNT, 0))
    options = ["--guard-images", street / "images", "--output-stride", 16, "--encoding", "cpu", "--budget", 0]
    code, out, error = run(capsys, before, *options, "-o", output)
    assert (code, error) == (0, "")
    told = out.splitlines()
    assert sum(line.endswith("<- chosen") for line in told) == 1
    assert "no labels: the guard counts the pixels whose class changes, not mIoU" in told
    source = street / "images"
    assert f"the guard has 6 images: the others of the 12 in {source} are copies, or calibrated on" in told
    lost = "os8-int8-cpu, os8-int8-tensorrt, os8-int8-tensorrt-fp16, os16-int8-tensorrt, os16-int8-tensorrt-fp16"
    assert told[-1] == f"int8 variants replaced: os16-int8-cpu; dropped: {lost}"
    how = Bundle.open(output).variant(16, "int8", "cpu").calibration
    assert how is not None
    assert (how.images, how.guard_images) == (COUNT, COUNT)


def test_a_report_that_fails_in_the_end_costs_neither_bundle_nor_tables(
    street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.edgeseg"
    options = ["--images", street / "images", "--count", 2, "--no-guard", "--output-stride", 16, "--encoding", "cpu"]
    code, out, error = run(capsys, TINY, *options, "-o", output, "--report", output)
    assert (code, error.count("\n")) == (1, 1)
    assert f"cannot write {output}" in error
    assert "16      cpu       mse" in out
    assert Bundle.open(output).variant(16, "int8", "cpu").calibration is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "median"], "method is 'median': choose one of minmax, "),
        (["--encoding", "uint4"], "'uint4' is not one of"),
        (["--encoding", "tensorrt_fp16"], "tensorrt_fp16 is made of tensorrt: ask for both"),
        (["--output-stride", "4"], "has no output stride 4: it has 8, 16"),
        (["--count", "0"], "Invalid value for '--count'"),
        (["--count", "12"], "has no image left for the guard: calibration uses all 12; give --guard-images"),
        (["--budget", "-1"], "Invalid value for '--budget'"),
        (["--budget", "nan"], "'nan' is not a finite number"),
        (["--max-drop", "nan"], "'nan' is not a finite number"),
        (["--max-disagreement", "nan"], "'nan' is not a finite number"),
        (["--seed", "-1"], "Invalid value for '--seed'"),
        (["-o", "missing/a.edgeseg"], "cannot write missing/a.edgeseg: there is no folder missing"),
        (["--max-drop", "-0.1"], "Invalid value for '--max-drop'"),
        (["--float-layers", "pint"], f"no layer 'pint' in this network: `edgeseg inspect --all {TINY}` lists them"),
        (["--images", "missing"], "missing is missing: give a folder"),
        (["--images", "."], "no images in "),
        (["--guard-images", "missing"], "missing is missing: give a folder"),
        (["--guard-images", "{street}/images", "--count", "12"], "has no image left for the guard"),
        (["--guard-images", "{street}", "--no-guard"], "exclude each other"),
        (["--guard-labels", "."], "are about --guard-images"),
        (["--labels", "missing"], "missing is missing: give a folder"),
        (["--split", "train"], "train"),
        (["--plot", "a.txt"], "no image format '.txt'"),
        (["--plot", "a.png", "--no-guard"], "--plot draws what the guard measures"),
        (["--report", "missing/a.json", "--no-guard"], "cannot write"),
    ],
)
def test_a_bad_option_is_one_line(
    street: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [option.format(street=street) for option in options]
    code, out, error = run(capsys, TINY, "-o", "a.edgeseg", "--images", street / "images", "--count", COUNT, *given)
    assert (code, out) == (1, "")
    assert message in error
    assert error.count("\n") == 1
    assert error.startswith("edgeseg: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "was never calibrated: give --images DIR"),
        (["--labels", "."], "--labels and --split are about --images"),
        (["--per-tensor"], "need images to round the weights anew on"),
    ],
)
def test_without_images(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    code, out, error = run(capsys, TINY, "-o", tmp_path / "a.edgeseg", *options)
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert message in error
    assert not list(tmp_path.iterdir())


def test_steps_write_over_each_other_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    with status() as tell:
        tell("not seen")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with status() as tell:
        tell("layer 1 of 2, and more")
        tell("layer 2 of 2")
    seen = capsys.readouterr().err.split("\r")
    assert seen == ["", "layer 1 of 2, and m", f"{'layer 2 of 2':<19}", " " * 19, ""]
