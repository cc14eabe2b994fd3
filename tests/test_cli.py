"""The command line as a person types it: every command, its help, its errors, nothing half-written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import edgeseg
from edgeseg import images
from edgeseg.cli import LazyGroup, main
from edgeseg.testing import TINY, street_scene

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(LazyGroup.commands_at)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(3):
        images.write(folder / f"street{seed}.png", street_scene(seed, (96, 128))[0])
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme_and_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"edgeseg {command}" in (ROOT / "README.md").read_text(encoding="utf-8")
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"Example: edgeseg {command}" in out


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from edgeseg.cli import main; main(['segment', '--help']); "
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'openvino') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_python_m_edgeseg() -> None:
    out = subprocess.run([sys.executable, "-m", "edgeseg", "--version"], check=True, capture_output=True, text=True)
    assert out.stdout == f"edgeseg, version {edgeseg.__version__}\n"
    bad = subprocess.run([sys.executable, "-m", "edgeseg", "segmnt"], check=False, capture_output=True, text=True)
    assert bad.returncode == 1
    assert bad.stderr.count("\n") == 1


def test_segment_draws_a_scene_and_uses_the_embedded_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay, mask = tmp_path / "overlay.png", tmp_path / "mask.png"
    code, out, err = run(capsys, "segment", "-o", overlay, "--class-map", mask, "--seed", "3")
    assert (code, "output stride 16" in err) == (0, True)
    frame, _ = street_scene(3)
    with edgeseg.load() as segmenter:
        result = segmenter(frame)
    np.testing.assert_array_equal(np.array(Image.open(mask)), result.class_map)
    np.testing.assert_array_equal(images.read(overlay), result.overlay(frame))
    assert re.search(r"road +\d+ px +\d+\.\d%", out)


def test_segment_one_file_as_json(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = photos / "street0.png"
    target = tmp_path / "new" / "overlay.jpg"
    code, out, _ = run(capsys, "segment", source, "--bundle", TINY, "-o", target, "--json")
    assert code == 0
    report = json.loads(out)
    (entry,) = report["images"]
    assert entry["image"] == str(source)
    assert sum(area["pixels"] for area in entry["areas"].values()) == 96 * 128
    assert cv2.imread(str(target)).shape == (96, 128, 3)


@pytest.mark.parametrize("form", ["folder", "glob", "files"])
def test_segment_several(form: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = {"folder": [photos], "glob": [f"{photos}/*.png"], "files": sorted(photos.iterdir())}[form]
    out_folder, masks = tmp_path / "overlays", tmp_path / "masks"
    code, out, _ = run(capsys, "segment", *sources, "--bundle", TINY, "-o", out_folder, "--class-map", masks, "--json")
    assert code == 0
    names = ["street0.png", "street1.png", "street2.png"]
    assert sorted(path.name for path in out_folder.iterdir()) == names
    assert sorted(path.name for path in masks.iterdir()) == names
    assert [Path(entry["image"]).name for entry in json.loads(out)["images"]] == names
    with edgeseg.load(TINY) as segmenter:
        for name in names:
            wanted = segmenter(images.read(photos / name)).class_map
            np.testing.assert_array_equal(np.array(Image.open(masks / name)), wanted)


def test_one_bad_image_among_several_is_told_and_the_rest_done(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "street1.png").write_bytes(b"no image")
    code, out, err = run(capsys, "segment", photos, "--bundle", TINY, "-o", tmp_path / "out", "--json")
    assert code == 1
    assert len(json.loads(out)["images"]) == 2
    assert f"edgeseg: {photos / 'street1.png'} is not an image" in err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["street0.png", "street2.png"]


def test_same_stem_twice_keeps_both(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images.write(photos / "street0.jpg", street_scene(5, (96, 128))[0])
    code, _, _ = run(capsys, "segment", photos, "--bundle", TINY, "-o", tmp_path / "out")
    assert code == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["street0.jpg.png", "street0.png.png", "street1.png", "street2.png"]


def bad_calls(photos: Path, tmp_path: Path) -> dict[str, tuple[list[object], str]]:
    image = photos / "street0.png"
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    (tmp_path / "empty").mkdir()
    return {
        "missing image": (["segment", tmp_path / "none.jpg"], "cannot read"),
        "not an image": (["segment", text], "is not an image"),
        "empty folder": (["segment", tmp_path / "empty"], "no images in"),
        "empty glob": (["segment", f"{tmp_path}/*.tiff"], "nothing matches"),
        "missing bundle": (["segment", image, "--bundle", tmp_path / "none"], "no bundle at"),
        "file as bundle": (["segment", image, "--bundle", text], "is a file"),
        "folder as bundle": (["segment", image, "--bundle", tmp_path / "empty"], "is not a bundle"),
        "unknown backend": (["segment", image, "--backend", "magic"], "unknown backend 'magic'"),
        "unknown device": (["segment", image, "--device", "toaster"], "toaster"),
        "absent device": (["segment", image, "--backend", "ort", "--device", "gpu"], "no device 'gpu'"),
        "output stride": (["segment", image, "--output-stride", "4"], "no output stride 4"),
        "precision": (["segment", image, "--precision", "fp8"], "fp8"),
        "class": (["segment", image, "--classes", "unicorn"], "no class 'unicorn'"),
        "alpha": (["segment", image, "--alpha", "2"], "alpha"),
        "suffix": (["segment", image, "-o", tmp_path / "out.xyz"], "no image format '.xyz'"),
        "mask suffix": (["segment", image, "--class-map", tmp_path / "mask.jpg"], "indexed PNG"),
        "its own input": (["segment", image, "-o", image], "would overwrite"),
        "its own folder": (["segment", photos, "-o", photos], "would overwrite"),
        "both outputs": (["segment", image, "-o", tmp_path / "a.png", "--class-map", tmp_path / "a.png"], "choose two"),
        "several to a file": (["segment", photos, "-o", text], "is a file"),
        "unwritable": (["segment", image, "-o", text / "a.png"], "cannot write"),
        "no command": (["segmnet"], "No such command"),
        "no option": (["segment", "--colour", "red"], "--colour"),
        "export size": (["export", "a:b", "--size", "10", "--classes", "a", "-o", tmp_path / "x"], "height x width"),
        "export target": (["export", "nothing", "--size", "8x8", "--classes", "a", "-o", tmp_path / "x"], "FACTORY"),
    }


BAD_CALLS = 25


@pytest.mark.parametrize("number", range(BAD_CALLS))
def test_bad_input_is_one_line_and_exit_1(
    number: int, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = bad_calls(photos, tmp_path)
    assert len(calls) == BAD_CALLS
    arguments, told = list(calls.values())[number]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, out, err = run(capsys, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("edgeseg: ")]
    assert (code, len(lines), out) == (1, 1, ""), err
    assert told in lines[0]
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_doctor_lists_backends_devices_and_the_decode_path(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    for word in ("openvino", "ort", "reference", "npu", "gpu", "decode", "auto order"):
        assert word in out
    code, out, _ = run(capsys, "doctor", "--json")
    report = json.loads(out)
    assert report["decode"]["name"] in ("compiled", "numpy")
    assert {backend["name"] for backend in report["backends"]} >= {"openvino", "ort", "reference"}
    npu = next(d for b in report["backends"] if b["name"] == "openvino" for d in b["devices"] if "npu" in d["name"])
    assert npu["reason"] == "" or "driver" in npu["reason"]


def test_a_reader_that_leaves_is_no_crash() -> None:
    shell = f"{sys.executable} -m edgeseg doctor | head -n 1"
    done = subprocess.run(["bash", "-c", shell], check=False, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
