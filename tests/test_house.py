"""The house's own rules: what importing loads, what the wheel holds, how long files are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import edgeseg

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="tomllib comes with Python 3.11")

ROOT = Path(__file__).parents[1]
FOLDERS = {"edgeseg": "edgeseg", "backends": "edgeseg.backends", "calibration": "edgeseg.calibration",
           "benchmarks": "edgeseg.benchmarks"}  # fmt: skip
HEAVY = {"torch", "onnx", "onnxruntime", "openvino", "tensorrt", "onnxscript", "safetensors", "scipy", "PIL"}


def sources() -> list[Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    linked = {ROOT / "edgeseg" / name for name in FOLDERS}
    return [path for path in found if not linked & set(path.parents)]


def test_importing_edgeseg_loads_nothing_heavy() -> None:
    code = "import sys, edgeseg, edgeseg.testing; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not HEAVY & set(out.split())


def test_every_command_helps_without_heavy_packages() -> None:
    """The device has one runtime, and a command's options are read before any is needed."""
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in sorted(HEAVY))
    load = "import importlib, edgeseg.cli as c; [*map(importlib.import_module, c.LazyGroup.commands_at.values())]"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {blocked}; {load}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    assert {name for name in edgeseg.__all__ if getattr(edgeseg, name, None) is None} == set()
    assert set(edgeseg.__all__) <= set(dir(edgeseg))


def test_without_opencv_the_command_line_says_so() -> None:
    for arguments in (["doctor"], ["segment"], ["--version"]):
        code = f"import sys; sys.modules['cv2'] = None; from edgeseg.cli import main; sys.exit(main({arguments}))"
        done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        if arguments == ["--version"]:
            assert done.returncode == 0
        else:
            assert done.returncode == 1
            assert done.stderr.startswith("edgeseg: OpenCV (cv2) is missing: pip install")
            assert done.stderr.count("\n") == 1
    code = "import sys; sys.modules['cv2'] = None; import edgeseg; edgeseg.load"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: edgeseg needs OpenCV")


def test_every_subpackage_is_listed_for_the_wheel() -> None:
    """A package that pyproject forgets vanishes from the wheel without a word."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    found = set()
    for path in sources():
        if path.name == "__init__.py":
            parts = path.parent.relative_to(ROOT).parts
            found.add(".".join([FOLDERS[parts[0]], *parts[1:]]))
    assert sorted(listed) == sorted(found)


def test_files_stay_short() -> None:
    long = {str(path.relative_to(ROOT)): n for path in sources() if (n := len(path.read_text().splitlines())) > 300}
    assert not long


def test_links_point_at_the_folders() -> None:
    for name in ("backends", "calibration", "benchmarks"):
        assert (ROOT / "edgeseg" / name).resolve() == ROOT / name
