"""The command line as a person types it: every command, its help, its errors, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgeseg
from edgeseg import factories, images
from edgeseg.cli import LazyGroup, main
from edgeseg.errors import InputError
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


@pytest.mark.parametrize("command", [*COMMANDS, None])
def test_help_ends_with_the_example(command: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *([command] if command else []), "--help")
    assert (code, out.count("Example:")) == (0, 1)
    last = out[out.index("Example:") :]
    assert last.startswith(f"Example: edgeseg {command or 'segment'}")
    assert "--help" not in last


def test_no_arguments_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    assert out == run(capsys, "--help")[1]
    assert out.startswith("Usage: edgeseg")


def test_an_unknown_command_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "bogus")
    assert code == 1
    assert err.startswith("edgeseg: No such command 'bogus': ")
    assert all(name in err for name in COMMANDS)


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


def bad_calls(photos: Path, tmp_path: Path) -> dict[str, tuple[list[object], str]]:
    image = photos / "street0.png"
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "way" / "street0.png").mkdir(parents=True)
    os.mkfifo(tmp_path / "fifo.png")
    return {
        "no number": (["segment", image, "--tile", "--overlap", "x"], "'x' is not a whole number."),
        "missing image": (["segment", tmp_path / "none.jpg"], "cannot read"),
        "no name": (["segment", ""], "is empty"),
        "no name among several": (["segment", image, ""], "is empty"),
        "long name": (["segment", "x" * 300], "File name too long"),
        "long output": (["segment", image, "-o", "x" * 300 + ".png"], "File name too long"),
        "long folder": (["segment", image, "-o", "x" * 300 + "/"], "File name too long"),
        "long bundle": (["segment", image, "--bundle", "x" * 300], "x" * 300),
        "fifo": (["segment", tmp_path / "fifo.png"], "not a regular file"),
        "device": (["segment", "/dev/zero"], "not a regular file"),
        "seed and image": (["segment", image, "--seed", "0"], "--seed draws a scene"),
        "empty classes": (["segment", image, "--classes", ""], "--classes is empty"),
        "empty output": (["segment", image, "-o", ""], "-o is empty"),
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
        "its own name": (["segment", image, "-o", photos], "would overwrite"),
        "its own name for the mask": (["segment", image, "--class-map", f"{photos}/"], "would overwrite"),
        "its own folder": (["segment", photos, "-o", photos], "holds the images"),
        "both outputs": (["segment", image, "-o", tmp_path / "a.png", "--class-map", tmp_path / "a.png"], "choose two"),
        "both in a folder": (
            ["segment", image, "-o", f"{tmp_path}/new/", "--class-map", tmp_path / "new" / "street0.png"],
            "choose two",
        ),
        "several to a file": (["segment", photos, "-o", text], "is a file"),
        "several to a new file": (["segment", photos, "-o", tmp_path / "single.png"], "several images give a folder"),
        "file as folder": (["segment", image, "-o", f"{text}/"], "is a file: give a folder"),
        "folder in the way": (["segment", image, "-o", tmp_path / "way"], "street0.png: it is a folder"),
        "unwritable": (["segment", image, "-o", text / "a.png"], "cannot write"),
        "no command": (["segmnet"], "No such command"),
        "no option": (["segment", "--colour", "red"], "--colour"),
        "export size": (["export", "a:b", "--size", "10", "--classes", "a", "-o", tmp_path / "x"], "height x width"),
        "export target": (["export", "nothing", "--size", "8x8", "--classes", "a", "-o", tmp_path / "x"], "FACTORY"),
    }


BAD_CALLS = 43


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
    for word in (
        "openvino",
        "ort",
        "simulate",
        "reference",
        "npu",
        "gpu",
        "int8 encodings: cpu",
        "decode",
        "auto order",
    ):
        assert word in out
    code, out, _ = run(capsys, "doctor", "--json")
    report = json.loads(out)
    assert report["decode"]["name"] in ("compiled", "numpy")
    assert {backend["name"] for backend in report["backends"]} >= {"openvino", "ort", "simulate", "reference"}
    npu = next(d for b in report["backends"] if b["name"] == "openvino" for d in b["devices"] if "npu" in d["name"])
    assert npu["reason"] == "" or "driver" in npu["reason"]


def test_a_reader_that_leaves_is_no_crash() -> None:
    shell = f"{sys.executable} -m edgeseg doctor | head -n 1"
    done = subprocess.run(["bash", "-c", shell], check=False, capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's full device")
@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"], ["--help"], ["segment", "--bundle", TINY]])
def test_a_full_disk_behind_the_output_is_one_line(arguments: list[object]) -> None:
    with open("/dev/full", "w") as full:
        call = [sys.executable, "-m", "edgeseg", *map(str, arguments)]
        done = subprocess.run(call, check=False, stdout=full, stderr=subprocess.PIPE, text=True)
    told = [line for line in done.stderr.splitlines() if not line.startswith("openvino on")]
    assert (done.returncode, told) == (1, ["edgeseg: cannot write the output: No space left on device"])


def test_opencv_missing_is_one_line() -> None:
    code = "import sys; from edgeseg.cli import main; sys.modules['cv2'] = None; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("edgeseg: OpenCV (cv2) is missing: pip install")


def test_a_warning_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    call = [sys.executable, "-m", "edgeseg", "segment", "--bundle", str(TINY)]
    home = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "file")}
    done = subprocess.run(call, check=True, capture_output=True, text=True, env=home)
    warned, choice = done.stderr.splitlines()
    assert warned.startswith("edgeseg: warning: no cache for compiled networks: cannot make")
    assert "output stride" in choice


def test_settings_are_json_or_python_literals() -> None:
    texts = ["1", "false", "False", "null", "None", "'x'", '"x"', "(1, 2)", "[1, 2]", "mobilenet_v2", "", "1-", "{"]
    values = [1, False, False, None, None, "x", "x", (1, 2), [1, 2], "mobilenet_v2", "", "1-", "{"]
    assert [factories._setting(f"n={text}") for text in texts] == [("n", value) for value in values]


def test_a_factory_that_makes_no_module_is_refused() -> None:
    with pytest.raises(InputError, match=r"builtins:dict returns dict: a torch\.nn\.Module is needed"):
        factories.make("builtins:dict")
