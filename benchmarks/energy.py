"""Energy while something runs, where the machine tells: RAPL counters (Intel, AMD), INA3221 sensors (Jetson)."""

from __future__ import annotations

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
"""The rail of a Jetson that feeds all others, where it has one; else all its rails together are the board."""


class Meter(Protocol):
    @property
    def name(self) -> str:
        """What it measures."""

    def millijoules(self, work: Callable[[], object]) -> float:
        """Run `work` and tell what it took, everything else on the machine included."""


@dataclass(frozen=True, slots=True)
class _Rapl:
    """Counters in microjoules, each with where it starts again at 0."""

    name: str
    counters: tuple[tuple[Path, int], ...]

    def millijoules(self, work: Callable[[], object]) -> float:
        before = [number(file) or 0 for file, _ in self.counters]
        work()
        after = [number(file) or 0 for file, _ in self.counters]
        spans = zip(before, after, self.counters, strict=True)
        return sum((end - start) % (span + 1) for start, end, (_, span) in spans) / 1000


@dataclass(frozen=True, slots=True)
class _Ina:
    """Rails as pairs of files: milliamperes and millivolts; or one file, milliwatts. Their power is read all along."""

    name: str
    rails: tuple[tuple[Path, ...], ...]

    def millijoules(self, work: Callable[[], object]) -> float:
        done, powers = threading.Event(), [self._milliwatts()]

        def read() -> None:
            while not done.wait(_EVERY_S):
                powers.append(self._milliwatts())

        reader = threading.Thread(target=read, name="edgeseg-power", daemon=True)
        begin = time.perf_counter()
        reader.start()
        try:
            work()
        finally:
            done.set()
            reader.join()
        return sum(powers) / len(powers) * (time.perf_counter() - begin)

    def _milliwatts(self) -> float:
        total = 0.0
        for rail in self.rails:
            values = [number(file) or 0 for file in rail]
            total += values[0] if len(values) == 1 else values[0] * values[1] / 1000
        return total


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
    chosen = total[:1] or [name for name in rails if name != "NC"]
    return _Ina("INA3221 " + " + ".join(chosen), tuple(rails[name] for name in chosen)) if chosen else None
