"""The machine that measured: what it is, and the state it was in, from files and packages; never an error."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

import edgeseg
from edgeseg import decode
from edgeseg._machine import processor
from edgeseg.backends import nvidia
from edgeseg.benchmarks import watch
from edgeseg.benchmarks.results import Host


def facts(runtimes: Iterable[str] = (), root: Path = Path("/")) -> Host:
    """What the files under `root` say, and the versions here; `runtimes` are those that computed, with their versions.

    What is not known is left out.
    """
    machine, path = nvidia.facts(root), decode.active_path()
    memory = _memory(root)
    fixed = {
        "processor": processor(root),
        "cores": f"{decode.usable_cpus()} of {os.cpu_count() or 1}",
        "memory": _gigabytes(memory.get("MemTotal")),
        "board": machine.model,
        "jetpack": machine.jetpack,
        "nvidia driver": machine.driver,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "runtimes": ", ".join(dict.fromkeys(filter(None, runtimes))),
    }
    mode = machine.power_mode or (nvidia.ask_power_mode() if machine.platform == "jetson" else "")
    clock, heat, load = watch.clock_mhz(root), watch.celsius(root), load_average(root)
    state = {
        "edgeseg": edgeseg.__version__,
        "decode": f"{path.name}: {path.why}",
        "load average": "" if load is None else f"{load:.2f}",
        "governor": ", ".join(sorted(_governors(root))),
        "clock": "" if clock is None else f"{clock:.0f} MHz",
        "clock limits": ", ".join(f"{one.name} {one.min_mhz} to {one.max_mhz} MHz" for one in machine.clocks),
        "temperature": "" if heat is None else f"{heat:.0f} degrees Celsius",
        "power mode": mode,
        "power supply": _supply(root),
        "memory available": _gigabytes(memory.get("MemAvailable")),
        "container": "yes" * machine.container,
    }
    return Host(*({name: value for name, value in part.items() if value} for part in (fixed, state)))


def load_average(root: Path = Path("/")) -> float | None:
    """Of the last minute, this process included; None where no file says."""
    found = watch.text(root / "proc/loadavg").split()
    try:
        return float(found[0])
    except (IndexError, ValueError):
        return None


def _memory(root: Path) -> dict[str, int]:
    """Bytes by the names in /proc/meminfo."""
    rows = re.findall(r"^(\w+):\s+(\d+) kB$", watch.text(root / "proc/meminfo"), re.MULTILINE)
    return {name: int(kilobytes) * 1024 for name, kilobytes in rows}


def _gigabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e9:.1f} GB"


def _governors(root: Path) -> set[str]:
    cpus = root / "sys/devices/system/cpu"
    return {watch.text(cpus / f"cpu{cpu}/cpufreq/scaling_governor") for cpu in watch.own_cpus()} - {""}


def _supply(root: Path) -> str:
    """Laptops slow down on battery; some have two sockets for mains."""
    supplies = (root / "sys/class/power_supply").glob("*/online")
    online = {watch.text(supply) for supply in supplies if watch.text(supply.with_name("type")) == "Mains"}
    return ("mains" if "1" in online else "battery") if online else ""
