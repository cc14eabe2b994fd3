"""Energy while something runs, where the machine tells: RAPL counters (Intel, AMD), INA3221 sensors (Jetson)."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgeseg.benchmarks.watch import number, text

_EVERY_S = 0.01
_TOTAL = re.compile(r"(POM_5V|VDD|VIN)_IN")
"""The rail of a Jetson that feeds all others, where it has one; else all its rails together are the module."""
_NOT_ADDED = ("NC", "VDDQ_VDD2_1V8AO")
"""Not connected; and on AGX Orin the memory's, which VIN_SYS_5V0 feeds (Jetson Linux Developer Guide, "Software-Based
Power Consumption Modeling")."""


class Meter(Protocol):
    @property
    def name(self) -> str:
        """What it measures."""

    def covers(self, device: str) -> bool:
        """Whether what a network on `device` takes is in it."""

    def millijoules(self, work: Callable[[], object]) -> float | None:
        """Run `work` and tell what it took, everything else on the machine included.

        None where the files cannot be read any more, or tell nothing but 0, as some virtual machines' do.
        """


@dataclass(frozen=True, slots=True)
class _Rapl:
    """Counters in microjoules, each with where it starts again at 0."""

    name: str
    counters: tuple[tuple[Path, int], ...]

    def covers(self, device: str) -> bool:
        return device == "cpu"  # a graphics card's is not, and which are cards no file here says

    def millijoules(self, work: Callable[[], object]) -> float | None:
        before = [number(file) for file, _ in self.counters]
        work()
        after = [number(file) for file, _ in self.counters]
        total = 0
        for start, end, (_, span) in zip(before, after, self.counters, strict=True):
            if start is None or end is None:
                return None
            total += (end - start) % (span + 1)
        return total / 1000 or None


@dataclass(frozen=True, slots=True)
class _Ina:
    """Rails as pairs of files: milliamperes and millivolts; or one file, milliwatts. Their power is read all along.

    Readings come when the reader's thread gets a CPU, so each counts for the time around it.
    """

    name: str
    rails: tuple[tuple[Path, ...], ...]

    def covers(self, device: str) -> bool:
        return True

    def millijoules(self, work: Callable[[], object]) -> float | None:
        done, found = threading.Event(), [self._reading()]

        def read() -> None:
            while not done.wait(_EVERY_S):
                found.append(self._reading())

        reader = threading.Thread(target=read, name="edgeseg-power", daemon=True)
        reader.start()
        try:
            work()
        finally:
            done.set()
            reader.join()
        found.append(self._reading())
        total = 0.0
        for (before, start), (after, end) in itertools.pairwise(found):
            if start is None or end is None:
                return None
            total += (after - before) * (start + end) / 2
        return total or None

    def _reading(self) -> tuple[float, float | None]:
        """When, in seconds, and the milliwatts then."""
        total = 0.0
        for rail in self.rails:
            values = [value for file in rail if (value := number(file)) is not None]
            if len(values) < len(rail):
                return time.perf_counter(), None
            total += values[0] if len(values) == 1 else values[0] * values[1] / 1000
        return time.perf_counter(), total


def find_meter(root: Path = Path("/")) -> Meter | None:
    """What the files under `root` offer and this user may read; None where that is nothing."""
    return _rapl(root) or _ina(root)


def _rapl(root: Path) -> Meter | None:
    """The packages; their parts are in them, the memory is not. On some laptops "psys" is the whole board."""
    zones = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
    found = {}
    for zone in zones:
        name, span = text(zone / "name"), number(zone / "max_energy_range_uj")
        if span and number(zone / "energy_uj") is not None and name.startswith(("package", "dram", "psys")):
            found[zone.name] = (name, zone / "energy_uj", span)
    board = [entry for entry in found.values() if entry[0].startswith("psys")]
    chosen = board or list(found.values())
    if not chosen:
        return None
    return _Rapl("RAPL " + " + ".join(entry[0] for entry in chosen), tuple((file, span) for _, file, span in chosen))


def _ina(root: Path) -> Meter | None:
    rails: dict[str, tuple[Path, ...]] = {}
    for chip in sorted((root / "sys/bus/i2c/drivers").glob("ina3221*/*")):
        for label in sorted(chip.glob("hwmon/hwmon*/in[123]_label")):
            channel = label.name[2]
            files = (label.with_name(f"curr{channel}_input"), label.with_name(f"in{channel}_input"))
            if all(number(file) is not None for file in files):
                rails[text(label)] = files
        for label in sorted(chip.glob("iio:device*/rail_name_[012]")):  # before JetPack 5
            file = label.with_name(f"in_power{label.name[-1]}_input")
            if number(file) is not None:
                rails[text(label)] = (file,)
    total = [name for name in rails if _TOTAL.fullmatch(name)]
    chosen = total[:1] or [name for name in rails if name not in _NOT_ADDED]
    return _Ina("INA3221 " + " + ".join(chosen), tuple(rails[name] for name in chosen)) if chosen else None
