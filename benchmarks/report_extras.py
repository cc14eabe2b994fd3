"""The report's parts on request: cost as the work grows, and others on the same graph and frames."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

from edgeseg.benchmarks.extras import App, Comparison, Decoding, Growth, Row, Stages
from edgeseg.benchmarks.report_html import Html, Part, scrolling, tag
from edgeseg.benchmarks.report_times import BAR, stage_bar
from edgeseg.benchmarks.report_words import ms, percent, with_unit
from edgeseg.benchmarks.spread import Interval
from edgeseg.types import Size

GROWTH = "Medians; within each group everything took turns, round by round. Every group of bars has a scale of its own."
PEERS = (
    "Everyone in a process of its own, one frame each in turn, in an order drawn anew each round: the same graph and "
    "frames. Bars are the time by edgeseg's, round by round, of what runs on ONNX Runtime by edgeseg's on it; the line "
    "is edgeseg's own, whiskers are 95 % intervals."
)

_LONGEST = 10.0
"""Times edgeseg's: longer bars are cut, so that one slow contender does not make dots of all others."""


def growth(found: Growth) -> list[Part]:
    """What the run says of it in sentences, then a group for each way the work grows."""
    left = [*_group("Frame size", found.frames), *_group("Threads of the network", found.threads)]
    right = _group("Batch in fp32, per image", found.batches)
    return [
        tag("p", _sized(f"{found.network}; {found.pictures}."), class_="about"),
        tag("ul", [tag("li", _sized(said)) for said in found.sentences], class_="says"),
        tag("div", tag("div", left), tag("div", right), class_="pairs"),
        *_classes(found.classes),
    ]


def _group(name: str, rows: Sequence[Stages]) -> list[Html]:
    if not rows:
        return []
    scale = BAR / max(max(row.total_ms, row.preprocess_ms + row.network_ms + row.decode_ms) for row in rows)
    bars = [
        stage_bar(_sized(row.name), row.total_ms, (row.preprocess_ms, row.network_ms, row.decode_ms), scale)
        for row in rows
    ]
    return [tag("h3", name), tag("ol", bars, class_="bars short")]


def _classes(rows: Sequence[Decoding]) -> list[Html]:
    """A line for each number of classes, three ways to decode them to each frame size."""
    if not rows:
        return []
    by_key = {(row.classes, row.frame): row for row in rows}
    frames, counts = dict.fromkeys(row.frame for row in rows), dict.fromkeys(row.classes for row in rows)
    lines = []
    for count in counts:
        there = [by_key.get((count, frame)) for frame in frames]
        share = next(percent(row.contested) for row in there if row)
        cells = [cell for row in there for cell in _decoding(row)]
        lines.append(tag("tr", tag("th", count, scope="row", class_="stays"), tag("td", share), cells))
    groups = [tag("th", f"to {_size(frame)}", colspan=3, scope="colgroup", class_="group") for frame in frames]
    ways = [tag("th", way, scope="col") for _ in frames for way in ("plain", "with confidence", "cv2.resize + argmax")]
    first = [
        tag("th", "Classes", rowspan=2, scope="col", class_="stays"),
        tag("th", "contested", rowspan=2, scope="col"),
    ]
    said = (
        "Milliseconds of the decode alone. Contested is the share of cells whose corners have not one winner, where "
        "the work is."
    )
    head = tag("thead", tag("tr", first, groups), tag("tr", ways))
    table = tag("table", tag("caption", tag("span", said)), head, tag("tbody", lines))
    return [tag("h3", "Decoding more or fewer classes"), scrolling(table, "Decoding more or fewer classes")]


def _decoding(row: Decoding | None) -> list[Html]:
    if row is None:
        return [tag("td", "–")] * 3
    opencv = tag("small", "too large") if row.opencv_ms is None else ms(row.opencv_ms)
    return [tag("td", ms(row.plain_ms)), tag("td", ms(row.confidence_ms)), tag("td", opencv)]


def peers(found: Sequence[Comparison]) -> list[Part]:
    """A table for each comparison, all bars on one scale, and what belongs to it in words."""
    ends = [max(row.ratio, row.ratio_interval[1]) for one in found for row in one.rows if not row.missing]
    end = min(max(ends, default=1.0), _LONGEST)
    return [tag("div", *_peers(one, end), class_="beside") for one in found]


