"""`edgeseg segment` as a person types it: what is read, where it is written, what is printed and when."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import edgeseg
from edgeseg import images
from edgeseg.cli import main
from edgeseg.testing import TINY, street_scene


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


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


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
    assert re.search(r"road +\d+ px +\d+\.\d%  #[0-9a-f]{6}\n", out)


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


@pytest.mark.parametrize("form", ["folders", "files", "glob"])
def test_same_name_in_two_folders_keeps_both(
    form: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, folder in enumerate(("a", "b")):
        (photos / folder).mkdir()
        images.write(photos / folder / "x.png", street_scene(seed, (96, 128))[0])
    both = [photos / "a", photos / "b"]
    sources = {"folders": both, "files": [folder / "x.png" for folder in both], "glob": [photos / "?" / "*.png"]}[form]
    code, out, _ = run(capsys, "segment", *sources, "--bundle", TINY, "-o", tmp_path / "ab", "--json")
    assert (code, files(tmp_path / "ab")) == (0, ["a/x.png", "b/x.png"])
    assert [entry["overlay"] for entry in json.loads(out)["images"]] == [
        str(tmp_path / "ab" / name) for name in ("a/x.png", "b/x.png")
    ]
    assert not np.array_equal(images.read(tmp_path / "ab/a/x.png"), images.read(tmp_path / "ab/b/x.png"))


def test_names_that_still_collide_are_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x.png", "x.jpg", "x.jpg.bmp"):
        images.write(photos / name, street_scene(0, (96, 128))[0])
    code, _, err = run(capsys, "segment", photos, "--bundle", TINY, "-o", tmp_path / "out")
    assert code == 1
    assert err.startswith(f"edgeseg: {photos / 'x.jpg'} and {photos / 'x.jpg.bmp'} would both become")
    assert not (tmp_path / "out").exists()


def test_an_image_named_twice_is_read_once(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, "segment", photos, f"{photos}/../photos/street0.png", "--bundle", TINY, "-o", tmp_path / "out", "--json"
    )
    assert (code, len(json.loads(out)["images"]), len(files(tmp_path / "out"))) == (0, 3, 3)


@pytest.mark.parametrize("slashed", [False, True])
def test_a_folder_for_one_image(
    slashed: bool, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new"
    if not slashed:
        target.mkdir()
    shown = f"{target}/" if slashed else target
    for option in ("-o", "--class-map"):
        code, _, _ = run(capsys, "segment", photos / "street1.png", "--bundle", TINY, option, shown)
        assert (code, files(target)) == (0, ["street1.png"])
    code, _, _ = run(capsys, "segment", "--bundle", TINY, "-o", shown)
    assert (code, files(target)) == (0, ["scene.png", "street1.png"])


def test_only_regular_files_are_read_from_folders_and_globs(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "folder.png").mkdir()
    (photos / "link.png").symlink_to("nowhere")
    (photos / "good.png").symlink_to("street0.png")
    (photos / "plain").mkdir()
    os.mkfifo(photos / "fifo.png")
    for source in (photos, f"{photos}/*"):
        code, out, err = run(capsys, "segment", source, "--bundle", TINY, "--json")
        assert (code, len(json.loads(out)["images"])) == (0, 4)
        assert err.splitlines() == [
            f"edgeseg: skipped {photos}/fifo.png: it is not a regular file",
            f"edgeseg: skipped {photos}/folder.png: it is a folder",
            f"edgeseg: skipped {photos}/link.png: No such file or directory",
        ]


def test_a_named_file_that_cannot_be_read_fails_the_run_and_not_the_others(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(photos / "fifo.png")
    named = [photos / name for name in ("none.png", "street0.png", "fifo.png")]
    code, _, err = run(capsys, "segment", *named, "--bundle", TINY, "-o", tmp_path / "out")
    assert (code, files(tmp_path / "out")) == (1, ["street0.png"])
    assert err.count("edgeseg: cannot read ") == 2
    code, out, err = run(capsys, "segment", named[0], named[2], "--bundle", tmp_path / "not even looked at")
    assert (code, out, len(err.splitlines())) == (1, "", 2)


def test_a_missing_file_is_told_before_the_network_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "segment", tmp_path / "none.png", "--bundle", tmp_path / "no bundle")
    assert (code, err) == (1, f"edgeseg: cannot read {tmp_path}/none.png: No such file or directory\n")


def test_a_folder_that_cannot_be_written_is_told_once(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "out", "/proc/out"):
        code, out, err = run(capsys, "segment", photos, "--bundle", TINY, "-o", target)
        assert (code, out, len(err.splitlines())) == (1, "", 1)
        assert err.startswith(f"edgeseg: cannot write to {target}: ")


def test_colours_and_written_files_are_in_the_json(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = tmp_path / "mask.png"
    code, out, _ = run(capsys, "segment", photos / "street0.png", "--bundle", TINY, "--class-map", mask, "--json")
    assert code == 0
    (entry,) = json.loads(out)["images"]
    assert (entry["overlay"], entry["class_map"]) == (None, str(mask))
    colors = Image.open(mask).convert("RGB").getcolors() or []
    shown = {area["color"]: area["pixels"] for area in entry["areas"].values() if area["pixels"]}
    assert shown == {"#" + bytes(color).hex(): pixels for pixels, color in colors}


def test_the_table_shows_the_kept_classes(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["segment", photos / "street0.png", "--bundle", TINY]
    _, out, _ = run(capsys, *call)
    assert all(int(pixels) for pixels in re.findall(r"(\d+) px", out))
    _, out, _ = run(capsys, *call, "--classes", "thing,ground")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["unlabelled", "ground", "thing"]
    _, out, _ = run(capsys, *call, "--classes", "thing,ground", "--json")
    (entry,) = json.loads(out)["images"]
    assert {name: area["color"] is None for name, area in entry["areas"].items()} == {
        "ground": False,
        "thing": False,
        "unlabelled": True,
    }
    assert sum(area["pixels"] for area in entry["areas"].values()) == 96 * 128


def test_swatches_are_for_terminals(photos: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    call = [sys.executable, "-m", "edgeseg", "segment", str(photos / "street0.png"), "--bundle", str(TINY)]
    subprocess.run(call, check=True, stdout=theirs, stderr=subprocess.DEVNULL)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    red, green, blue = (int(digits, 16) for digits in re.findall(r"sky .*#(..)(..)(..)", shown)[0])
    assert f"\x1b[48;2;{red};{green};{blue}m  \x1b[0m sky " in shown
    assert b"\x1b" not in subprocess.run(call, check=True, capture_output=True).stdout


SEGMENT = (  # a shell's background job ignores Ctrl-C, and so would what it starts
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from edgeseg.cli import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.mark.parametrize("as_json", [False, True])
def test_what_is_done_is_printed_and_survives_ctrl_c(as_json: bool, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    images.write(tmp_path / "big.png", street_scene(0)[0])
    for number in range(500):
        (many / f"{number:03}.png").symlink_to(tmp_path / "big.png")
    call = [sys.executable, "-c", SEGMENT, "segment", str(many), "-o", str(tmp_path / "out"), *["--json"] * as_json]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        first = "" if as_json else process.stdout.readline()
        give_up = time.monotonic() + 60
        while as_json and not (tmp_path / "out" / "001.png").exists() and time.monotonic() < give_up:
            time.sleep(0.01)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "edgeseg: interrupted"
    assert "Traceback" not in err
    done = len(json.loads(out)["images"]) if as_json else (first + out).count(" ms (preprocess ")
    assert 1 <= done < 500
