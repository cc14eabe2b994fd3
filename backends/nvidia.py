"""What this machine is for TensorRT: driver, JetPack, power mode, clocks; read from files, without CUDA or TensorRT."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Platform = Literal["jetson", "desktop", "wsl", "none"]

_JETPACK_MAJOR = {"32": 4, "34": 5, "35": 5, "36": 6, "38": 7, "39": 7}
_JETPACK = {
    "34.1": "5.0 DP", "34.1.1": "5.0.1 DP", "35.1": "5.0.2", "35.2.1": "5.1", "35.3.1": "5.1.1", "35.4.1": "5.1.2",
    "35.5": "5.1.3", "35.6": "5.1.4", "35.6.1": "5.1.5", "36.2": "6.0 DP", "36.3": "6.0", "36.4": "6.1",
    "36.4.3": "6.2", "36.4.4": "6.2.1", "36.4.7": "6.2.1", "36.5": "6.2.2", "36.5.2": "6.2.3", "38.2": "7.0",
    "38.2.1": "7.0", "38.4": "7.1", "39.2": "7.2", "39.2.1": "7.2.1",
}  # fmt: skip
"""L4T, without a trailing .0, and its JetPack, as public tables copy them from NVIDIA's archive of releases."""

_DLA_CORES = (
    ("orin nano", 0),
    *(("p3767-0000", 2), ("p3767-0001", 1), ("p3767", 0)),  # Orin NX 16 GB, Orin NX 8 GB, Orin Nano
    *(("p3701", 2), ("agx orin", 2), ("tegra194", 2), ("tegra264", 0)),  # AGX Orin, Xavier, Thor
)
"""The first part of a board's model and module names that is found decides."""

_RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
"""The GPUs that TensorRT for RTX compiles for; Jetsons and the larger data centre GPUs need the full TensorRT."""

_RTX_INSTALL = 'pip install "edgeseg[tensorrt-rtx]"'
_GPU_NODE = re.compile(r"nvidia\d+|nvhost-gpu|nvhost-ctrl-gpu|nvgpu|dxg")
_GPU_CLOCK = re.compile(r"gpu|ga10b|gv11b")


@dataclass(frozen=True, slots=True)
class Clock:
    """Between which limits, in MHz, a clock ("cpu", "gpu") is governed; they are equal where it is pinned."""

    name: str
    min_mhz: int
    max_mhz: int


@dataclass(frozen=True, slots=True)
class NvidiaFacts:
    """What files say; empty, 0 or None where they say nothing.

    `driver` is the kernel driver's version. `gpu_nodes` are the GPU's entries in /dev, `closed_nodes` those this user
    may not open, `pci_gpus` counts NVIDIA's GPUs on the bus, with or without a driver. `jetpack` reads "JetPack 6.2
    (L4T 36.4.3)", `jetpack_package` is the version of the installed package nvidia-jetpack. `dla_cores` is the
    hardware's count, which not every TensorRT serves. `tensorrt_pythons` are the Pythons ("3.10") that the system's own
    TensorRT is for.
    """

    platform: Platform = "none"
    driver: str = ""
    gpu_nodes: tuple[str, ...] = ()
    closed_nodes: tuple[str, ...] = ()
    pci_gpus: int = 0
    container: bool = False
    model: str = ""
    l4t: str = ""
    jetpack: str = ""
    jetpack_major: int | None = None
    jetpack_package: str = ""
    power_mode: str = ""
    clocks: tuple[Clock, ...] = ()
    dla_cores: int | None = None
    tensorrt_pythons: tuple[str, ...] = ()

    @property
    def clocks_pinned(self) -> bool | None:
        """Whether no clock can move, as after `jetson_clocks`; None where none is known."""
        return all(clock.min_mhz == clock.max_mhz for clock in self.clocks) if self.clocks else None


