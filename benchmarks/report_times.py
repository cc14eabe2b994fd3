"""Charts of time: stages of each frame, the spread of the frames, and how both went over the run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgeseg.benchmarks.report_html import Html, tag
from edgeseg.benchmarks.report_rows import Row
from edgeseg.benchmarks.report_scatter import linear_ticks
from edgeseg.benchmarks.report_words import ms, percent, with_unit

_WIDTH, _HIGH, _BASE, _STRIP = 300.0, 8.0, 84.0, (108.0, 140.0)
"""Of a spread's panel: its width, the highest bar, the bars' foot, and the rows of the run over time."""
_BINS, _MOMENTS = 50, 60
_MOST_LATE = 2.0
"""Times the median: what is later than this is counted in the last bar."""
BAR = 1000.0
"""Of a bar as wide as there is room, in its own units."""


def stage_bars(rows: Sequence[Row]) -> Html:
    """A bar per configuration, all on one scale, with the runtime's own time on the same graph marked."""
    scale = BAR / max(max(row.preprocess + row.network + row.decode, row.frame.p50, row.raw or 0) for row in rows)
    bars = [
        stage_bar(row.label, row.frame.p50, (row.preprocess, row.network, row.decode), scale, row.raw, row.ratio)
        for row in rows
    ]
    return tag("ol", bars, class_="bars")


def stage_bar(
    label: str,
    total: float,
    stages: tuple[float, float, float],
    scale: float,
    raw: float | None = None,
    ratio: float | None = None,
) -> Html:
    """One bar, `scale` to the millisecond, of preprocess, network and decode; `raw` is the runtime alone, `ratio` the
    frame over it."""
    parts, x, words = [], 0.0, []
    named = list(zip(("preprocess", "network", "decode"), stages, strict=True))
    for name, value in named:
        parts.append(tag("rect", x=x, y=0, width=value * scale, height=20, class_=name))
        words.append(tag("span", tag("i", class_=f"swatch {name}"), f"{name} ", tag("b", ms(value)), class_="part"))
        x += value * scale
    if raw is not None:
        at = stages[0] * scale + raw * scale
        parts.append(tag("path", d=f"M{at:.2f} -4V24", class_="raw"))
        words.append(tag("span", tag("i", class_="swatch raw"), "runtime alone ", tag("b", ms(raw)), class_="part"))
        words.append(tag("span", "frame / runtime ", tag("b", f"×{ratio:.2f}"), class_="part"))
    title = f"{label}: {', '.join(f'{name} {ms(value)}' for name, value in named)} ms"
    return tag("li", *_named_bar(label, total, title, parts), tag("p", words, class_="parts"))


def _named_bar(label: str, total: float, title: str, parts: Sequence[Html]) -> list[Html]:
    """The configuration, its median, and a bar as wide as there is room."""
    box = f"0 -4 {BAR:g} 28"
    return [
        tag("span", label, class_="name"),
        tag("b", with_unit(total), class_="total"),
        tag("svg", tag("title", title), parts, viewBox=box, preserveAspectRatio="none", role="img"),
    ]


def range_bars(rows: Sequence[Row]) -> Html:
    """Median to 99th percentile of each configuration on one scale from zero: the chart where no accuracy is known."""
    scale = BAR / max(_late(row) for row in rows)
    items = []
    for row in rows:
        p50, p90, p99 = (value * scale for value in (row.frame.p50, row.frame.p90, _late(row)))
        parts = [
            tag("rect", x=0, y=0, width=p50, height=20, class_=f"reach stride-{_rank(row, rows)}"),
            tag("path", d=f"M{p50:.2f} 10H{p99:.2f}", class_="tail"),
            tag("path", d=f"M{p90:.2f} 4V16M{p99:.2f} 1V19", class_="tail"),
        ]
        title = f"{row.label}: p50 {ms(row.frame.p50)}, p90 {ms(row.frame.p90)}, p99 {ms(row.frame.p99)} ms"
        items.append(tag("li", *_named_bar(row.label, row.frame.p50, title, parts)))
    return tag("ol", items, class_="bars")


def _late(row: Row) -> float:
    """The 99th percentile, or the largest where there is none."""
    return row.frame.largest if row.frame.p99 is None else row.frame.p99


