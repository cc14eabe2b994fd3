"""The report's tables: the grid, IoU by class, cold start, fixed rates, the host."""

from __future__ import annotations

from collections.abc import Sequence

from edgeseg.benchmarks.report_html import Html, Part, color, scrolling, tag
from edgeseg.benchmarks.report_rows import Row, behind, named
from edgeseg.benchmarks.report_words import ms, percent, size
from edgeseg.benchmarks.results import Host, Measurement, Results
from edgeseg.benchmarks.spread import Interval, summarise

Cell = tuple[Part, float] | None
"""What is written, and what it is sorted by; None where it was not measured."""


def grid(rows: Sequence[Row]) -> list[Html]:
    """Everything that is one number per configuration. A script makes its heads sort; it reads without."""
    groups: list[tuple[str, list[tuple[str, str, list[Cell]]]]] = [
        ("Accuracy", [("mIoU", "mean IoU, points, ± its 95 % interval", [_miou(row) for row in rows])]),
        ("Raw frame to mask, milliseconds",
         [("p50", "median, ± its 95 % interval", [_median(row) for row in rows]),
          ("p90", "one frame in ten takes longer", [_time(row.frame.p90) for row in rows]),
          ("p99", "one frame in a hundred takes longer", [_time(row.frame.p99) for row in rows]),
          ("max", "the slowest frame", [_time(row.frame.largest) for row in rows]),
          ("jitter", "p99 - p50", [_time(row.frame.jitter) for row in rows]),
          ("per s", "frames a second, one after another",
           [(f"{row.frame.per_second:.1f}", row.frame.per_second) for row in rows])]),
        ("Runtime alone", [("p50", "the same graph on a prepared batch, ms", [_time(row.raw) for row in rows]),
                           ("frame ×", "the whole frame over it",
                            [(f"{row.ratio:.2f}", row.ratio) if row.ratio else None for row in rows])]),
        ("Cost", [("GMAC", "multiply-accumulates, 1e9", [_macs(row) for row in rows]),
                  ("graph", "its files", [_graph(row) for row in rows]),
                  ("mJ", "energy a frame, millijoule", [_energy(row) for row in rows])]),
        ("Accuracy in other measures",
         [("pixels", "share of labelled pixels that are right", [_pixels(row) for row in rows]),
          ("edges", "boundary F-score", [_edges(row) for row in rows]),
          ("agree", _reference(rows), [_agreement(row) for row in rows])]),
    ]  # fmt: skip
    groups = [(name, [one for one in columns if any(one[2])]) for name, columns in groups]
    groups = [(name, columns) for name, columns in groups if columns]
    first = tag("th", "Configuration", rowspan=2, scope="col", class_="stays")
    top = [tag("th", name, colspan=len(columns), scope="colgroup", class_="group") for name, columns in groups]
    heads = [tag("th", name, title=meaning, scope="col") for _, columns in groups for name, meaning, _ in columns]
    lines = []
    for number, row in enumerate(rows):
        cells = [_cell(column[2][number]) for _, columns in groups for column in columns]
        lines.append(tag("tr", tag("th", row.label, scope="row", class_="stays"), cells))
    table = tag("table", tag("thead", tag("tr", first, top), tag("tr", heads)), tag("tbody", lines), class_="sortable")
    meanings = [
        tag("div", tag("dt", f"{group}: {name}"), tag("dd", meaning))
        for group, columns in groups
        for name, meaning, _ in columns
    ]
    meaning = tag("details", tag("summary", "What the columns say"), tag("dl", meanings))
    return [scrolling(table, "All configurations"), meaning]


