"""Two runs of the benchmark side by side: what became slower or less right, how sure that is, and gates for CI."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeseg.benchmarks.quality import unpack
from edgeseg.benchmarks.results import Accuracy, Configuration, Measurement, Results
from edgeseg.benchmarks.spread import LIMIT, Samples, median_interval
from edgeseg.calibration.certificate import interval_of, resampled_mious
from edgeseg.errors import InputError


@dataclass(frozen=True, slots=True)
class Change:
    """A figure before and after: times in nanoseconds (medians), mIoU in percent.

    `change` is after / before for times, after - before in points for mIoU; `nothing` what it is where nothing changed
    (1 or 0), `interval` its 95 % one.
    """

    before: float
    after: float
    change: float
    interval: tuple[float, float]
    nothing: float

    @property
    def certain(self) -> bool:
        """The interval excludes that nothing changed."""
        return not self.interval[0] <= self.nothing <= self.interval[1]


@dataclass(frozen=True, slots=True)
class Row:
    """One configuration that both runs hold. What either has not measured is None.

    `network` is of the runtime alone. `paired` says whether mIoU is compared image by image; else its intervals only
    tell a difference where they do not overlap. `failure` is why the second run has nothing that the first one has.
    """

    configuration: Configuration
    frame: Change | None
    network: Change | None
    miou: Change | None
    paired: bool
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All configurations that both runs hold, and in `notes` a line each on what makes the figures less worth."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Gate:
    """What fails a build: `slower-than` a share more time for the whole frame, or a `miou-drop` in points."""

    kind: Literal["slower-than", "miou-drop"]
    limit: float

    @classmethod
    def read(cls, text: str) -> Gate:
        """Of "slower-than=5%" or "miou-drop=0.3"; raises InputError."""
        for kind, unit, scale in (("slower-than", "%", 100), ("miou-drop", "", 1)):
            name, _, number = text.partition("=")
            if name == kind and number.endswith(unit):
                try:
                    limit = float(number.removesuffix(unit)) / scale
                except ValueError:
                    break
                if 0 <= limit < math.inf:  # NaN is not
                    return cls(kind, limit)  # type: ignore[arg-type]
        raise InputError(f"{text!r} is no gate: give slower-than=5% or miou-drop=0.3")

    def __str__(self) -> str:
        return f"{self.kind}={self.limit:.6g}" if self.kind == "miou-drop" else f"{self.kind}={100 * self.limit:.6g}%"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a gate, and why; a build fails only by one that is "not held"."""

    gate: Gate
    outcome: Literal["held", "not held", "cannot be judged"]
    why: str

    def __str__(self) -> str:
        return f"{self.gate}: {self.outcome}" + (f": {self.why}" if self.why else "")


def compare(
    before: Results, after: Results, *, names: tuple[str, str] = ("before", "after"), anyway: bool = False
) -> Comparison:
    """Compare configuration by configuration; `names` call the two runs in messages.

    The interval of a ratio of medians joins the bootstrap intervals of the two, and is never narrower than what either
    run says it can tell (`Noise.claim`): samples of one run know nothing of how runs differ. mIoU is compared image by
    image where both ran on the same ones. Raises InputError where the hosts, frames or labelled images differ, naming
    how, unless `anyway`, which makes notes of that; and where the runs have no configuration in common.
    """
    unlike = _unlike(before, after)
    if unlike and not anyway:
        raise InputError(
            f"{names[0]} and {names[1]} cannot be compared: {'; '.join(unlike)}; do it anyway with --anyway"
        )
    old = {one.configuration: one for one in before.measurements}
    new = {one.configuration: one for one in after.measurements}
    shared = [configuration for configuration in old if configuration in new]
    if not shared:
        raise InputError(
            f"{names[0]} and {names[1]} have no configuration in common: {', '.join(one.name for one in old) or 'none'}"
            f" against {', '.join(one.name for one in new) or 'none'}"
        )
    claim = max(before.noise.claim, after.noise.claim)
    rows = tuple(_row(old[one], new[one], claim) for one in shared)
    notes = list(unlike)
    runtimes = float(np.median([row.network.change for row in rows if row.network] or [1.0]))
    if abs(runtimes - 1) > LIMIT:
        notes.append(
            f"the runtimes alone take {runtimes:.2f} times as long, in the median: the machine changed, or they did"
        )
    for name, run in zip(names, (before, after), strict=True):
        if run.noise.noisy:
            notes.append(f"{name} is noisy: {'; '.join(run.noise.reasons) or 'it does not say why'}")
    for name, mine, others in ((names[0], old, new), (names[1], new, old)):
        if alone := [one.name for one in mine if one not in others]:
            notes.append(f"only in {name}: {', '.join(alone)}")
    if unpaired := [row.configuration.name for row in rows if row.miou is not None and not row.paired]:
        notes.append(f"mIoU not compared image by image, only by its intervals: {', '.join(unpaired)}")
    return Comparison(rows, tuple(notes))


def judge(found: Comparison, gates: Sequence[Gate]) -> tuple[Verdict, ...]:
    """One verdict per gate, naming the configuration that is worst.

    A gate is not held only where the whole 95 % interval lies beyond its limit, so that noise alone seldom fails a
    build, and where a configuration that ran before no longer does. It cannot be judged where an interval reaches
    beyond the limit and is wider than it to that side. Raises InputError for a gate that nothing measured can be judged
    by.
    """
    return tuple(_verdict(found, gate) for gate in gates)


