"""What else the machine did while something was measured: other processes, a hypervisor, clocks, heat; from files."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeseg.decode import usable_cpus

if sys.platform != "win32":
    import resource

_OTHERS = 0.1
"""CPUs that others may use before it is said; a desktop at rest uses less."""
_STOLEN = 0.02
_CLOCK = 0.1
_HOTTER = 5.0
_NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True, slots=True)
class Moment:
    """Counters at one time; None where the machine does not tell.

    Seconds since some beginning: `wall_s`, CPU time of this process (`own_s`), of everyone on the CPUs that this
    process may use (`busy_s`), taken by the hypervisor for other guests (`stolen_s`). `clock_mhz` is the fastest of
    these CPUs, `celsius` the hottest sensor, `throttled` how often a CPU slowed down for heat, a Jetson for its
    current, or the container for its quota.
    """

    wall_s: float
    own_s: float | None = None
    busy_s: float | None = None
    stolen_s: float | None = None
    clock_mhz: float | None = None
    celsius: float | None = None
    throttled: int | None = None


def moment(root: Path = Path("/")) -> Moment:
    """Now, by what the files under `root` say; below a millisecond on small machines, never an error."""
    busy, stolen = _cpu_seconds(root)
    return Moment(time.monotonic(), _own_seconds(), busy, stolen, clock_mhz(root), celsius(root), _throttled(root))


def disturbances(moments: Sequence[Moment], load: float | None = None) -> tuple[str, ...]:
    """What disturbed a run whose moments these are, a sentence each; `load` is the load average before it."""
    if len(moments) < 2:
        return ()
    first, last = moments[0], moments[-1]
    wall, found = max(last.wall_s - first.wall_s, 1e-9), []
    all_busy, own = _difference(first.busy_s, last.busy_s), _difference(first.own_s, last.own_s)
    if all_busy is not None and own is not None and (others := (all_busy - own) / wall) > _OTHERS:
        before = "" if load is None else f"; the load average was {load:.1f} before"
        found.append(f"other processes used {others:.1f} of {usable_cpus()} CPUs{before}")
    stolen = _difference(first.stolen_s, last.stolen_s)
    if stolen is not None and stolen / wall > _STOLEN:
        found.append(f"the hypervisor took {stolen / wall:.2f} of {usable_cpus()} CPUs for others")
    clocks = [moment.clock_mhz for moment in moments if moment.clock_mhz]
    if clocks and min(clocks) < (1 - _CLOCK) * max(clocks):
        found.append(f"the CPUs' clock moved between {min(clocks):.0f} and {max(clocks):.0f} MHz")
    if first.throttled is not None and last.throttled is not None and last.throttled > first.throttled:
        times = last.throttled - first.throttled
        heat = _difference(first.celsius, last.celsius)
        warmer = f", {heat:.0f} degrees hotter at the end" if heat is not None and heat > _HOTTER else ""
        found.append(f"the machine was throttled {times} time{'s' * (times != 1)}{warmer}")
    return tuple(found)


def clock_mhz(root: Path = Path("/")) -> float | None:
    """The clock of the fastest CPU that this process may use; None where no file says."""
    files = (root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq" for cpu in own_cpus())
    found = [value for file in files if (value := number(file)) is not None]
    return max(found) / 1000 if found else None  # kHz


def celsius(root: Path = Path("/")) -> float | None:
    """The hottest thermal zone's or sensor's temperature; None where no file says."""
    sensors = root / "sys/class"
    files = [*sensors.glob("thermal/thermal_zone*/temp"), *sensors.glob("hwmon/*/temp*_input")]
    found = [value / 1000 for file in files if (value := number(file)) is not None]
    return max((value for value in found if 0 < value < 150), default=None)  # what is not connected says anything


def own_cpus() -> list[int]:
    """The numbers of the CPUs that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def text(file: Path) -> str:
    """A small file's text, stripped; "" where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def number(file: Path) -> int | None:
    """The whole number that a file holds; None where it holds none or cannot be read."""
    found = text(file)
    return int(found) if _NUMBER.fullmatch(found) else None


def _own_seconds() -> float | None:
    if sys.platform == "win32":
        return None
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _cpu_seconds(root: Path) -> tuple[float | None, float | None]:
    """Seconds of work and stolen seconds on our own CPUs, from /proc/stat (proc(5): user nice system idle iowait irq
    softirq steal)."""
    ours, ticks = {f"cpu{cpu}" for cpu in own_cpus()}, 100.0
    if hasattr(os, "sysconf"):
        ticks = os.sysconf("SC_CLK_TCK")
    rows = [line.split() for line in text(root / "proc/stat").splitlines()]
    counts = [list(map(int, row[1:9])) for row in rows if row and row[0] in ours and len(row) > 8]
    if not counts:
        return None, None
    return sum(sum(row[:3]) + row[5] + row[6] for row in counts) / ticks, sum(row[7] for row in counts) / ticks


def _throttled(root: Path) -> int | None:
    cores = root / "sys/devices/system/cpu"
    counts = [number(cores / f"cpu{cpu}/thermal_throttle/core_throttle_count") for cpu in own_cpus()]
    counts += [number(file) for file in (root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")]
    for stat in ("sys/fs/cgroup/cpu.stat", "sys/fs/cgroup/cpu/cpu.stat"):  # version 2, version 1
        quota = re.search(r"^nr_throttled (\d+)$", text(root / stat), re.MULTILINE)
        counts.append(int(quota[1]) if quota else None)
    found = [count for count in counts if count is not None]
    return sum(found) if found else None


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
