"""What doctor knows of NVIDIA machines, from trees of files as such machines have them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeseg.backends import nvidia
from edgeseg.backends.nvidia import Clock, NvidiaFacts, facts, gpu_hint, install_hint
from edgeseg.cli import main
from edgeseg.commands import doctor

Tree = dict[str, str]

CPU, GPU = "sys/devices/system/cpu/cpufreq", "sys/class/devfreq"
PACKAGES = """\
Package: nvidia-jetpack-dev
Status: install ok installed
Version: 1.0

Package: nvidia-jetpack
Status: {status}
Priority: standard
Architecture: arm64
Version: {version}
Description: NVIDIA Jetpack Meta Package
"""


def release(major: int, revision: str) -> str:
    return (
        f"# R{major} (release), REVISION: {revision}, GCID: 38968081, BOARD: generic, EABI: aarch64, "
        "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"
    )


ORIN_NX: Tree = {
    "etc/nv_tegra_release": release(36, "4.3"),
    "proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0000-super\0nvidia,p3767-0000\0nvidia,tegra234\0",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n",
    "var/lib/dpkg/status": PACKAGES.format(status="install ok installed", version="6.2+b77"),
    "var/lib/nvpmodel/status": "pmode:0000 fmode:quiet",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN_SUPER >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=10W >\n",
    f"{CPU}/policy0/scaling_min_freq": "729600\n",
    f"{CPU}/policy0/scaling_max_freq": "1984000\n",
    f"{CPU}/policy4/scaling_min_freq": "729600\n",
    f"{CPU}/policy4/scaling_max_freq": "1984000\n",
    f"{GPU}/17000000.gpu/min_freq": "306000000\n",
    f"{GPU}/17000000.gpu/max_freq": "1173000000\n",
    f"{GPU}/15340000.vic/min_freq": "115200000\n",
    f"{GPU}/15340000.vic/max_freq": "729600000\n",
    "dev/nvhost-gpu": "",
    "dev/nvgpu/igpu0/ctrl": "",
    "usr/lib/python3.10/dist-packages/tensorrt/__init__.py": "",
}
AGX_ORIN: Tree = {
    "etc/nv_tegra_release": release(39, "2.1"),
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0",
    "var/lib/dpkg/status": PACKAGES.format(status="deinstall ok config-files", version="7.2"),
    "var/lib/nvpmodel/status": "pmode:0003",
    f"{CPU}/policy0/scaling_min_freq": "2201600",
    f"{CPU}/policy0/scaling_max_freq": "2201600",
    f"{GPU}/17000000.gpu/min_freq": "1300500000",
    f"{GPU}/17000000.gpu/max_freq": "1300500000",
    "dev/nvidia0": "",
}
THOR: Tree = {
    "etc/nv_tegra_release": release(38, "4.0"),
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0",
    "sys/module/nvidia/version": "580.00\n",
    "var/lib/nvpmodel/status": "pmode:0001",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=1 NAME=120W >\n",
    f"{GPU}/gpu-gpc-0/min_freq": "",  # powered off
    f"{GPU}/gpu-gpc-0/max_freq": "1575000000",
    "dev/nvidia0": "",
    "usr/lib/python3.12/dist-packages/tensorrt/__init__.py": "",
}
XAVIER: Tree = {
    "etc/nv_tegra_release": release(35, "4.1"),
    "proc/device-tree/model": "Jetson-AGX\0",
    "proc/device-tree/compatible": "nvidia,p2972-0000\0nvidia,tegra194\0",
    "dev/nvhost-gpu": "",
    "usr/lib/python3.8/dist-packages/tensorrt/__init__.py": "",
}
DESKTOP: Tree = {
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.216.03  Fri Oct 25 00:00:00\n",
    "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
    "sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n",
    "sys/bus/pci/devices/0000:01:00.1/vendor": "0x10de\n",
    "sys/bus/pci/devices/0000:01:00.1/class": "0x040300\n",
    "dev/nvidia0": "",
    "dev/nvidiactl": "",
}
WSL: Tree = {
    "proc/sys/kernel/osrelease": "5.15.167.4-microsoft-standard-WSL2\n",
    "usr/lib/wsl/lib/libcuda.so.1": "",
    "dev/dxg": "",
}
CONTAINER: Tree = {".dockerenv": "", **{path: text for path, text in DESKTOP.items() if not path.startswith("dev/")}}
JETSON_CONTAINER: Tree = {".dockerenv": "", **{path: THOR[path] for path in THOR if path.startswith("proc/")}}
NO_DRIVER: Tree = {path: text for path, text in DESKTOP.items() if path.startswith("sys/")}


def plant(root: Path, tree: Tree) -> Path:
    for path, text in tree.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_cuda_status", lambda: doctor.CudaStatus(reason="no libcudart: install it"))


def told(root: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of doctor's section on such a machine."""
    found = facts(plant(root, tree))
    monkeypatch.setattr(nvidia, "facts", lambda: found)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("nvidia "))
    return [line.rstrip() for line in lines[first:-1]]


