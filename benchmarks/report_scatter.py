"""The chart of accuracy against latency, in one size for a desk and one for a phone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgeseg.benchmarks.report_html import Html, tag
from edgeseg.benchmarks.report_rows import Row, front
from edgeseg.benchmarks.report_words import ms, with_unit

_WIDE, _NARROW = (540, 1250), (440, 358)
_RADIUS, _LETTER = 11.0, 6.8
"""Of a mark, and the width of a letter of a label, in the chart's units."""
_DASHES = (None, "7 5", "2 5", "12 4 2 4", "1 3", "16 6")
_STEPS = (1, 1.5, 2, 3, 4, 5, 7)
_KNOWN = {"fp32", "fp16", "int8", "none"}

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True, slots=True)
class _Plane:
    """Milliseconds (logarithmic) and mIoU points to coordinates."""

    box: Box
    fastest: float
    slowest: float
    lowest: float
    highest: float

    def x(self, value: float) -> float:
        share = math.log(value / self.fastest) / math.log(self.slowest / self.fastest)
        return self.box[0] + share * (self.box[2] - self.box[0])

    def y(self, value: float) -> float:
        return self.box[3] - (value - self.lowest) / (self.highest - self.lowest) * (self.box[3] - self.box[1])

    def at(self, row: Row) -> tuple[float, float]:
        return self.x(row.frame.p50), self.y(row.miou)


def scatter(rows: Sequence[Row]) -> list[Html]:
    """Of rows that have an accuracy: the wide chart, the narrow one (a style sheet shows either), and the key."""
    charts = [
        tag("div", _chart(rows, size), class_=name) for size, name in ((_WIDE, "for-desk"), (_NARROW, "for-phone"))
    ]
    return [*charts, _key(rows)]


def precision_class(precision: str) -> str:
    """The style sheet's name for a precision's colour and fill."""
    return f"is-{precision}" if precision in _KNOWN else "is-other"


def mark(stride: int, strides: Sequence[int], precision: str, x: float, y: float) -> Html:
    """A stride's shape with its number inside, in a precision's colour and fill."""
    shape = sorted(set(strides)).index(stride) % 4
    r = _RADIUS
    if shape == 1:
        outline = tag("circle", cx=x, cy=y, r=r)
    elif shape == 0:
        outline = tag("rect", x=x - r + 1, y=y - r + 1, width=2 * r - 2, height=2 * r - 2, rx=2.5)
    else:  # a diamond, then a hexagon
        sides, turn = (4, 0.0) if shape == 2 else (6, math.pi / 6)
        reach = r + (3 if shape == 2 else 1.5)
        corners = [turn + 2 * math.pi * number / sides for number in range(sides)]
        points = " ".join(f"{x + reach * math.cos(c):.1f},{y + reach * math.sin(c):.1f}" for c in corners)
        outline = tag("polygon", points=points, stroke_linejoin="round")
    return tag("g", outline, tag("text", stride, x=x, y=y + 4), class_=f"mark {precision_class(precision)}")


def _plane(rows: Sequence[Row], size: tuple[int, int]) -> _Plane:
    height, width = size
    wide = size == _WIDE
    fastest, slowest = min(row.frame.p50 for row in rows), max(row.frame.p50 for row in rows)
    around = max((slowest / fastest) ** (0.07 if wide else 0.1), 1.06)
    low, high = min(row.miou for row in rows), max(row.miou for row in rows)
    room = max(0.14 * (high - low), 0.25)
    box = (46.0, 16.0, width - (20.0 if wide else 8.0), height - 46.0)
    return _Plane(box, fastest / around, slowest * around, low - 1.3 * room, high + room)


