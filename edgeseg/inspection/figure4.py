"""The plot of Chen et al. 2017, Figure 4, for a network's own maps and rates: how many weights are valid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from edgeseg.errors import InputError
from edgeseg.geometry import ValidWeights, valid_weights
from edgeseg.inspection.report import LayerReport, Report, pyramids
from edgeseg.types import Image, Size

_HEIGHT, _WIDTH = 420, 760
_TOP, _RIGHT, _BOTTOM, _LEFT = 86, 176, 58, 66
_FINE = 4
"""Everything is drawn this much larger and then averaged down: OpenCV's letters are coarse at their own size."""
_Rgb = tuple[int, int, int]
_INK, _PALE, _MARK = (40, 40, 40), (225, 225, 225), (120, 120, 120)
_COLORS = {"9": (0, 114, 178), "4": (230, 145, 0), "1": (0, 150, 110), "mean": (150, 60, 130)}
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


class _Canvas:
    """Lines and letters in panel coordinates: (x, y) in pixels, y downwards."""

    def __init__(self) -> None:
        self.pixels = np.full((_HEIGHT * _FINE, _WIDTH * _FINE, 3), 255, np.uint8)

    def line(self, points: Sequence[tuple[float, float]], color: _Rgb, width: float) -> None:
        scaled = np.rint(np.array(points) * _FINE).astype(np.int32).reshape(-1, 1, 2)
        cv2.polylines(self.pixels, [scaled], False, color, round(width * _FINE), cv2.LINE_AA)

    def text(self, words: str, x: float, y: float, *, size: float = 13, align: float = 0, color: _Rgb = _INK) -> None:
        """`align` is the share of the text's width left of `x`, `size` the height of a line in pixels."""
        scale, weight = size * _FINE / 30, max(1, round(size * _FINE / 24))
        (width, _), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, scale, weight)
        at = (round(x * _FINE - align * width), round(y * _FINE))
        cv2.putText(self.pixels, words, at, cv2.FONT_HERSHEY_SIMPLEX, scale, color, weight, cv2.LINE_AA)

    def finished(self) -> Image:
        return np.asarray(cv2.resize(self.pixels, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_AREA), np.uint8)


def _panel(size: Size, rates: list[int]) -> Image:
    canvas = _Canvas()
    last = max(*size, rates[-1] + 1)
    left, right, top, bottom = _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM

    def at(rate: float, share: float) -> tuple[float, float]:
        return left + (rate - 1) / (last - 1) * (right - left), bottom - share * (bottom - top)

    canvas.text(f"Valid weights of a 3x3 kernel on a {size[0]}x{size[1]} map", left, 27, size=17)
    canvas.text("share of output positions with so many valid weights, by rate", left, 47, size=12, color=_MARK)
    for tenth in range(0, 11, 2):
        canvas.line([at(1, tenth / 10), at(last, tenth / 10)], _PALE, 1)
        canvas.text(f"{tenth * 10}%", left - 8, at(1, tenth / 10)[1] + 4.5, align=1)
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if last / step <= 10 or step == 1000)
    for rate in (1, *range(step, last + 1, step)) if step > 1 else range(1, last + 1):
        x, y = at(rate, 0)
        canvas.line([(x, y), (x, y + 5)], _INK, 1)
        canvas.text(str(rate), x, y + 20, align=0.5)
    canvas.text("atrous rate", (left + right) / 2, _HEIGHT - 14, align=0.5)
    previous = -100.0
    for rate in rates:
        x, y = at(rate, 1)
        for start in np.arange(y - 6, bottom, 9):  # dashes
            canvas.line([(x, start), (x, min(start + 5, bottom))], _MARK, 1.4)
        if x - previous > 22:
            canvas.text(str(rate), x, y - 12, align=0.5, color=_MARK)
            previous = x
    canvas.text("network's rates", right + 14, at(1, 1)[1] - 12, color=_MARK)
    canvas.line([at(1, 1), at(1, 0), at(last, 0)], _INK, 1.2)
    valid = {rate: valid_weights(size, dilation=(rate, rate)) for rate in range(1, last + 1)}
    _curves(canvas, valid, at)
    return canvas.finished()


def _curves(canvas: _Canvas, valid: dict[int, ValidWeights], at: _Place) -> None:
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