def _verdict(found: Comparison, gate: Gate) -> Verdict:
    slower = gate.kind == "slower-than"
    judged = [(row, change) for row in found.rows if (change := row.frame if slower else row.miou) is not None]
    failed = [row for row in found.rows if row.failure]
    if not judged and not failed:
        raise InputError(f"{gate} has nothing to judge: no {'times' if slower else 'mIoU'} in both runs")
    if failed:
        said = f"{failed[0].configuration.name} no longer runs: {failed[0].failure}"
        return Verdict(gate, "not held", said + _more(failed))
    sign = 1 if slower else -1
    losses = [  # the least, the likely and the most, in shares or points
        (*sorted(sign * (end - change.nothing) for end in change.interval), sign * (change.change - change.nothing))
        for _, change in judged
    ]
    beyond = [(likely, at) for at, (least, _, likely) in enumerate(losses) if least > gate.limit]
    if beyond:
        row, change = judged[max(beyond)[1]]
        low, high = change.interval
        said = (
            f"takes {change.change:.3f} times as long as before (95 %: {low:.3f} to {high:.3f})"
            if slower
            else f"has {change.change:+.2f} points of mIoU (95 %: {low:+.2f} to {high:+.2f})"
        )
        return Verdict(gate, "not held", f"{row.configuration.name} {said}{_more(beyond)}")
    errors = [(most - likely, at) for at, (_, most, likely) in enumerate(losses) if most > gate.limit < most - likely]
    if errors:
        error, at = max(errors)
        told = f"{100 * error:.1f} %" if slower else f"{error:.2f} points"
        said = f"these runs tell no difference below {told} of {judged[at][0].configuration.name}"
        return Verdict(gate, "cannot be judged", said)
    return Verdict(gate, "held", "")


def _more(found: Sequence[object]) -> str:
    return f", and {len(found) - 1} more" if len(found) > 1 else ""


def _unlike(before: Results, after: Results) -> list[str]:
    """Why the two say nothing of each other, in a phrase each."""
    found = []
    old, new = before.host.fixed, after.host.fixed
    for key in dict.fromkeys((*old, *new)):
        sides = (old.get(key, "not said"), new.get(key, "not said"))
        if key == "runtimes":
            sides = _shared_runtimes(old.get(key, ""), new.get(key, ""))
        if sides[0] != sides[1]:
            found.append(f"hosts differ in {key} ({sides[0]} against {sides[1]})")
    if before.frames.digest != after.frames.digest:
        frames = [f"{run.frames.height}x{run.frames.width}, {run.frames.source}" for run in (before, after)]
        found.append(f"frames differ ({frames[0]} against {frames[1]})")
    first, second = (next((one.accuracy for one in run.measurements if one.accuracy), None) for run in (before, after))
    if first is not None and second is not None:
        if list(first.iou) != list(second.iou):
            found.append(f"classes differ ({', '.join(first.iou)} against {', '.join(second.iou)})")
        if first.data != second.data:
            counts = [f"{one.images} images, {one.data[:12]}" for one in (first, second)]
            found.append(f"labelled images differ ({counts[0]} against {counts[1]})")
    return found


def _shared_runtimes(before: str, after: str) -> tuple[str, str]:
    """Of runtimes with versions ("openvino 2026.4, onnxruntime 1.32") those that both runs have, in one order.

    What only one has measured none of the configurations that are compared.
    """
    sides = [{one.rpartition(" ")[0] or one: one for one in said.split(", ")} for said in (before, after)]
    shared = sorted(sides[0].keys() & sides[1].keys())
    return ", ".join(sides[0][name] for name in shared), ", ".join(sides[1][name] for name in shared)


def _row(before: Measurement, after: Measurement, claim: float) -> Row:
    old, new = before.latency, after.latency
    frame = network = None
    if old is not None and new is not None:
        frame = _ratio(old.frame_ns, new.frame_ns, claim)
        network = _ratio(old.raw_ns, new.raw_ns, claim)
    miou, paired = None, False
    if before.accuracy is not None and after.accuracy is not None:
        miou, paired = _difference(before.accuracy, after.accuracy)
    failure = after.failure if not before.failure else ""
    return Row(before.configuration, frame, network, miou, paired, failure)


def _ratio(before: Samples, after: Samples, claim: float) -> Change | None:
    """After / before of the medians. Independent intervals join in quadrature, side by side (MOVER, on logarithms)."""
    if not len(before) or not len(after):
        return None
    old, new = float(np.median(before)), float(np.median(after))
    (old_low, old_high), (new_low, new_high) = median_interval(before), median_interval(after)
    ratio = new / old
    down = math.hypot(math.log(new / new_low), math.log(old_high / old))
    up = math.hypot(math.log(new_high / new), math.log(old / old_low))
    low, high = ratio * min(math.exp(-down), 1 - claim), ratio * max(math.exp(up), 1 + claim)
    return Change(old, new, ratio, (low, high), 1.0)


def _difference(before: Accuracy, after: Accuracy) -> tuple[Change, bool]:
    """Points of mIoU, and whether image by image."""
    difference = after.miou - before.miou
    old, new = unpack(before), unpack(after)
    paired = old is not None and new is not None and before.data == after.data and list(before.iou) == list(after.iou)
    if old is not None and new is not None and paired and old.shape == new.shape:
        first, second = resampled_mious((old, new), seed=0)
        return Change(before.miou, after.miou, difference, interval_of(second - first), 0.0), True
    (old_low, old_high), (new_low, new_high) = before.interval, after.interval
    return Change(before.miou, after.miou, difference, (new_low - old_high, new_high - old_low), 0.0), False