def _peers(found: Comparison, end: float) -> list[Part]:
    ours = found.rows[0].name if found.rows else ""
    ran = [row for row in found.rows if not row.missing]
    heads = ["Contender", "ms", "times edgeseg's", f"pixels as {ours}", "what its time includes"]
    kinds = ["stays", None, "group", None, "words"]
    top = [tag("th", head, scope="col", class_=kind) for head, kind in zip(heads, kinds, strict=True)]
    cut = f"; bars end at {end:.0f} times, some go on" if any(row.ratio > end for row in ran) else ""
    caption = tag("caption", tag("span", f"Frames of {_sized(found.frames)}{cut}"))
    body = tag("tbody", [_peer(row, ours, end) for row in ran])
    facts: list[tuple[str, Part]] = [(ours, _ours(found)), ("benchmark_app", _app(found.app, found.app_missing))]
    facts += [("did not run", f"{'; '.join(names)}: {why}") for why, names in _missing(found.rows).items()]
    facts += [("noisy", reason) for reason in found.noise]
    return [
        tag("h3", _sized(found.network)),
        tag("p", _others(ran, ours), class_="said"),
        scrolling(tag("table", caption, tag("thead", tag("tr", top)), body), f"Beside others: {found.network}"),
        tag("dl", [tag("div", tag("dt", name), tag("dd", said)) for name, said in facts]),
    ]


def _peer(row: Row, ours: str, end: float) -> Html:
    own, scale = row.against == row.name, BAR / end
    half = tag("small", f" ±{ms((row.interval[1] - row.interval[0]) / 2)}", title=_between(row.interval, 3))
    width, low, high = (min(value, end) * scale for value in (row.ratio, *row.ratio_interval))
    parts = [tag("rect", x=0, y=3, width=width, height=14, class_="network" if own else "preprocess")]
    parts.append(tag("path", d=f"M{scale:.2f} 0V20", class_="raw"))
    if row.ratio > end:
        parts.append(tag("path", d=f"M{BAR - 60:g} 5l30 5l-30 5", class_="tail"))
    elif not own:
        tick = f"M{high:.2f} 6V14" * (row.ratio_interval[1] <= end)
        parts.append(tag("path", d=f"M{low:.2f} 10H{high:.2f}M{low:.2f} 6V14{tick}", class_="tail"))
    bar = tag("svg", parts, viewBox=f"0 0 {BAR:g} 20", preserveAspectRatio="none", aria_hidden="true")
    said = [] if own else [_between(row.ratio_interval)]
    if row.against not in (ours, row.name):
        said += [tag("br"), f"of {row.against}"]
    about = [row.includes, row.runtime] + [f"{row.quantized} convolutions in int8"] * bool(row.quantized)
    same = "–" if row.agreement is None or row.name == ours else percent(row.agreement, 2)
    return tag(
        "tr",
        tag("th", row.name, scope="row", class_="stays"),
        tag("td", ms(row.ms), half),
        tag("td", tag("div", tag("b", f"{row.ratio:.2f}"), bar, tag("small", said), class_="times"), class_="group"),
        tag("td", same),
        tag("td", _sized("; ".join(filter(None, about))), class_="words"),
    )


def _others(ran: Sequence[Row], ours: str) -> str | None:
    """How long others take for the same: those that end at a mask and are not edgeseg's."""
    ratios = [row.ratio for row in ran if row.agreement is not None and row.against != row.name]
    if not ratios:
        return None
    times = f"{min(ratios):.2f}" + f" to {max(ratios):.2f}" * (len(ratios) > 1)
    return f"From the raw frame to its mask the others take {times} times as long as edgeseg."


def _ours(found: Comparison) -> str:
    parts = zip(("preprocess", "network", "decode"), found.stages_ms, strict=True)
    said = ", ".join(f"{name} {with_unit(value)}" for name, value in parts)
    if found.whole_by_network:
        between = _between(found.whole_by_network_interval, 3)
        said += f"; the whole frame takes {found.whole_by_network:.3f} {between} times the network alone"
    return f"{said}."


def _app(found: App | None, missing: str) -> str:
    if found is None:
        return f"Did not run: {missing}"
    theirs, ours = statistics.median(found.theirs_ms), statistics.median(found.ours_ms)
    return (
        f"The network only, {len(found.ours_ms)} blocks in turn: it says {with_unit(theirs)}, edgeseg's session takes "
        f"{with_unit(ours)}, {found.ratio:.3f} {_between(found.interval, 3)} times. It ran with {found.settings}; as "
        f"it comes it says {with_unit(found.default_ms)}, with {found.default_settings}."
    )


def _missing(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Names by reason, which several often share but for the name in front."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.missing:
            why = row.missing.removeprefix(f"{row.name} fails: ").removeprefix(f"{row.name}: ")
            found.setdefault(why, []).append(row.name)
    return found


def _between(interval: Interval, places: int = 2) -> str:
    return f"({interval[0]:.{places}f} to {interval[1]:.{places}f})"


def _size(size: Size) -> str:
    return f"{size[0]}×{size[1]}"


def _sized(text: str) -> str:
    """Sizes with the sign that the report writes them with."""
    return re.sub(r"(?<=\d)x(?=\d)", "×", text)