def test_orin_nx_with_jetpack_6(tmp_path: Path) -> None:
    assert facts(plant(tmp_path, ORIN_NX)) == NvidiaFacts(
        platform="jetson",
        driver="540.4.0",
        gpu_nodes=("nvgpu", "nvhost-gpu"),
        model="NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super",
        l4t="36.4.3",
        jetpack="JetPack 6.2 (L4T 36.4.3)",
        jetpack_major=6,
        jetpack_package="6.2+b77",
        power_mode="MAXN_SUPER (mode 0)",
        clocks=(Clock("cpu", 729, 1984), Clock("gpu", 306, 1173)),
        dla_cores=2,
        tensorrt_pythons=("3.10",),
    )


def test_agx_orin_with_jetpack_7_and_pinned_clocks(tmp_path: Path) -> None:
    found = facts(plant(tmp_path, AGX_ORIN))
    assert (found.jetpack, found.jetpack_package) == ("JetPack 7.2.1 (L4T 39.2.1)", "")
    assert (found.power_mode, found.clocks_pinned, found.dla_cores) == ("mode 3", True, 2)


def test_thor(tmp_path: Path) -> None:
    found = facts(plant(tmp_path, THOR))
    assert (found.jetpack, found.driver, found.power_mode) == ("JetPack 7.1 (L4T 38.4.0)", "580.00", "120W (mode 1)")
    assert (found.clocks, found.clocks_pinned, found.dla_cores) == ((), None, 0)
    assert install_hint(found, python=(3, 12)).startswith("JetPack's TensorRT is here and this environment hides it")
    assert install_hint(found, python=(3, 11)).startswith("JetPack's TensorRT is for Python 3.12 and this is 3.11: ")
    assert "--reinstall" in install_hint(found, broken=True)


def test_jetpack_5_is_out_and_says_why(tmp_path: Path) -> None:
    found = facts(plant(tmp_path, XAVIER))
    assert (found.jetpack, found.driver, found.dla_cores) == ("JetPack 5.1.2 (L4T 35.4.1)", "", 2)
    assert install_hint(found).endswith("older Python than edgeseg's 3.10: use the backend ort")
    assert install_hint(dataclasses.replace(found, model="NVIDIA Orin NX")).endswith("update to JetPack 6")


@pytest.mark.parametrize(
    ("major", "revision", "expected"),
    [
        (35, "1.0", "JetPack 5.0.2 (L4T 35.1.0)"),
        (36, "2.0", "JetPack 6.0 DP (L4T 36.2.0)"),
        (36, "4.0", "JetPack 6.1 (L4T 36.4.0)"),
        (36, "4.4", "JetPack 6.2.1 (L4T 36.4.4)"),
        (36, "9.0", "JetPack 6 (L4T 36.9.0)"),
        (38, "2.0", "JetPack 7.0 (L4T 38.2.0)"),
        (39, "9", "JetPack 7 (L4T 39.9)"),
        (50, "1.0", "L4T 50.1.0"),
    ],
)
def test_the_jetpack_of_a_release(major: int, revision: str, expected: str, tmp_path: Path) -> None:
    assert facts(plant(tmp_path, {"etc/nv_tegra_release": release(major, revision)})).jetpack == expected


def test_without_the_release_file_a_package_says_l4t(tmp_path: Path) -> None:
    package = "Package: nvidia-l4t-core\nStatus: install ok installed\nVersion: 36.4.7-20250918154033\n"
    board = {"proc/device-tree/compatible": "acme,robot\0nvidia,tegra234\0", "var/lib/dpkg/status": package}
    assert facts(plant(tmp_path, board)).jetpack == "JetPack 6.2.1 (L4T 36.4.7)"


