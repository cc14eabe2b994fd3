"""The plot of Chen et al. 2017, Figure 4, for a network's own maps and rates: how many weights are valid."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgeseg._canvas import BLUE, GREEN, INK, MARK, ORANGE, PALE, PURPLE, Canvas
from edgeseg.errors import InputError
from edgeseg.geometry import ValidWeights, valid_weights
from edgeseg.inspection.report import LayerReport, Report, pyramids
from edgeseg.types import Image, Size

_HEIGHT, _WIDTH = 420, 760
_TOP, _RIGHT, _BOTTOM, _LEFT = 86, 176, 58, 66
_COLORS = {"9": BLUE, "4": ORANGE, "1": GREEN, "mean": PURPLE}
_MAX_PANELS = 4
_Place = Callable[[float, float], tuple[float, float]]


def draw(report: Report) -> Image:
    """uint8 (H, W, 3) RGB: a panel per map of the ASPP-like groups, of all 3x3 atrous convolutions where there is none.

    Curves are the shares of positions at which 9, 4 and 1 weights of a 3x3 kernel are valid, as in the paper, and the
    mean share of valid weights. Vertical lines are the network's rates. Raises InputError without such a convolution.
    """
    chosen = [row for group in pyramids(report.layers) for row in group] or list(report.layers)
    maps: dict[Size, list[LayerReport]] = {}
    for row in chosen:
        if row.layer.is_atrous and row.layer.kind == "conv" and row.layer.kernel == (3, 3):
            maps.setdefault(row.layer.input_size, []).append(row)
    if not maps:
        raise InputError(f"{report.source} has no 3x3 atrous convolution: there is nothing to plot")
    panels = [_panel(size, sorted({max(row.layer.dilation) for row in rows})) for size, rows in maps.items()]
    return np.concatenate(panels[:_MAX_PANELS])


def _panel(size: Size, rates: list[int]) -> Image:
    canvas = Canvas((_HEIGHT, _WIDTH))
    last = max(*size, rates[-1] + 1)
    left, right, top, bottom = _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM

    def at(rate: float, share: float) -> tuple[float, float]:
        return left + (rate - 1) / (last - 1) * (right - left), bottom - share * (bottom - top)

    canvas.text(f"Valid weights of a 3x3 kernel on a {size[0]}x{size[1]} map", left, 27, size=17)
    canvas.text("share of output positions with so many valid weights, by rate", left, 47, size=12, color=MARK)
    for tenth in range(0, 11, 2):
        canvas.line([at(1, tenth / 10), at(last, tenth / 10)], PALE, 1)
        canvas.text(f"{tenth * 10}%", left - 8, at(1, tenth / 10)[1] + 4.5, align=1)
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if last / step <= 10 or step == 1000)
    for rate in (1, *range(step, last + 1, step)) if step > 1 else range(1, last + 1):
        x, y = at(rate, 0)
        canvas.line([(x, y), (x, y + 5)], INK, 1)
        canvas.text(str(rate), x, y + 20, align=0.5)
    canvas.text("atrous rate", (left + right) / 2, _HEIGHT - 14, align=0.5)
    previous = -100.0
    for rate in rates:
        x, y = at(rate, 1)
        canvas.dashes(x, y - 6, bottom, MARK, 1.4)
        if x - previous > 22:
            canvas.text(str(rate), x, y - 12, align=0.5, color=MARK)
            previous = x
    canvas.text("network's rates", right + 14, at(1, 1)[1] - 12, color=MARK)
    canvas.line([at(1, 1), at(1, 0), at(last, 0)], INK, 1.2)
    valid = {rate: valid_weights(size, dilation=(rate, rate)) for rate in range(1, last + 1)}
    _curves(canvas, valid, at)
    return canvas.finished()


def _curves(canvas: Canvas, valid: dict[int, ValidWeights], at: _Place) -> None:
    shares = {
        "9": [weights.share(9) for weights in valid.values()],
        "4": [weights.share(4) for weights in valid.values()],
        "1": [weights.share(1) for weights in valid.values()],
        "mean": [weights.mean for weights in valid.values()],
    }
    labels = {"9": "9 valid", "4": "4 valid", "1": "1 valid", "mean": "mean share"}
    for index, (name, values) in enumerate(shares.items()):
        points = [at(rate, share) for rate, share in zip(valid, values, strict=True)]
        canvas.line(points, _COLORS[name], 1.6 if name == "mean" else 2.6)
        x, y = _WIDTH - _RIGHT + 16, _TOP + 24 + 26 * index
        canvas.line([(x, y), (x + 26, y)], _COLORS[name], 1.6 if name == "mean" else 2.6)
        canvas.text(labels[name], x + 36, y + 4.5)
