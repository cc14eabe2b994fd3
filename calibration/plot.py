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

_WIDTH, _MARGIN, _MIDDLE, _HEAD, _ROW = 1160, 28, 500, 104, 20
_MOST_PANELS, _MOST_TRIALS, _MOST_LAYERS = 4, 16, 20
_LIGHT_BLUE, _LIGHT_ORANGE = (150, 196, 222), (245, 208, 142)


@dataclass(frozen=True, slots=True)
class _Column:
    """A number per row, written and drawn as a bar from zero, between `left` and `right`."""

    title: str
    left: float
    right: float
    values: Sequence[float | None]
    digits: int
    unit: str
    colors: Sequence[Color]
    mark: float | None = None

    def draw(self, canvas: Canvas) -> None:
        known = [value for value in (*self.values, self.mark) if value is not None]
        low, high = min(0.0, *known), max(0.0, *known)
        begin = self.left + 64
        stretch = (self.right - begin) / (high - low or 1)
        zero = begin - low * stretch
        canvas.text(self.title, self.left, _HEAD - 16, color=MARK)
        for number, (value, color) in enumerate(zip(self.values, self.colors, strict=True)):
            if value is not None:
                y = _HEAD + _ROW * number
                end = zero + value * stretch
                rounded = round(value, self.digits) + 0.0  # no -0.00
                canvas.text(f"{rounded:+.{self.digits}f}{self.unit}", begin - 8, y + 14.5, align=1)
                canvas.bar(min(zero, end), y + 4, max(zero, end), y + _ROW - 4, color)
        bottom = _HEAD + _ROW * len(self.values)
        canvas.line([(zero, _HEAD), (zero, bottom)], MARK, 1)
        if self.mark is not None:
            canvas.dashes(zero + self.mark * stretch, _HEAD - 4, bottom + 4, PURPLE, 1.6)


def draw(outcomes: Sequence[Outcome]) -> Image:
    """uint8 (H, W, 3) RGB: a panel per variant that was searched, at most four, those with measured layers first.

    On the left the candidates in the order tried and what they lose against the limit (dashed); on the right the layers
    by what their 8 bits cost: how many percent of pixels (and points of mIoU, where there are labels) leaving one in
    float brings back, and what that takes in milliseconds. What is left in float is orange. Raises InputError where no
    variant was measured.
    """
    searched = sorted((one for one in outcomes if one.trials), key=lambda one: not one.layers)[:_MOST_PANELS]
    if not searched:
        raise InputError("nothing was measured, so there is nothing to plot: calibrate with a guard")
    return np.concatenate([_panel(outcome) for outcome in searched])


def _panel(outcome: Outcome) -> Image:
    first, last = _MOST_TRIALS // 2, len(outcome.trials) - _MOST_TRIALS // 2
    trials = [
        trial
        for number, trial in enumerate(outcome.trials)
        if number < first or number >= last or _is_choice(outcome, trial)
    ]
    ranked = sorted(outcome.layers, key=lambda cost: -cost.agreement)
    shown, rest = ranked[:_MOST_LAYERS], ranked[_MOST_LAYERS:]
    unmeasured = sorted(set(outcome.float_layers) - {cost.layer for cost in outcome.layers})
    rows = max(len(trials), len(shown) + bool(unmeasured)) + 2
    canvas = Canvas((_HEAD + _ROW * rows, _WIDTH))
    _title(canvas, outcome)
    _draw_trials(canvas, outcome, trials)
    if len(trials) < len(outcome.trials):
        note = f"of {len(outcome.trials)} the first, the last and the choice"
        canvas.text(note, _MARGIN, _HEAD + _ROW * len(trials) + 20, color=MARK)
    if shown:
        _draw_layers(canvas, outcome, shown)
    below = _HEAD + _ROW * len(shown) + 15
    if rest:
        costs = [cost.agreement for cost in rest]
        canvas.text(f"and {len(rest)} more, {min(costs):+.3f}% to {max(costs):+.3f}% each", _MIDDLE, below, color=MARK)
        below += _ROW
    if unmeasured:
        words = canvas.fitted(", ".join(unmeasured), _WIDTH - _MARGIN - _MIDDLE - 60)
        canvas.text(f"in float: {words}", _MIDDLE, below, color=ORANGE)
    canvas.line([(_MARGIN, 1), (_WIDTH - _MARGIN, 1)], PALE, 1.5)
    return canvas.finished()


def _is_choice(outcome: Outcome, trial: Trial) -> bool:
    chosen = (outcome.method, outcome.float_layers, outcome.measured)
    return chosen == (trial.method, trial.float_layers, trial.measured)


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
    key = "dashed: the limit; square: the choice; orange: left in float"
    canvas.text(key, _WIDTH - _MARGIN, 55, align=1, color=MARK)


def _draw_trials(canvas: Canvas, outcome: Outcome, trials: Sequence[Trial]) -> None:
    limit = outcome.limit or Limit()
    losses = [limit.loss(trial.measured) for trial in trials]
    labelled = trials[0].measured.difference is not None
    colors: list[Color] = []
    for number, trial in enumerate(trials):
        y = _HEAD + _ROW * number + 14.5
        chosen = _is_choice(outcome, trial)
        if chosen:
            canvas.bar(_MARGIN - 12, y - 8.5, _MARGIN - 5, y - 1.5, INK)
        colors.append((BLUE if chosen else _LIGHT_BLUE) if limit.holds(trial.measured) else _LIGHT_ORANGE)
        canvas.text(trial.method, _MARGIN, y)
        canvas.text(str(len(trial.float_layers)), _MARGIN + 178, y, align=1)
        canvas.text(str(trial.measured.images), _MARGIN + 232, y, align=1)
    for words, right in (("in float", 178), ("images", 232)):
        canvas.text(words, _MARGIN + right, _HEAD - 16, align=1, color=MARK)
    canvas.text("candidate", _MARGIN, _HEAD - 16, color=MARK)
    title, unit = ("mIoU lost, points", "") if labelled else ("pixels changed", "%")
    values = [lost for lost, _ in losses]
    _Column(title, _MARGIN + 250, _MIDDLE - 36, values, 2, unit, colors, losses[0][1]).draw(canvas)


def _draw_layers(canvas: Canvas, outcome: Outcome, shown: Sequence[LayerCost]) -> None:
    canvas.text("layer", _MIDDLE, _HEAD - 16, color=MARK)
    left_out = [cost.layer in outcome.float_layers for cost in shown]
    for number, cost in enumerate(shown):
        color = ORANGE if left_out[number] else INK
        canvas.text(canvas.fitted(cost.layer, 220), _MIDDLE, _HEAD + _ROW * number + 14.5, color=color)
    columns: list[tuple[str, list[float | None], int, str, Color]] = [
        ("float gives back", [cost.agreement for cost in shown], 3, "%", BLUE),
        ("mIoU, points", [cost.miou for cost in shown], 2, "", GREEN),
        ("and costs, ms", [cost.milliseconds for cost in shown], 2, "", MARK),
    ]
    columns = [column for column in columns if any(value is not None for value in column[1])]
    left = _MIDDLE + 232.0
    width = (_WIDTH - _MARGIN - left) / len(columns)
    for title, values, digits, unit, color in columns:
        colors = [ORANGE if out and color == BLUE else color for out in left_out]
        _Column(title, left, left + width - 16, values, digits, unit, colors).draw(canvas)
        left += width