@pytest.mark.parametrize(
    ("compatible", "model", "bound", "cores"),
    [
        ("nvidia,p3767-0001", "NVIDIA Jetson Orin NX", 0, 1),
        ("nvidia,p3767-0005", "NVIDIA Jetson Orin Nano", 2, 0),
        ("acme,robot", "Acme Robot", 1, 1),
        ("acme,robot", "Acme Robot", 0, None),
    ],
)
def test_dla_cores(compatible: str, model: str, bound: int, cores: int | None, tmp_path: Path) -> None:
    tree = {"proc/device-tree/compatible": f"{compatible}\0nvidia,tegra234\0", "proc/device-tree/model": model}
    tree |= {f"sys/bus/platform/devices/158{core}0000.nvdla{core}/driver/bind": "" for core in range(bound)}
    tree |= {"sys/bus/platform/devices/158c0000.nvdla1/uevent": ""}  # a device without its driver
    assert facts(plant(tmp_path, tree)).dla_cores == cores


def test_desktop(tmp_path: Path) -> None:
    found = facts(plant(tmp_path, DESKTOP))
    assert found == NvidiaFacts(platform="desktop", driver="535.216.03", gpu_nodes=("nvidia0",), pci_gpus=1)
    assert gpu_hint(found) == ""
    assert install_hint(found) == install_hint(found, [(8, 9)]) == 'pip install "edgeseg[tensorrt-rtx]"'
    assert install_hint(found, [(9, 0)]).startswith("pip install tensorrt ")


def test_wsl(tmp_path: Path) -> None:
    assert facts(plant(tmp_path, WSL)) == NvidiaFacts(platform="wsl", gpu_nodes=("dxg",))


@pytest.mark.parametrize(
    ("tree", "hint"),
    [
        (CONTAINER, "this container has no GPU in /dev: start it with --gpus all"),
        (JETSON_CONTAINER, "this container has no GPU in /dev: start it with --runtime nvidia"),
        ({**CONTAINER, "dev/nvidia0": ""}, ""),
        (NO_DRIVER, "an NVIDIA GPU is here without its driver"),
        ({"sys/module/nvidia/version": "580.00"}, "the driver is here and no GPU in /dev"),
        ({}, ""),
    ],
)
def test_what_keeps_a_gpu_from_being_used(tree: Tree, hint: str, tmp_path: Path) -> None:
    told = gpu_hint(facts(plant(tmp_path, tree)))
    assert told.startswith(hint) if hint else told == ""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may open everything")
def test_nodes_that_this_user_may_not_open(tmp_path: Path) -> None:
    (plant(tmp_path, ORIN_NX) / "dev/nvhost-gpu").chmod(0)
    assert gpu_hint(facts(tmp_path)).startswith("this user may not open /dev/nvhost-gpu: sudo usermod -aG video")


def test_garbage_is_no_error_and_nothing_unprintable_comes_out(tmp_path: Path) -> None:
    paths = sorted({*ORIN_NX, *DESKTOP, *WSL})
    for number, junk in enumerate(
        [b"", b"\x00", b"\xff\xfe\x1b[31m\n" * 900, b"R(release), REVISION: \n", b"-1\n" * 9]
    ):
        root = plant(tmp_path / str(number), dict.fromkeys(paths, ""))
        for path in paths:
            (root / path).write_bytes(junk)
        assert all(text.isprintable() for text in dataclasses.asdict(facts(root)).values() if isinstance(text, str))
    for path in paths:  # folders where files should be
        (tmp_path / "folders" / path).mkdir(parents=True)
    facts(tmp_path / "folders")
    plant(tmp_path / "files", {"proc": "", "sys": "", "etc": "", "var": "", "usr": "", "dev": ""})
    assert facts(tmp_path / "files") == NvidiaFacts()
    assert facts(tmp_path / "nowhere") == NvidiaFacts()


def test_nvpmodel_is_asked_where_its_files_are_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "nvpmodel"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for script, expected in [
        ("printf 'NV Power Mode: MODE_15W\\n2\\n'", "MODE_15W (mode 2)"),
        ("echo whatever", ""),
        ("echo 'NV Power Mode: MAXN'; exit 1", ""),
        ("exec sleep 9", ""),
    ]:
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
        assert nvidia.ask_power_mode() == expected


