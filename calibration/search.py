"""Looking for the fastest quantization that keeps the accuracy: rules for ranges first, then layers left in float."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import onnx

from edgeseg.calibration.judging import Judge, Limit, Measured
from edgeseg.calibration.network import Layer
from edgeseg.types import Encoding

Encode = Callable[[str, frozenset[str]], onnx.ModelProto]
"""From a method and the names of the layers in float to a graph."""

_SCREENED = 32
"""Guard images on which every method is tried; only the best two see all of them."""
_SAMPLE = {"cpu": 24, "tensorrt": 8}
"""Guard images on which a single layer is judged, by how fast their encoding runs here."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate: the method, the layers in float, what it loses, and the milliseconds it takes more than fp32 in
    ONNX Runtime (None for encodings that do not run there).
    """

    method: str
    float_layers: tuple[str, ...]
    measured: Measured
    milliseconds: float | None


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What a layer's 8 bits cost: leaving it alone in float, so many more percent of pixels agree with fp32.

    `miou` is the same in points (None without labels), both on few images; `milliseconds` is what float costs in ONNX
    Runtime (None for encodings that do not run there); `macs` its share of the network's multiply-accumulates.
    """

    layer: str
    agreement: float
    miou: float | None
    milliseconds: float | None
    macs: float


@dataclass
class Outcome:
    """What a search found for one variant: the chosen method and layers in float, and all that was tried."""

    output_stride: int
    encoding: Encoding
    method: str = ""
    float_layers: tuple[str, ...] = ()
    measured: Measured | None = None
    trials: list[Trial] = field(default_factory=list)
    layers: list[LayerCost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def holds(self, limit: Limit) -> bool:
        """Whether what was chosen stays within the limit."""
        return self.measured is not None and limit.holds(self.measured)


class Search:
    """One variant's search; `deadline` is on `time.monotonic`'s clock."""

    def __init__(
        self,
        judge: Judge,
        encode: Encode,
        layers: Sequence[Layer],
        limit: Limit,
        deadline: float,
        outcome: Outcome,
        tell: Callable[[str], None],
    ) -> None:
        self._judge, self._encode, self._limit = judge, encode, limit
        self._layers = [layer for layer in layers if not layer.is_head]
        self._macs = sum(layer.macs for layer in layers)
        self._deadline, self._tell, self.outcome = deadline, tell, outcome

    def run(self, methods: Sequence[str], fixed: frozenset[str] = frozenset()) -> Outcome:
        """Try every method with only the `fixed` layers in float; where none will do, leave out more and more layers.

        Of the methods that hold, the one whose masks agree best with fp32 is taken: on few images mIoU moves by
        chance, and a rule that gains a tenth by it is not the better one.
        """
        some = self._spread(_SCREENED)
        for method in methods:
            if self.outcome.trials and self._late():
                self.outcome.notes.append(f"no time for method {method}")
                continue
            self._try(method, fixed, some)
        if len(some) < len(self._judge):
            for trial in sorted(self.outcome.trials, key=lambda trial: -trial.measured.agreement)[:2]:
                if self._holds(self._try(trial.method, fixed)):
                    break
        whole = [trial for trial in self.outcome.trials if trial.measured.images == len(self._judge)]
        best = max(whole, key=lambda trial: (self._holds(trial), trial.measured.agreement))
        self._choose(best)
        if not self._holds(best):
            self._leave_out(best.method, fixed)
        return self.outcome

    def cost_layers(self) -> None:
        """Measure every layer that is not among the outcome's costs yet, as far as the time reaches."""
        self._restore_each(self.outcome.method, frozenset(self.outcome.float_layers))

    def _leave_out(self, method: str, fixed: frozenset[str]) -> None:
        """Leave the worst layers in float: 1, 2, 4, ... until the limit holds, then as few of these as it needs."""
        self._restore_each(method, fixed)
        ranked = sorted(self.outcome.layers, key=lambda cost: -cost.agreement)
        names = [cost.layer for cost in ranked if cost.layer not in fixed]
        fails, count = 0, 1
        while names and not self._late():
            count = min(count, len(names))
            trial = self._try(method, fixed | set(names[:count]))
            if self._holds(trial) or trial.measured.agreement > self._chosen().agreement:
                self._choose(trial)
            if self._holds(trial) or count == len(names):
                break
            fails, count = count, count * 2
        if not self.outcome.holds(self._limit):
            self.outcome.notes.append(f"no set of layers in float holds among the {len(self.outcome.trials)} tried")
            return
        holds = count
        while holds - fails > 1 and not self._late():
            middle = (holds + fails) // 2
            trial = self._try(method, fixed | set(names[:middle]))
            if self._holds(trial):
                holds = middle
                self._choose(trial)
            else:
                fails = middle
        for name in reversed(names[: holds - 1]):  # the last one is needed: without it the limit did not hold
            if self._late():
                break
            trial = self._try(method, frozenset(self.outcome.float_layers) - {name})
            if self._holds(trial):
                self._choose(trial)

    def _restore_each(self, method: str, fixed: frozenset[str]) -> None:
        """What each layer costs, alone in float beside the `fixed` ones."""
        encoding = self.outcome.encoding
        images = self._spread(_SAMPLE["cpu" if encoding == "cpu" else "tensorrt"])
        base = self._encode(method, fixed)
        before = self._judge.measure(base, encoding, images)
        known = {cost.layer for cost in self.outcome.layers}
        waiting = [layer for layer in self._layers if layer.name not in known and layer.name not in fixed]
        for number, layer in enumerate(waiting):
            if self._late():
                self.outcome.notes.append(f"no time for the cost of {len(waiting) - number} layers")
                break
            self._tell(f"{self._title()}: {layer.name} in float ({number + 1} of {len(waiting)})")
            model = self._encode(method, fixed | {layer.name})
            after = self._judge.measure(model, encoding, images)
            miou = None
            if after.difference is not None and before.difference is not None:
                miou = after.difference - before.difference
            self.outcome.layers.append(
                LayerCost(
                    layer.name,
                    100 * (after.agreement - before.agreement),
                    miou,
                    self._judge.cost_ms(model, base) if encoding == "cpu" else None,
                    layer.macs / self._macs,
                )
            )

    def _spread(self, count: int) -> range:
        """At most `count` of the guard's images, from first to last."""
        return range(0, len(self._judge), max(1, -(-len(self._judge) // count)))

    def _try(self, method: str, floats: frozenset[str], images: Sequence[int] | None = None) -> Trial:
        model = self._encode(method, floats)
        measured = self._judge.measure(model, self.outcome.encoding, images)
        milliseconds = self._judge.cost_ms(model) if self.outcome.encoding == "cpu" else None
        trial = Trial(method, tuple(sorted(floats)), measured, milliseconds)
        self.outcome.trials.append(trial)
        self._tell(f"{self._title()}: {method}, {len(floats)} layers in float: {self._limit.text(measured)}")
        return trial

    def _choose(self, trial: Trial) -> None:
        outcome = self.outcome
        outcome.method, outcome.float_layers, outcome.measured = trial.method, trial.float_layers, trial.measured

    def _chosen(self) -> Measured:
        assert self.outcome.measured is not None  # chosen before anything is left out
        return self.outcome.measured

    def _holds(self, trial: Trial) -> bool:
        return self._limit.holds(trial.measured)

    def _late(self) -> bool:
        return time.monotonic() > self._deadline

    def _title(self) -> str:
        return f"output stride {self.outcome.output_stride}, {self.outcome.encoding}"