def _rank(row: Row, rows: Sequence[Row]) -> int:
    return sorted({other.stride for other in rows}).index(row.stride) % 3


def spreads(rows: Sequence[Row]) -> Html:
    """A panel per configuration: how its frames spread about their median, and below when in the run they were late.

    All panels have one scale, in shares of the own median, so that a wide one is a restless configuration.
    """
    shares = [np.array(row.latency.frame_ns) / 1e6 / row.frame.p50 for row in rows]
    low = min(float(np.percentile(share, 0.5)) for share in shares) - 0.01
    late = max(_late(row) / row.frame.p50 for row in rows)
    high = max(1.05, min(1 + 1.12 * (late - 1), _MOST_LATE))
    return tag("div", [_panel(row, share, low, high) for row, share in zip(rows, shares, strict=True)], class_="panels")


def _panel(row: Row, share: npt.NDArray[np.float64], low: float, high: float) -> Html:
    counts, _ = np.histogram(np.clip(share, low, high), _BINS, (low, high))
    width = _WIDTH / _BINS
    tall = (_BASE - _HIGH) / counts.max()
    outline = "".join(
        f"M{number * width:.1f} {_BASE:g}v{-count * tall:.1f}h{width - 0.8:.1f}V{_BASE:g}z"
        for number, count in enumerate(counts)
        if count
    )
    drawn = [tag("path", d=outline, class_="hist")]

    def x(value: float) -> float:
        return (min(value, high) - low) / (high - low) * _WIDTH

    lines = [("p50", row.frame.p50), ("p99", row.frame.p99)]
    for name, value in lines:
        if value is not None:
            drawn.append(tag("path", d=f"M{x(value / row.frame.p50):.1f} 0V{_BASE:g}", class_=name))
    drawn.append(tag("path", d=f"M0 {_BASE:g}H{_WIDTH:g}", class_="grid"))
    for tick in linear_ticks(low - 1, high - 1, 5):
        at = x(1 + tick)
        drawn.append(tag("path", d=f"M{at:.1f} {_BASE:g}v4", class_="grid"))
        words = f"{'+' if tick > 0 else '−'}{percent(abs(tick))}" if tick else "0"
        drawn.append(
            tag(
                "text",
                words,
                x=at,
                y=_BASE + 16,
                class_="tick end" if at > _WIDTH - 18 else "tick middle" if at > 18 else "tick",
            )
        )
    drawn += _over_time(row, share, low, high)
    beyond = int((share > high).sum())
    title = f"{row.label}: {len(share)} frames, p90 {ms(row.frame.p90)} ms" + (
        f"; {beyond} beyond the scale, in the last bar" if beyond else ""
    )
    svg = tag("svg", tag("title", title), drawn, viewBox=f"0 0 {_WIDTH:g} 142", role="img")
    known = f"p50 {ms(row.frame.p50)}" + (f", p99 {ms(row.frame.p99)}" if row.frame.p99 else "")
    numbers = f"{known}, latest {with_unit(row.frame.largest)}"
    named = tag("figcaption", tag("b", row.label), numbers)
    return tag("figure", named, svg, class_="panel")


def _over_time(row: Row, share: npt.NDArray[np.float64], low: float, high: float) -> list[Html]:
    """Median, lowest and highest of the run's moments, in order."""
    top, bottom = _STRIP
    moments = np.array_split(np.clip(share, low, high), min(_MOMENTS, len(share)))
    step = _WIDTH / len(moments)

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    band = "".join(
        f"M{(number + 0.5) * step:.1f} {y(part.min()):.1f}V{y(part.max()):.1f}" for number, part in enumerate(moments)
    )
    medians = " ".join(
        f"{(number + 0.5) * step:.1f},{y(float(np.median(part))):.1f}" for number, part in enumerate(moments)
    )
    began = row.latency.rounds_ns
    seconds = f" over {(began[-1] - began[0]) / 1e9:.0f} s" if len(began) > 1 else ""
    return [
        tag("g", tag("title", f"In the order of the run{seconds}"), tag("path", d=band, class_="band"),
            tag("polyline", points=medians, class_="drift")),
    ]  # fmt: skip