@pytest.mark.usefixtures("no_cuda")
def test_doctor_on_a_jetson(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = told(tmp_path, ORIN_NX, monkeypatch, capsys)
    assert lines[:2] == [
        "nvidia     NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super, JetPack 6.2 (L4T 36.4.3), "
        "package nvidia-jetpack 6.2+b77",
        "  driver   540.4.0",
    ]
    assert lines[2] == "  CUDA     not usable: no libcudart: install it"
    assert lines[3].startswith("  TensorRT ")
    assert "  DLA      cores: 2" in lines
    assert "  power    MAXN_SUPER (mode 0)" in lines
    clocks = "not pinned: cpu 729 to 1984 MHz, gpu 306 to 1173 MHz; `sudo jetson_clocks` before measuring"
    assert f"  clocks   {clocks}" in lines
    if "  TensorRT not installed" in lines:  # and never pip's, whatever the Python
        assert lines[-1].startswith("  install  JetPack's TensorRT is ")


def test_doctor_on_pinned_clocks_and_a_dla_that_tensorrt_leaves_out(tmp_path: Path) -> None:
    machine = facts(plant(tmp_path, AGX_ORIN))
    for version, remark in [
        ("10.16.2", ", which TensorRT 10.16.2 does not compile for"),
        ("11.4.1", ""),
        ("10.3.0", ""),
    ]:
        modules = (doctor.TensorRTModule("tensorrt", version),)
        lines = dict(
            doctor._nvidia_lines(doctor.NvidiaStatus(machine, True, doctor.CudaStatus(reason="no"), modules, ()))
        )
        assert lines["  DLA"] == "cores: 2" + remark
        assert lines["  clocks"] == "pinned: cpu 2201 MHz, gpu 1300 MHz"


@pytest.mark.usefixtures("no_cuda")
def test_doctor_where_there_is_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = told(tmp_path, {}, monkeypatch, capsys)
    assert line.startswith(
        "nvidia     no NVIDIA driver or GPU: TensorRT can compile ahead of time only (with tensorrt-rtx"
    )


@pytest.mark.usefixtures("no_cuda")
def test_doctor_tells_of_a_gpu_without_a_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = told(tmp_path, NO_DRIVER, monkeypatch, capsys)
    assert any(line.startswith("  install  an NVIDIA GPU is here without its driver") for line in lines)


def test_doctor_lists_gpus_of_the_runtime(
    fake_cudart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgeseg.backends.cudart import Cuda

    cuda = Cuda.load(fake_cudart)
    monkeypatch.setattr(Cuda, "load", lambda: cuda)
    lines = told(tmp_path, DESKTOP, monkeypatch, capsys)
    (gpu,) = cuda.devices()
    assert any(line.startswith("  CUDA     ") and str(fake_cudart) in line for line in lines)
    assert any(line.startswith(f"  gpu.0    {gpu.name}: compute capability ") for line in lines)


def test_doctor_survives_whatever_cuda_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    cudart = pytest.importorskip("edgeseg.backends.cudart")

    def fail() -> None:
        raise OSError("bad library")

    monkeypatch.setattr(cudart.Cuda, "load", fail)
    assert doctor._cuda_status().reason == "broken: OSError: bad library"


def test_a_tensorrt_that_cannot_be_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, {"tensorrt/__init__.py": "raise ImportError('libnvinfer.so.10: cannot open shared object file')"})
    (tmp_path / "tensorrt_rtx").mkdir()  # a folder in the way
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    broken, folder = doctor._tensorrt_modules()
    assert broken == doctor.TensorRTModule(
        "tensorrt", "", "ImportError: libnvinfer.so.10: cannot open shared object file"
    )
    assert (folder.name, folder.reason) == ("tensorrt_rtx", "it has no version: is a folder of that name here?")
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")


def test_doctor_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(plant(tmp_path, ORIN_NX))
    monkeypatch.setattr(nvidia, "facts", lambda: found)
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["nvidia"]
    assert report.keys() == {"machine", "clocks_pinned", "cuda", "tensorrt", "install"}
    assert (report["machine"]["jetpack"], report["clocks_pinned"]) == ("JetPack 6.2 (L4T 36.4.3)", False)
    assert report["machine"]["clocks"][1] == {"name": "gpu", "min_mhz": 306, "max_mhz": 1173}


def test_the_section_is_quick_and_loads_no_torch() -> None:
    start = time.perf_counter()
    facts()
    assert time.perf_counter() - start < 0.2
    code = "import sys; from edgeseg.cli import main; main(['doctor']); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.splitlines()[-1] == "False"