def _chart(rows: Sequence[Row], size: tuple[int, int]) -> Html:
    plane, best = _plane(rows, size), front(rows)
    taken: list[Box] = []
    for row in rows:
        x, y = plane.at(row)
        taken.append((x - 14, y - 14, x + 14, y + 14))
    drawn = [*_axes(plane, size), *_front(plane, best), *_lines(plane, rows)]
    strides = [row.stride for row in rows]
    for row in sorted(rows, key=lambda row: row in best):
        words = f"{row.label}: {with_unit(row.frame.p50)} (p99 {ms(row.frame.p99)}), {row.miou:.2f} mIoU"
        drawn.append(tag("g", tag("title", words), mark(row.stride, strides, row.precision, *plane.at(row))))
    drawn += _labels(plane, rows, best, taken)
    words = "Accuracy against latency: " + "; ".join(
        f"{row.label} {with_unit(row.frame.p50)} {row.miou:.1f} mIoU" for row in best
    )
    height, width = size
    return tag("svg", tag("title", words), drawn, viewBox=f"0 0 {width} {height}", role="img", class_="scatter")


def _axes(plane: _Plane, size: tuple[int, int]) -> list[Html]:
    left, top, right, bottom = plane.box
    drawn = []
    for value in linear_ticks(plane.lowest, plane.highest, 6):
        y = plane.y(value)
        drawn.append(tag("line", x1=left, y1=y, x2=right, y2=y, class_="grid"))
        drawn.append(tag("text", f"{value:g}", x=left - 8, y=y + 4, class_="tick end"))
    for value in _log_ticks(plane.fastest, plane.slowest, 9 if size == _WIDE else 5):
        x = plane.x(value)
        drawn.append(tag("line", x1=x, y1=top, x2=x, y2=bottom, class_="grid"))
        drawn.append(tag("text", f"{value:g}", x=x, y=bottom + 18, class_="tick middle"))
    named = "milliseconds a frame, median" + (" (logarithmic)" if size == _WIDE else "")
    drawn.append(tag("text", f"{named} →", x=right, y=bottom + 38, class_="axis end"))
    drawn.append(tag("text", "↑ mIoU", x=left + 6, y=top + 8, class_="axis"))
    return drawn


def _front(plane: _Plane, best: Sequence[Row]) -> list[Html]:
    """Stairs: what is the most accurate for at most so long; below them something better is to be had."""
    right, bottom = plane.box[2:]
    x, y = plane.at(best[0])
    stairs = f"M{x:.1f} {bottom:.1f}V{y:.1f}"
    for row in best[1:]:
        x, y = plane.at(row)
        stairs += f"H{x:.1f}V{y:.1f}"
    stairs += f"H{right:.1f}"
    return [tag("path", d=f"{stairs}V{bottom:.1f}Z", class_="beaten"), tag("path", d=stairs, class_="front")]


def _lines(plane: _Plane, rows: Sequence[Row]) -> list[Html]:
    """The strides of one backend and precision, joined."""
    dashes = _backend_dashes(rows)
    drawn = []
    for name in dict.fromkeys(row.series for row in rows):
        members = sorted((row for row in rows if row.series == name), key=lambda row: row.stride)
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(plane.at, members))
        first = members[0]
        dash = dashes[first.measurement.configuration.backend]
        kind = f"series {precision_class(first.precision)}"
        drawn.append(tag("polyline", points=points, class_=kind, stroke_dasharray=dash))
    return drawn


def _labels(plane: _Plane, rows: Sequence[Row], best: Sequence[Row], taken: list[Box]) -> list[Html]:
    """Beside the marks the front's numbers, where they lie on lines least, and each series once, where it lies on none.

    The key tells the others.
    """
    wanted = [([row], f"{ms(row.frame.p50)} ms · {row.miou:.1f}", "value") for row in reversed(best)]
    for name in dict.fromkeys(row.series for row in rows):
        members = sorted((row for row in rows if row.series == name), key=lambda row: row.stride)
        wanted.append(([*members[:1], *members[:0:-1]], name, "name"))
    drawn = []
    lines = _on_lines(plane, rows, best)
    for options, words, kind in wanted:
        width = _LETTER * len(words) + 4
        places = [
            (sum(_meet(box, line) for line in lines), order, box, row)
            for order, row in enumerate(options)
            for box in _places(plane, row, width, taken, kind == "value")
        ]
        crossed, _, box, row = min(places, key=lambda one: one[:2], default=(0, 0, None, options[0]))
        if box is not None and (kind == "value" or not crossed):
            taken.append(box)
            color = precision_class(row.precision)
            drawn.append(tag("text", words, x=box[0] + 2, y=box[3] - 4, class_=f"{kind} {color}"))
    return drawn


