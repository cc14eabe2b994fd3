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
_SAMPLE: dict[Encoding, int] = {"cpu": 24, "tensorrt": 8}
"""Guard images on which a single layer is judged, by how fast their encoding runs here."""
_RANKED = 8
"""Guard images on which layers are ranked: alone in 8 bits, they differ by far more than images do."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate: the method, the layers in float, what it loses, and the milliseconds that it and fp32 beside it
    take in ONNX Runtime (None for encodings that do not run there).
    """

    method: str
    float_layers: tuple[str, ...]
    measured: Measured
    milliseconds: float | None = None
    milliseconds_fp32: float | None = None


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What a layer's 8 bits cost, the others as chosen: so many percent of pixels more agree with fp32 in float.

    `miou_gain` is the same in points (None without labels), both on few images; `milliseconds` is what float costs in
    ONNX Runtime (None for encodings that do not run there); `macs` its share of the network's multiply-accumulates.
    """

    layer: str
    agreement_gain: float
    miou_gain: float | None
    milliseconds: float | None
    macs: float


@dataclass
class Outcome:
    """What a search found for one variant: the chosen method and layers in float, and all that was tried.

    Without a guard there is no `limit`, nothing is `measured`, and the choice is what was asked for. `guard_images` is
    how many images the guard had that made this choice, now or in an earlier calibration; 0 where none did.
    """

    output_stride: int
    encoding: Encoding
    method: str = ""
    float_layers: tuple[str, ...] = ()
    limit: Limit | None = None
    measured: Measured | None = None
    trials: list[Trial] = field(default_factory=list)
    layers: list[LayerCost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    guard_images: int = 0

    @property
    def holds(self) -> bool:
        """Whether what was chosen was measured and is within the limit."""
        return self.limit is not None and self.measured is not None and self.limit.holds(self.measured)

    def is_choice(self, trial: Trial) -> bool:
        """Whether this trial is the one that was chosen."""
        return (self.method, self.float_layers, self.measured) == (trial.method, trial.float_layers, trial.measured)


class Search:
    """One variant's search; `deadline` is on `time.monotonic`'s clock, and may be moved.

    `exhausted` says that nothing was left to try, rather than no time.
    """

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
        self.outcome, self.deadline, self._tell = outcome, deadline, tell
        self._fixed: frozenset[str] = frozenset()
        self.exhausted = False
        outcome.limit = limit

    def run(self, methods: Sequence[str], fixed: frozenset[str] = frozenset()) -> Outcome:
        """Try every method with only the `fixed` layers in float; where none will do, leave out more and more layers.

        Of the methods that hold, the one whose masks agree best with fp32 is taken: on few images mIoU moves by
        chance, and a rule that gains a tenth by it is not the better one.
        """
        some, self._fixed = self._spread(_SCREENED), fixed
        for number, method in enumerate(methods):
            if number and self._late():
                self.outcome.notes.append(f"no time for {', '.join(methods[number:])}")
                break
            self._try(method, fixed, some)
        if len(some) < len(self._judge):
            for trial in sorted(self.outcome.trials, key=lambda trial: -trial.measured.agreement)[:2]:
                if self._holds(self._try(trial.method, fixed)):
                    break
        whole = [trial for trial in self.outcome.trials if trial.measured.images == len(self._judge)]
        best = max(whole, key=lambda trial: (self._holds(trial), trial.measured.agreement))
        self._choose(best)
        if not self._holds(best):
            self._leave_out(methods, fixed)
        return self.outcome

    def cost_layers(self) -> None:
        """Measure what each layer's 8 bits cost, as far as the time reaches: those left in float first."""
        outcome, floats = self.outcome, frozenset(self.outcome.float_layers)
        images = self._spread(_SAMPLE[outcome.encoding])
        chosen = self._encode(outcome.method, floats)
        here = self._judge.measure(chosen, outcome.encoding, images)
        waiting = sorted(
            (layer for layer in self._layers if layer.name not in self._fixed),
            key=lambda layer: layer.name not in floats,
        )
        for number, layer in enumerate(waiting):
            if self._late():
                outcome.notes.append(f"{len(waiting) - number} layers were not measured: no time")
                break
            self._tell(f"{self._title()}: the other way round, {layer.name} ({number + 1} of {len(waiting)})")
            model = self._encode(outcome.method, floats ^ {layer.name})
            there = self._judge.measure(model, outcome.encoding, images)
            sign = -1 if layer.name in floats else 1
            miou = None
            if there.difference is not None and here.difference is not None:
                miou = sign * (there.difference - here.difference)
            milliseconds = None
            if outcome.encoding == "cpu":
                took, before = self._judge.milliseconds(model, chosen)
                milliseconds = sign * (took - before)
            agreement = sign * 100 * (there.agreement - here.agreement)
            outcome.layers.append(LayerCost(layer.name, agreement, miou, milliseconds, layer.macs / self._macs))

    def _leave_out(self, methods: Sequence[str], fixed: frozenset[str]) -> None:
        """Leave the worst layers in float: 1, 2, 4, ... until the limit holds, then as few of these as it needs.

        The method is chosen anew with each number of layers: the best one beside outliers clips hard, which is not the
        best once the layers are left out that suffer from them.
        """
        now = time.monotonic()
        ranked = self._ranked(self.outcome.method, fixed, now + (self.deadline - now) / 2)  # then there is time to try
        # never every layer: it would be int8 by name only
        most = max(0, len(self._layers) - len(fixed) - 1)
        names = ranked[:most]
        self.exhausted = not most and not self._late()
        fails, count = 0, 1
        while names and not self._late():
            count = min(count, len(names))
            trial = self._try_methods(methods, fixed | set(names[:count]))
            if self._holds(trial) or trial.measured.agreement > self._chosen().agreement:
                self._choose(trial)
            if self._holds(trial) or count == len(names):
                self.exhausted = len(names) == most
                break
            fails, count = count, count * 2
        if not self.outcome.holds:
            return
        holds, method = count, self.outcome.method
        while holds - fails > 1 and not self._late():
            middle = (holds + fails) // 2
            trial = self._try(method, fixed | set(names[:middle]))
            if self._holds(trial):
                holds = middle
                self._choose(trial)
            else:
                fails = middle
        for name in reversed(names[:holds]):
            if self._late():
                break
            trial = self._try(method, frozenset(self.outcome.float_layers) - {name})
            if self._holds(trial):
                self._choose(trial)

    def _ranked(self, method: str, fixed: frozenset[str], until: float) -> list[str]:
        """Layers by what the masks lose where they alone are in 8 bits, the worst first.

        Where several spoil the masks, none of them gains much by being alone in float; this tells them all.
        """
        names = [layer.name for layer in self._layers if layer.name not in fixed]
        agreement: dict[str, float] = {}
        for number, name in enumerate(names):
            if time.monotonic() >= until:
                self.outcome.notes.append(f"no time to rank {len(names) - number} layers")
                break
            self._tell(f"{self._title()}: {name} alone in int8 ({number + 1} of {len(names)})")
            model = self._encode(method, fixed.union(names) - {name})
            agreement[name] = self._judge.measure(model, self.outcome.encoding, self._spread(_RANKED)).agreement
        return sorted(agreement, key=agreement.__getitem__)

    def _spread(self, count: int) -> range:
        """At most `count` of the guard's images, from first to last."""
        return range(0, len(self._judge), max(1, -(-len(self._judge) // count)))

    def _try_methods(self, methods: Sequence[str], floats: frozenset[str]) -> Trial:
        """The best of the methods on a few images, on all of them."""
        if len(methods) > 1:
            tried = [self._try(method, floats, self._spread(_RANKED)) for method in methods]
            methods = [max(tried, key=lambda trial: trial.measured.agreement).method]
        return self._try(methods[0], floats)

    def _try(self, method: str, floats: frozenset[str], images: Sequence[int] | None = None) -> Trial:
        count, layers = len(self._judge if images is None else images), tuple(sorted(floats))
        for trial in self.outcome.trials:
            if (trial.method, trial.float_layers, trial.measured.images) == (method, layers, count):
                return trial
        model = self._encode(method, floats)
        measured = self._judge.measure(model, self.outcome.encoding, images)
        took = self._judge.milliseconds(model) if self.outcome.encoding == "cpu" else (None, None)
        trial = Trial(method, layers, measured, *took)
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
        return time.monotonic() >= self.deadline

    def _title(self) -> str:
        return f"output stride {self.outcome.output_stride}, {self.outcome.encoding}"