def facts(root: Path = Path("/")) -> NvidiaFacts:
    """Read what the files under `root` say of this machine; a few milliseconds, never an error."""
    release = re.search(r"R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", _read(root / "etc/nv_tegra_release"))
    compatible, dpkg = _read(root / "proc/device-tree/compatible"), b""
    jetson = release is not None or "nvidia,tegra" in compatible
    if jetson:
        dpkg = _bytes(root / "var/lib/dpkg/status", 64 << 20)
    l4t = ".".join(release.groups()) if release else _package(dpkg, "nvidia-l4t-core").partition("-")[0]
    model = _read(root / "proc/device-tree/model") if jetson else ""
    told = re.search(r"Kernel Module(?: for \S+)? (\S+)", _read(root / "proc/driver/nvidia/version"))
    driver = _read(root / "sys/module/nvidia/version") or (told[1] if told else "")
    wsl = "microsoft" in _read(root / "proc/sys/kernel/osrelease").lower()
    nodes = tuple(name for name in _names(root / "dev") if _GPU_NODE.fullmatch(name) and (wsl or name != "dxg"))
    platform: Platform = "desktop" if driver else "none"
    if jetson:
        platform = "jetson"
    elif wsl and os.path.exists(root / "usr/lib/wsl/lib/libcuda.so.1"):
        platform = "wsl"
    pythons = [name for name in _names(root / "usr/lib") if re.fullmatch(r"python3\.\d+", name)]
    return NvidiaFacts(
        platform=platform,
        driver=driver,
        gpu_nodes=nodes,
        closed_nodes=tuple(node for node in nodes if _closed(root / "dev" / node)),
        pci_gpus=_pci_gpus(root / "sys/bus/pci/devices"),
        container=any(os.path.exists(root / mark) for mark in (".dockerenv", "run/.containerenv")),
        model=model,
        l4t=l4t,
        jetpack=_jetpack(l4t),
        jetpack_major=_JETPACK_MAJOR.get(l4t.partition(".")[0]),
        jetpack_package=_package(dpkg, "nvidia-jetpack"),
        power_mode=_power_mode(root) if jetson else "",
        clocks=_clocks(root) if jetson else (),
        dla_cores=_dla_cores(root, f"{model} {compatible}".lower()) if jetson else None,
        tensorrt_pythons=tuple(
            name.removeprefix("python")
            for name in pythons
            if os.path.exists(root / "usr/lib" / name / "dist-packages/tensorrt")
        ),
    )


def ask_power_mode() -> str:
    """What `nvpmodel -q` says, for where its files are silent; "" where it fails or takes more than half a second."""
    try:
        told = subprocess.run(["nvpmodel", "-q"], capture_output=True, check=True, timeout=0.5).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(r"Power Mode: (\S+)(?: (\d+))?", _printable(told))
    return "" if found is None else found[1] + (f" (mode {found[2]})" if found[2] else "")


def gpu_hint(facts: NvidiaFacts) -> str:
    """What keeps a GPU that is here from being used, and what to do, as far as files show it; "" where nothing does."""
    if facts.platform == "none" and facts.pci_gpus:
        return "an NVIDIA GPU is here without its driver: install NVIDIA's (Ubuntu: sudo ubuntu-drivers install)"
    if facts.platform == "none":
        return ""
    if not facts.gpu_nodes:
        if facts.container:
            flag = "--runtime nvidia" if facts.platform == "jetson" else "--gpus all"
            return f"this container has no GPU in /dev: start it with {flag} (NVIDIA Container Toolkit)"
        return "the driver is here and no GPU in /dev: see `sudo dmesg | grep -i -e nvidia -e nvgpu`"
    if facts.closed_nodes:
        nodes = ", ".join(f"/dev/{node}" for node in facts.closed_nodes)
        return f"this user may not open {nodes}: sudo usermod -aG video,render $USER, then log in again"
    return ""


