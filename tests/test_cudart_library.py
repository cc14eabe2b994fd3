"""Finding libcudart, and what is said where it finds no device: of the fake one, and of a real one if it is here."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeseg.backends import cudart, cudart_library
from edgeseg.backends.cudart import Cuda
from edgeseg.errors import BackendMissing, DeviceError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"FAKE_CUDART_ERROR": "35"}, r"CUDA finds no NVIDIA driver \(error 35\): install it; .*--gpus all .*nvidia\)"),
        (
            {"FAKE_CUDART_FAIL": "cudaGetDeviceCount:1:35", "FAKE_CUDART_DRIVER": "11040"},
            r"the NVIDIA driver serves CUDA 11.4 at most, .*libcudart.so is CUDA 12.9 \(error 35\): update .*",
        ),
        ({"FAKE_CUDART_DEVICES": "0"}, r"CUDA sees no GPU \(error 100\): see whether nvidia-smi lists one; .*"),
        (
            {"FAKE_CUDART_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "7"},
            r"CUDA sees no GPU \(error 100\): CUDA_VISIBLE_DEVICES is '7', unset it",
        ),
        ({"FAKE_CUDART_ERROR": "803"}, r"CUDA cannot start: unknown error \(error 803\): .* of two versions: reboot"),
        ({"FAKE_CUDART_ERROR": "777"}, r"CUDA cannot start: unknown error \(error 777\): reboot; .*"),
    ],
)
def test_without_a_device_it_says_what_to_do(
    settings: dict[str, str], message: str, fake_cudart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError) as raised:
        Cuda.load(fake_cudart)
    assert re.fullmatch(message, str(raised.value))
    assert ctypes.CDLL(str(fake_cudart)).cudaPeekAtLastError() == 0


def test_a_library_that_cannot_serve_is_named(
    fake_cudart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "libcudart.txt"
    text.write_text("no library")
    for path in (text, tmp_path / "missing.so"):
        with pytest.raises(BackendMissing, match=rf"^cannot load CUDA's runtime library {path}: .+; on a Jetson .+$"):
            Cuda.load(path)
    monkeypatch.setenv("EDGESEG_CUDART", str(text))
    with pytest.raises(BackendMissing, match=r"libcudart\.txt"):
        Cuda.load()
    assert Cuda.load(fake_cudart).path == str(fake_cudart)


def test_an_older_library_is_taken_where_the_driver_is_older(
    fake_cudart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wheels bring the newest; loading goes on to one that the driver serves."""
    monkeypatch.delenv("EDGESEG_CUDART")
    monkeypatch.setattr(cudart, "candidates", lambda: iter([str(tmp_path / "none"), str(newer), str(fake_cudart)]))
    newer = shutil.copy(fake_cudart, tmp_path / "newer.so")
    with monkeypatch.context() as patch:
        patch.setenv("FAKE_CUDART_FAIL", "cudaGetDeviceCount:1:35")
        ctypes.CDLL(str(newer))
    assert Cuda.load().path == str(fake_cudart)
    monkeypatch.setattr(cudart, "candidates", lambda: iter([str(tmp_path / "none")]))
    with pytest.raises(BackendMissing, match=r"^CUDA's runtime library \(libcudart\) is not here: on a Jetson .+$"):
        Cuda.load()


def test_wheels_are_searched_after_the_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / "nvidia" / name for name in ("cu13/lib", "cuda_runtime/lib")]
    wheels = [folder / f"libcudart.so.{version}" for folder, version in zip(folders, (13, 12), strict=True)]
    for wheel in wheels:
        wheel.parent.mkdir(parents=True)
        wheel.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    found = list(cudart_library.candidates())
    assert found[:4] == ["libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"]
    assert [path for path in found if path.startswith(str(tmp_path))] == [str(wheel) for wheel in wheels]


def test_the_real_library_without_a_device_ends_in_one_line() -> None:
    code = """
import sys
from edgeseg.backends.cudart import Cuda
from edgeseg.errors import BackendError
try:
    Cuda.load()
except BackendError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("EDGESEG_CUDART", None)
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment)
    if done.stderr.startswith("BackendMissing"):
        pytest.skip(done.stderr.strip())
    assert done.returncode == 1
    assert re.fullmatch(r"DeviceError: CUDA (finds no NVIDIA driver|sees no GPU) \(error (35|100)\): .+\n", done.stderr)