def _on_lines(plane: _Plane, rows: Sequence[Row], best: Sequence[Row]) -> list[Box]:
    """Small boxes along all lines: words on a line are hard to read."""
    ends = []
    for name in dict.fromkeys(row.series for row in rows):
        members = sorted((row for row in rows if row.series == name), key=lambda row: row.stride)
        ends += list(itertools.pairwise(map(plane.at, members)))
    for one, other in itertools.pairwise(map(plane.at, best)):
        ends += [(one, (other[0], one[1])), ((other[0], one[1]), other)]
    first, last = plane.at(best[0]), plane.at(best[-1])
    ends += [(first, (first[0], plane.box[3])), (last, (plane.box[2], last[1]))]
    found = []
    for (x0, y0), (x1, y1) in ends:
        count = int(math.hypot(x1 - x0, y1 - y0) / 8) + 1
        for step in range(count + 1):
            x, y = x0 + (x1 - x0) * step / count, y0 + (y1 - y0) * step / count
            found.append((x - 2, y - 2, x + 2, y + 2))
    return found


def _places(plane: _Plane, row: Row, width: float, taken: Sequence[Box], at_edges: bool) -> list[Box]:
    """Where words beside a mark meet nothing that is taken, best first; `at_edges`: also along the chart's sides."""
    x, y = plane.at(row)
    left, top, right, bottom = plane.box
    before = -width - 18
    offsets = [(18.0, -8), (-width / 2, -32), (-width / 2, 17), (before, -8)]
    offsets += [(8, -29), (8, 15), (before + 10, 15), (before + 10, -29)]
    if at_edges:
        offsets += [(edge - x, -32) for edge in (left + 2, right - width) if edge < x < edge + width]
    boxes = [(x + dx, y + dy, x + dx + width, y + dy + 16) for dx, dy in offsets]
    inside = [box for box in boxes if left <= box[0] and box[2] <= right and top <= box[1] and box[3] <= bottom]
    return [box for box in inside if not any(_meet(box, other) for other in taken)]


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _key(rows: Sequence[Row]) -> Html:
    strides = sorted({row.stride for row in rows})
    entries = []
    for stride in strides:
        entries.append((mark(stride, strides, "none", 15, 15), f"output stride {stride}"))
    for precision in dict.fromkeys(row.precision for row in rows):
        swatch = tag("circle", cx=15, cy=15, r=9)
        entries.append((tag("g", swatch, class_=f"mark {precision_class(precision)}"), precision))
    for backend, dash in _backend_dashes(rows).items():
        name = next(row.series for row in rows if row.measurement.configuration.backend == backend).rsplit(" ", 1)[0]
        line = tag("line", x1=0, y1=15, x2=30, y2=15, class_="series", stroke_dasharray=dash)
        entries.append((line, name))
    entries.append(
        (tag("line", x1=0, y1=15, x2=30, y2=15, class_="front"), "front: nothing is both faster and more accurate")
    )
    items = [
        tag("li", tag("svg", drawn, viewBox="0 0 30 30", width=30, height=30, aria_hidden="true"), words)
        for drawn, words in entries
    ]
    return tag("ul", items, class_="key")


def _backend_dashes(rows: Sequence[Row]) -> dict[str, str | None]:
    backends = sorted({row.measurement.configuration.backend for row in rows})
    fastest = min(rows, key=lambda row: row.frame.p50).measurement.configuration.backend
    backends.sort(key=lambda name: name != fastest)
    return {backend: _DASHES[number % len(_DASHES)] for number, backend in enumerate(backends)}


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers between two values, about `count` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(number * step, 6) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    if high / low < 3:
        return linear_ticks(low, high, most - 1)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in (_STEPS, (1, 2, 3, 5), (1, 2, 5), (1,)):
        found = [value for power in powers for step in steps if low <= (value := step * 10.0**power) <= high]
        if len(found) <= most:
            break
    return found
