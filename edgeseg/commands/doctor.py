"""`edgeseg doctor`: what is here, what is not, and what to install."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import platform
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click
import cv2
import numpy as np

import edgeseg
from edgeseg import decode, registry
from edgeseg.backends import nvidia
from edgeseg.errors import EdgesegError

if TYPE_CHECKING:
    from edgeseg.backends.cudart import CudaDevice


@dataclasses.dataclass(frozen=True, slots=True)
class CudaStatus:
    """The CUDA runtime and its GPUs, or in `reason` why it cannot be used."""

    path: str = ""
    runtime_version: tuple[int, ...] = ()
    driver_version: tuple[int, ...] = ()
    gpus: tuple[CudaDevice, ...] = ()
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class TensorRTModule:
    """An installed TensorRT: the Python module's name, its version, and in `reason` why it cannot be imported."""

    name: str
    version: str
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class NvidiaStatus:
    """All that TensorRT needs, as far as it is here; `install` says what to do about what is missing."""

    machine: nvidia.NvidiaFacts
    clocks_pinned: bool | None
    cuda: CudaStatus
    tensorrt: tuple[TensorRTModule, ...]
    install: tuple[str, ...]


@click.command(epilog="\b\nExample: edgeseg doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def command(as_json: bool) -> None:
    """Show every backend and device: version, availability, or what to install; and the active decode path."""
    machine = nvidia_status()
    found = [registry.status(name) for name in registry.names()]
    path = decode.active_path()
    host = {
        "edgeseg": edgeseg.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
    if as_json:
        report = {
            "host": host,
            "decode": dataclasses.asdict(path),
            "backends": [dataclasses.asdict(status) for status in found],
            "nvidia": dataclasses.asdict(machine),
            "auto_order": registry.AUTO_ORDER,
        }
        click.echo(json.dumps(report, indent=2, sort_keys=True))
        return
    click.echo("  ".join(f"{name} {value}" for name, value in host.items()))
    click.echo(f"decode     {path.name}: {path.why}")
    for status in found:
        int8 = f"  int8 encodings: {', '.join(status.encodings)}" if status.encodings else ""
        click.echo(f"{status.name:<10} {status.version or 'not available: ' + status.reason}{int8}")
        for device in status.devices:
            mark = "yes" if device.available else "no"
            click.echo(
                f"  {device.name:<8} {mark:<4} {device.description}{': ' + device.reason if device.reason else ''}"
            )
    for name, text in _nvidia_lines(machine):
        click.echo(f"{name:<10} {text}")
    orders = "; ".join(f"{kind}: {', '.join(order)}" for kind, order in registry.AUTO_ORDER.items())
    click.echo(f"auto order {orders} (device auto is the cpu)")


def nvidia_status() -> NvidiaStatus:
    """Ask files, then CUDA, then the installed TensorRT modules, of which no object is made; never raises."""
    machine, cuda, modules = nvidia.facts(), _cuda_status(), _tensorrt_modules()
    if machine.platform == "jetson" and not machine.power_mode:
        machine = dataclasses.replace(machine, power_mode=nvidia.ask_power_mode())
    install = [nvidia.gpu_hint(machine)] if cuda.reason else []
    # TensorRT for RTX has no Jetson among its targets.
    serving = [module for module in modules if machine.platform != "jetson" or module.name == "tensorrt"]
    if all(module.reason for module in serving):
        capabilities = [gpu.compute_capability for gpu in cuda.gpus]
        install.append(nvidia.install_hint(machine, capabilities, broken=bool(serving)))
    return NvidiaStatus(machine, machine.clocks_pinned, cuda, modules, tuple(filter(None, install)))


def _cuda_status() -> CudaStatus:
    try:
        from edgeseg.backends.cudart import Cuda

        cuda = Cuda.load()
        return CudaStatus(cuda.path, cuda.runtime_version, cuda.driver_version, cuda.devices())
    except EdgesegError as error:
        return CudaStatus(reason=str(error))
    except Exception as error:  # doctor must finish whatever a driver does
        return CudaStatus(reason=f"broken: {type(error).__name__}: {error}")


def _tensorrt_modules() -> tuple[TensorRTModule, ...]:
    """Every installed TensorRT, the one that is preferred first. Imports them and makes no object of theirs."""
    return tuple(_module(name) for name in ("tensorrt", "tensorrt_rtx") if _installed(name))


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # imported already, by somebody who left no spec
        return True


def _module(name: str) -> TensorRTModule:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # a system package can come without its metadata
        version = ""
    try:
        version = str(getattr(importlib.import_module(name), "__version__", version))
        return TensorRTModule(name, version, "" if version else "it has no version: is a folder of that name here?")
    except Exception as error:  # ImportError or OSError for a library that is missing, or whatever its loader raises
        return TensorRTModule(name, version, " ".join(f"{type(error).__name__}: {error}".split()))


def _nvidia_lines(status: NvidiaStatus) -> Iterator[tuple[str, str]]:
    """Name and text of each line of the table."""
    machine, cuda = status.machine, status.cuda
    if machine.platform == "none" and not machine.pci_gpus and cuda.reason:
        rtx = [module.version for module in status.tensorrt if module.name == "tensorrt_rtx" and not module.reason]
        having = f"{rtx[0]} is here" if rtx else nvidia.install_hint(machine)
        able = "TensorRT can compile ahead of time only"
        yield "nvidia", f"no NVIDIA driver or GPU: {able} (with tensorrt-rtx: {having})"
        return
    package = f", package nvidia-jetpack {machine.jetpack_package}" * bool(machine.jetpack_package)
    release = machine.jetpack or "no /etc/nv_tegra_release, so its JetPack is not known"
    titles = {"jetson": f"{machine.model or 'Jetson'}, {release}{package}", "wsl": "Windows Subsystem for Linux"}
    yield "nvidia", titles.get(machine.platform, platform.platform(terse=True))
    if machine.platform != "none":
        yield "  driver", machine.driver or ("Windows' own" if machine.platform == "wsl" else "L4T's own")
    if cuda.reason:
        yield "  CUDA", f"not usable: {cuda.reason}"
    else:
        yield "  CUDA", f"{_dotted(cuda.runtime_version)}, driver up to {_dotted(cuda.driver_version)}: {cuda.path}"
    for gpu in cuda.gpus:
        shared = ", shared with the CPU" * gpu.integrated
        capability = _dotted(gpu.compute_capability)
        memory = f"{gpu.memory_bytes / 1e9:.1f} GB{shared}"
        yield f"  gpu.{gpu.index}", f"{gpu.name}: compute capability {capability}, {gpu.sm_count} SMs, {memory}"
    for module in status.tensorrt:
        reason = f" cannot be imported: {module.reason}" * bool(module.reason)
        yield "  TensorRT", f"{module.version or 'of unknown version'} (module {module.name}){reason}"
    if not status.tensorrt:
        yield "  TensorRT", "not installed"
    if machine.platform == "jetson":
        yield from _jetson_lines(status)
    for advice in status.install:
        yield "  install", advice


def _jetson_lines(status: NvidiaStatus) -> Iterator[tuple[str, str]]:
    machine = status.machine
    cores = "unknown" if machine.dla_cores is None else f"cores: {machine.dla_cores}"
    for module in status.tensorrt:
        version = tuple(int(part) for part in module.version.split(".")[:2] if part.isdecimal())
        # NVIDIA's documents: every DLA up to 10.7, and AGX Orin's again from 11.4.
        if machine.dla_cores and version >= (10, 8) and ("AGX Orin" not in machine.model or version < (11, 4)):
            cores += f", which TensorRT {module.version} does not compile for"
    yield "  DLA", cores
    yield "  power", machine.power_mode or "mode unknown"
    limits = ", ".join(f"{clock.name} {clock.min_mhz} to {clock.max_mhz} MHz" for clock in machine.clocks)
    if status.clocks_pinned is None:
        yield "  clocks", "unknown"
    elif status.clocks_pinned:
        yield "  clocks", "pinned: " + ", ".join(f"{clock.name} {clock.max_mhz} MHz" for clock in machine.clocks)
    else:
        yield "  clocks", f"not pinned: {limits}; `sudo jetson_clocks` before measuring"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