def install_hint(
    facts: NvidiaFacts,
    capabilities: Sequence[tuple[int, int]] = (),
    python: tuple[int, int] = (sys.version_info.major, sys.version_info.minor),
    broken: bool = False,
) -> str:
    """How TensorRT comes onto this machine for `python`, or works again where it is `broken`, installed in vain.

    `capabilities` are the GPUs' compute capabilities, where they are known.
    """
    if facts.platform != "jetson":
        if capabilities and not set(capabilities) & set(_RTX_CAPABILITIES):
            return "pip install tensorrt (TensorRT for RTX does not compile for this GPU)"
        return _RTX_INSTALL
    if facts.jetpack_major is not None and facts.jetpack_major < 6:
        # Orin is the oldest that JetPack 6 is for.
        way_out = "update to JetPack 6" if "Orin" in facts.model else "use the backend ort"
        return f"JetPack {facts.jetpack_major}'s TensorRT is for an older Python than edgeseg's 3.10: {way_out}"
    here = f"{python[0]}.{python[1]}"
    venv = "/usr/bin/python3 -m venv --system-site-packages ENV"
    if broken:
        return "sudo apt install --reinstall python3-libnvinfer; where pip brought it, first pip uninstall tensorrt"
    if not facts.tensorrt_pythons:
        return "sudo apt install python3-libnvinfer (nvidia-jetpack: all of JetPack), never pip; then " + venv
    if here not in facts.tensorrt_pythons:
        return f"JetPack's TensorRT is for Python {', '.join(facts.tensorrt_pythons)} and this is {here}: {venv}"
    return f"JetPack's TensorRT is here and this environment hides it: {venv}"


def _jetpack(l4t: str) -> str:
    release = _JETPACK.get(re.sub(r"\.0$", "", l4t)) or _JETPACK_MAJOR.get(l4t.partition(".")[0])
    return f"JetPack {release} (L4T {l4t})" if release else f"L4T {l4t}" * bool(l4t)


def _package(dpkg: bytes, name: str) -> str:
    """The version of an installed Debian package, or ""."""
    stanza = re.search(rf"^Package: {re.escape(name)}\n(?:.+\n)*".encode(), dpkg, re.MULTILINE)
    if stanza is None or b"\nStatus: install ok installed\n" not in stanza[0]:
        return ""
    version = re.search(rb"^Version: (\S+)", stanza[0], re.MULTILINE)
    return _printable(version[1]) if version else ""


def _power_mode(root: Path) -> str:
    mode = re.search(r"pmode:(\d+)", _read(root / "var/lib/nvpmodel/status"))
    if mode is None:
        return ""
    number = int(mode[1])
    name = re.search(rf"POWER_MODEL ID=0*{number} NAME=([^\s>]+)", _read(root / "etc/nvpmodel.conf", 1 << 20))
    return f"{name[1]} (mode {number})" if name else f"mode {number}"


def _clocks(root: Path) -> tuple[Clock, ...]:
    cpus, gpus = root / "sys/devices/system/cpu/cpufreq", root / "sys/class/devfreq"
    found = [
        _clock("cpu", cpus / name, "scaling_min_freq", "scaling_max_freq", 1000)  # kHz
        for name in _names(cpus)
        if name.startswith("policy")
    ]
    found += [
        _clock("gpu", gpus / name, "min_freq", "max_freq", 1_000_000)  # Hz
        for name in _names(gpus)
        if _GPU_CLOCK.search(name)
    ]
    return tuple(dict.fromkeys(clock for clock in found if clock is not None))


def _clock(name: str, folder: Path, lowest: str, highest: str, per_mhz: int) -> Clock | None:
    low, high = _read(folder / lowest), _read(folder / highest)
    if not (low.isdecimal() and high.isdecimal()):  # a GPU that is powered off has no clock to read
        return None
    return Clock(name, int(low) // per_mhz, int(high) // per_mhz)


def _dla_cores(root: Path, board: str) -> int | None:
    for name, cores in _DLA_CORES:
        if name in board:
            return cores
    platform = root / "sys/bus/platform/devices"
    bound = [name for name in _names(platform) if "nvdla" in name and os.path.exists(platform / name / "driver")]
    return len(bound) or None


def _pci_gpus(folder: Path) -> int:
    """NVIDIA's display controllers; its bridges and sound devices are no GPUs."""
    devices = (folder / name for name in _names(folder))
    return sum(_read(at / "vendor") == "0x10de" and _read(at / "class").startswith("0x03") for at in devices)


def _closed(node: Path) -> bool:
    return not os.path.isdir(node) and not os.access(node, os.R_OK | os.W_OK)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _read(path: Path, limit: int = 4096) -> str:
    return _printable(_bytes(path, limit))


def _bytes(path: Path, limit: int) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(limit) or b""
    except OSError:
        return b""


def _printable(raw: bytes) -> str:
    """One line that can be shown: device trees end in NULs, and what is garbage must not reach a terminal."""
    text = raw.decode("utf-8", "replace")
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