def class_heat(rows: Sequence[Row]) -> Html:
    """IoU by class and configuration, each cell shaded by its value; the best of a class is bold and marked.

    Below their mean, how far it is from the most accurate's, where images can be paired.
    """
    series = list(dict.fromkeys(row.series for row in rows))
    order = sorted(rows, key=lambda row: (series.index(row.series), row.stride))
    judged = [(row, row.accuracy) for row in order if row.accuracy is not None]
    names = dict.fromkeys(name for _, accuracy in judged for name in accuracy.iou)
    lines = []
    for name in names:
        values = [accuracy.iou.get(name) for _, accuracy in judged]
        lines.append(_heat_row(name, values))
    means = [accuracy.miou for _, accuracy in judged]
    head = [tag("th", f"{row.series} ", tag("span", f"stride {row.stride}"), scope="col") for row, _ in judged]
    top = tag("tr", tag("th", "Class", scope="col", class_="stays"), head)
    leads = behind([row for row, _ in judged])
    paired = tag("tr", tag("th", "to best", scope="row", class_="stays"), map(_lead, leads)) if any(leads) else None
    foot = tag("tfoot", _heat_row("mean", means), paired)
    return scrolling(tag("table", tag("thead", top), tag("tbody", lines), foot, class_="heat"), "IoU by class")


def _heat_row(name: str, values: Sequence[float | None]) -> Html:
    shown = [None if value is None else f"{value:.1f}" for value in values]
    best = max((float(text) for text in shown if text is not None), default=None)
    cells = []
    for value, text in zip(values, shown, strict=True):
        if value is None or text is None:
            cells.append(tag("td", "–"))
            continue
        kind = "best" if float(text) == best else None
        cells.append(tag("td", text, style=f"--v:{value / 100:.3f}", class_=kind))
    return tag("tr", tag("th", name, scope="row", class_="stays"), cells)


def _lead(found: tuple[float, Interval] | None) -> Html:
    """How far the most accurate is ahead."""
    if found is None:
        return tag("td", "–")
    points, (low, high) = found
    if not any((points, low, high)):
        return tag("td", "best", class_="best")
    half = tag("small", f" ±{(high - low) / 2:.2f}", title=f"{low:.3f} to {high:.3f} points")
    return tag("td", f"{points:.2f}", half)


def starts(results: Results) -> Html | None:
    """What comes before the second frame; None where it was not measured."""
    lines = []
    for label, measurement in named(results):
        start = measurement.start
        if start is None:
            continue
        cold = start.import_ns + start.load_ns + start.first_frame_ns
        warm = start.import_ns + start.warm_load_ns + start.first_frame_ns
        columns = (cold, warm, start.import_ns, start.load_ns, start.warm_load_ns, start.first_frame_ns)
        cells: list[Cell] = [_time(value / 1e6) for value in columns]
        cells.append((size(start.peak_bytes), start.peak_bytes))
        lines.append(tag("tr", tag("th", label, scope="row", class_="stays"), map(_cell, cells)))
    heads = ("first mask", "with a cache", "import", "load", "load, cached", "first frame", "peak memory")
    top = [tag("th", head, scope="col") for head in heads]
    first = tag("th", "Configuration", scope="col", class_="stays")
    table = tag("table", tag("thead", tag("tr", first, top)), tag("tbody", lines), class_="sortable")
    return scrolling(table, "Cold start") if lines else None


def rates(results: Results) -> Html | None:
    """A camera's frames: how old each result is and how many frames were missed; None where it was not measured."""
    speeds = sorted({rate.hz for measurement in results.measurements for rate in measurement.rates})
    lines = []
    for label, measurement in named(results):
        cells = [cell for hz in speeds for cell in _rate_cells(measurement, hz)]
        if measurement.rates:
            lines.append(tag("tr", tag("th", label, scope="row", class_="stays"), cells))
    top = [tag("th", f"{hz:g} Hz", colspan=3, scope="colgroup", class_="group") for hz in speeds]
    heads = [tag("th", name, scope="col") for _ in speeds for name in ("age p50", "p99", "missed")]
    first = tag("th", "Configuration", rowspan=2, scope="col", class_="stays")
    table = tag("table", tag("thead", tag("tr", first, top), tag("tr", heads)), tag("tbody", lines), class_="sortable")
    return scrolling(table, "Fixed rates") if lines else None


