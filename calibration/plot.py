"""The plot of a calibration: every candidate against the limit, and what each layer costs in 8 bits and in float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeseg._canvas import BLUE, GREEN, INK, MARK, ORANGE, PALE, PURPLE, Canvas, Color
from edgeseg.calibration.judging import Limit
from edgeseg.calibration.search import LayerCost, Outcome, Trial
from edgeseg.errors import InputError
from edgeseg.types import Image

_WIDTH, _MARGIN, _MIDDLE, _HEAD, _ROW, _TOP = 1160, 28, 500, 104, 20, 76
_MOST_PANELS, _MOST_TRIALS, _MOST_LAYERS = 4, 16, 20
_LIGHT_BLUE, _LIGHT_PURPLE, _WHITE = (150, 196, 222), (214, 176, 206), (255, 255, 255)
_KEY: tuple[tuple[str, Color], ...] = (
    ("chosen", BLUE),
    ("within the limit", _LIGHT_BLUE),
    ("beyond it", _LIGHT_PURPLE),
    ("the limit (dashed)", PURPLE),
    ("layer left in float", ORANGE),
)


@dataclass(frozen=True, slots=True)
class _Column:
    """A number per row, written and drawn as a bar from zero, between `left` and `right`; an outlier's bar is cut."""

    title: str
    left: float
    right: float
    values: Sequence[float | None]
    digits: int
    unit: str
    colors: Sequence[Color]
    mark: float | None = None

    def draw(self, canvas: Canvas) -> None:
        most = self._most()
        drawn = [None if value is None else float(np.clip(value, -most, most)) for value in self.values]
        known = [value for value in (*drawn, self.mark) if value is not None]
        low, high = min(0.0, *known), max(0.0, *known)
        begin = self.left + 64
        stretch = (self.right - begin) / (high - low or 1)
        zero = begin - low * stretch
        bottom = _HEAD + _ROW * len(self.values)
        canvas.text(self.title, self.left, _HEAD - 16, color=MARK)
        for number, (value, length, color) in enumerate(zip(self.values, drawn, self.colors, strict=True)):
            if value is None or length is None:
                continue
            y, end = _HEAD + _ROW * number, zero + length * stretch
            rounded = round(value, self.digits) + 0.0  # no -0.00
            canvas.text(f"{rounded:+.{self.digits}f}{self.unit}", begin - 8, y + 14.5, align=1)
            canvas.bar(min(zero, end), y + 4, max(zero, end), y + _ROW - 4, color)
            if length != value:
                middle = (zero + end) / 2
                for x in (middle - 3, middle + 3):
                    canvas.line([(x - 3, y + _ROW - 3), (x + 3, y + 3)], _WHITE, 2.5)
        canvas.line([(zero, _HEAD), (zero, bottom)], MARK, 1)
        if self.mark is not None:
            x = zero + self.mark * stretch
            canvas.dashes(x, _HEAD - 4, bottom + 4, PURPLE, 1.6)
            canvas.text(f"limit {self.mark:+g}{self.unit}", x, bottom + 18, align=0.5, color=PURPLE)

    def _most(self) -> float:
        """How long a bar may be: beyond this, one value would leave nothing to see of the others."""
        sizes = sorted(abs(value) for value in self.values if value is not None)
        typical = sizes[3 * (len(sizes) - 1) // 4] if sizes else 0.0
        most = max(1.5 * abs(self.mark), typical) if self.mark else 4 * typical
        largest = sizes[-1] if sizes else 0.0
        return most if 0 < 1.3 * most < largest else largest


def draw(outcomes: Sequence[Outcome], name: str) -> Image:
    """uint8 (H, W, 3) RGB: a panel per variant that was searched, at most four, those with measured layers first.

    On the left the candidates in the order tried beside fp32 (zero) and the limit (dashed); on the right the layers by
    what their 8 bits cost: how many percent of pixels (and points of mIoU, where there are labels) leaving one in float
    gains, and what that takes in milliseconds. What is left in float is orange; `name` is the bundle's. Raises
    InputError where no variant was measured.
    """
    searched = sorted((one for one in outcomes if one.trials), key=lambda one: not one.layers)[:_MOST_PANELS]
    if not searched:
        raise InputError("nothing was measured, so there is nothing to plot: calibrate with a guard")
    return np.concatenate([_heading(name, searched[0].guard_images), *map(_panel, searched)])


def _heading(name: str, images: int) -> Image:
    canvas = Canvas((_TOP, _WIDTH))
    title = f"{name}: int8 beside fp32, which is zero, on {images} guard images"
    canvas.text(canvas.fitted(title, _WIDTH - 2 * _MARGIN, 20), _MARGIN, 32, size=20)
    x = _MARGIN
    for words, color in _KEY:
        canvas.bar(x, 51, x + 12, 63, color)
        canvas.text(words, x + 18, 61.5, color=MARK)
        x += 44 + 8 * len(words)
    canvas.text("//  bar cut: the number tells", x, 61.5, color=MARK)
    return canvas.finished()


def _panel(outcome: Outcome) -> Image:
    first, last = _MOST_TRIALS // 2, len(outcome.trials) - _MOST_TRIALS // 2
    trials = [
        trial
        for number, trial in enumerate(outcome.trials)
        if number < first or number >= last or outcome.is_choice(trial)
    ]
    ranked = sorted(outcome.layers, key=lambda cost: -cost.agreement_gain)
    shown, rest = ranked[:_MOST_LAYERS], ranked[_MOST_LAYERS:]
    unmeasured = sorted(set(outcome.float_layers) - {cost.layer for cost in outcome.layers})
    rows = max(len(trials), len(shown) + bool(rest) + bool(unmeasured) + len(outcome.notes)) + 2
    canvas = Canvas((_HEAD + _ROW * rows, _WIDTH))
    _title(canvas, outcome)
    _draw_trials(canvas, outcome, trials)
    if len(trials) < len(outcome.trials):
        note = f"of {len(outcome.trials)} the first, the last and the choice"
        canvas.text(note, _MARGIN, _HEAD + _ROW * len(trials) + 18, color=MARK)
    if shown:
        _draw_layers(canvas, outcome, shown)
    below = _HEAD + _ROW * len(shown) + 15
    if rest:
        costs = [cost.agreement_gain for cost in rest]
        canvas.text(f"and {len(rest)} more, {min(costs):+.3f}% to {max(costs):+.3f}% each", _MIDDLE, below, color=MARK)
        below += _ROW
    if unmeasured:
        words = canvas.fitted(", ".join(unmeasured), _WIDTH - _MARGIN - _MIDDLE - 60)
        canvas.text(f"in float: {words}", _MIDDLE, below, color=ORANGE)
        below += _ROW
    for note in outcome.notes or ([] if shown else ["layers are measured in the cpu encoding"]):
        canvas.text(canvas.fitted(note, _WIDTH - _MARGIN - _MIDDLE), _MIDDLE, below, color=MARK)
        below += _ROW
    canvas.line([(_MARGIN, 1), (_WIDTH - _MARGIN, 1)], PALE, 1.5)
    return canvas.finished()


def _title(canvas: Canvas, outcome: Outcome) -> None:
    count = len(outcome.float_layers)
    floats = f"{count} layer{'s' * (count != 1)} in float" if count else "no layer in float"
    title = f"Output stride {outcome.output_stride}, encoding {outcome.encoding}: {outcome.method}, {floats}"
    canvas.text(title, _MARGIN, 32, size=18)
    if outcome.measured is not None and outcome.limit is not None:
        said = outcome.limit.text(outcome.measured)
        if outcome.measured.difference is not None:
            said += f"; {outcome.measured.agreement:.2%} of pixels as in fp32"
        canvas.text(said, _MARGIN, 55, color=MARK)


def _draw_trials(canvas: Canvas, outcome: Outcome, trials: Sequence[Trial]) -> None:
    limit = outcome.limit or Limit()
    colors: list[Color] = []
    for number, trial in enumerate(trials):
        y = _HEAD + _ROW * number + 14.5
        chosen = outcome.is_choice(trial)
        if chosen:
            canvas.bar(_MARGIN - 12, y - 8.5, _MARGIN - 5, y - 1.5, INK)
        colors.append((BLUE if chosen else _LIGHT_BLUE) if limit.holds(trial.measured) else _LIGHT_PURPLE)
        canvas.text(trial.method, _MARGIN, y)
        canvas.text(str(len(trial.float_layers)), _MARGIN + 178, y, align=1)
        canvas.text(str(trial.measured.images), _MARGIN + 232, y, align=1)
    for words, right in (("in float", 178), ("images", 232)):
        canvas.text(words, _MARGIN + right, _HEAD - 16, align=1, color=MARK)
    canvas.text("candidate", _MARGIN, _HEAD - 16, color=MARK)
    left, right = _MARGIN + 250, _MIDDLE - 36
    if trials[0].measured.difference is not None:
        gained = [trial.measured.difference for trial in trials]
        column = _Column("mIoU, points", left, right, gained, 2, "", colors, -limit.max_drop)
    else:
        changed = [100 * (1 - trial.measured.agreement) for trial in trials]
        column = _Column("pixels changed", left, right, changed, 2, "%", colors, limit.max_disagreement)
    column.draw(canvas)


def _draw_layers(canvas: Canvas, outcome: Outcome, shown: Sequence[LayerCost]) -> None:
    canvas.text("layer", _MIDDLE, _HEAD - 16, color=MARK)
    left_out = [cost.layer in outcome.float_layers for cost in shown]
    for number, cost in enumerate(shown):
        color = ORANGE if left_out[number] else INK
        canvas.text(canvas.fitted(cost.layer, 220), _MIDDLE, _HEAD + _ROW * number + 14.5, color=color)
    columns: list[tuple[str, list[float | None], int, str, Color]] = [
        ("float gains pixels", [cost.agreement_gain for cost in shown], 3, "%", GREEN),
        ("gains mIoU", [cost.miou_gain for cost in shown], 2, "", GREEN),
        ("and costs, ms", [cost.milliseconds for cost in shown], 2, "", MARK),
    ]
    columns = [column for column in columns if any(value is not None for value in column[1])]
    left = _MIDDLE + 232.0
    width = (_WIDTH - _MARGIN - left) / len(columns)
    for title, values, digits, unit, color in columns:
        colors = [ORANGE if out else color for out in left_out]
        _Column(title, left, left + width - 16, values, digits, unit, colors).draw(canvas)
        left += width