def _rate_cells(measurement: Measurement, hz: float) -> list[Html]:
    rate = next((rate for rate in measurement.rates if rate.hz == hz), None)
    if rate is None:
        return [_cell(None)] * 3
    missed = rate.missed / rate.frames if rate.frames else 0.0
    counted = tag("td", percent(missed), data_v=missed, class_="missed" if missed else None)
    if not rate.age_ns:
        return [_cell(None), _cell(None), counted]
    age = summarise(rate.age_ns)
    return [_cell(_time(age.p50)), _cell(_time(age.p99)), counted]


def failures(results: Results) -> Html | None:
    """What did not run, and why."""
    lines = [
        tag("tr", tag("th", label, scope="row", class_="stays"), tag("td", measurement.failure, class_="words"))
        for label, measurement in named(results)
        if measurement.failure
    ]
    heads = [tag("th", "Configuration", scope="col", class_="stays"), tag("th", "Why", scope="col", class_="words")]
    table = tag("table", tag("thead", tag("tr", heads)), tag("tbody", lines))
    return scrolling(table, "What did not run") if lines else None


def host(found: Host) -> Html:
    """The machine's facts, and its state in the run."""
    parts = []
    for name, pairs in (("The machine", found.fixed), ("Its state in the run", found.state)):
        if pairs:
            items = [tag("div", tag("dt", key), tag("dd", value)) for key, value in pairs.items()]
            parts.append(tag("div", tag("h3", name), tag("dl", items)))
    return tag("div", parts, class_="host")


def class_key(classes: dict[str, str]) -> Html:
    """The classes' colours by name."""
    items = [
        tag("li", tag("i", class_="swatch", style=f"background:{color(value)}"), name)
        for name, value in classes.items()
    ]
    return tag("ul", items, class_="key classes")


def _cell(cell: Cell) -> Html:
    return tag("td", "–") if cell is None else tag("td", cell[0], data_v=repr(cell[1]))


def _time(value: float | None) -> Cell:
    return None if value is None else (ms(value), value)


def _median(row: Row) -> Cell:
    low, high = row.frame.interval
    return [
        ms(row.frame.p50),
        tag("small", f" ±{(high - low) / 2:.2f}", title=f"{low:.3f} to {high:.3f} ms"),
    ], row.frame.p50


def _miou(row: Row) -> Cell:
    if row.accuracy is None:
        return None
    low, high = row.accuracy.interval
    half = tag("small", f" ±{(high - low) / 2:.1f}", title=f"{low:.2f} to {high:.2f} points")
    return [f"{row.accuracy.miou:.2f}", half], row.accuracy.miou


def _pixels(row: Row) -> Cell:
    return (f"{row.accuracy.pixel_accuracy:.2f}", row.accuracy.pixel_accuracy) if row.accuracy else None


def _edges(row: Row) -> Cell:
    return (f"{row.accuracy.boundary_f:.2f}", row.accuracy.boundary_f) if row.accuracy else None


def _agreement(row: Row) -> Cell:
    return (percent(row.accuracy.agreement, 2), row.accuracy.agreement) if row.accuracy else None


def _reference(rows: Sequence[Row]) -> str:
    names = dict.fromkeys(row.accuracy.reference for row in rows if row.accuracy and row.accuracy.reference)
    return f"pixels as in {' or '.join(names) or 'the reference'}"


def _macs(row: Row) -> Cell:
    macs = row.measurement.macs
    return (f"{macs / 1e9:.2f}", float(macs)) if macs else None


def _graph(row: Row) -> Cell:
    count = row.measurement.graph_bytes
    return (size(count), float(count)) if count else None


def _energy(row: Row) -> Cell:
    energy = row.measurement.energy_mj
    return (f"{energy:.1f}", energy) if energy is not None else None
