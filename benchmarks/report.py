"""The report of a benchmark: one HTML file that holds all it needs."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgeseg._files import write_atomic
from edgeseg.benchmarks import report_extras, report_pictures, report_scatter, report_tables, report_times
from edgeseg.benchmarks import report_words as words
from edgeseg.benchmarks.report_html import Html, Part, tag
from edgeseg.benchmarks.report_rows import Pick, Row, headline, picks, rows_of
from edgeseg.benchmarks.results import Noise, Results


def write(results: Results, path: Path) -> None:
    """Write the report, at once or not at all. Raises InputError naming the path, or a picture that is none."""
    write_atomic(path, page(results).encode(errors="replace"))


def page(results: Results) -> str:
    """The report as text. It loads nothing: its own policy forbids it, and any script but its own."""
    rows = rows_of(results)
    found = picks(rows, results.noise.claim)
    main = headline(found)
    sections = list(_sections(results, rows, main))
    links = [tag("li", tag("a", name, href=f"#{key}")) for key, name, _ in sections]
    body = [_first(results, found, main), tag("nav", tag("ul", links), aria_label="Parts of this report")]
    body += [tag("section", tag("h2", name), *parts, id=key) for key, name, parts in sections]
    return _document(f"{results.bundle}: edgeseg bench", tag("main", body))


def _document(title: str, body: Html) -> str:
    sheet, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(sheet)),
    ]
    return "<!doctype html>\n" + tag(
        "html", tag("head", head), tag("body", body, tag("script", Html(script))), lang="en"
    )


def _first(results: Results, found: Sequence[Pick], main: Pick | None) -> Html:
    """The first screen: what to choose, and whether the run is to be trusted."""
    noise = _noise(results.noise) if found else None
    processor = next(iter(results.host.fixed.values()), "")
    about = " · ".join(part for part in ("edgeseg bench", results.bundle, processor, words.when(results.began)) if part)
    said = [
        tag("p", about, class_="about"),
        noise if results.noise.noisy else None,
        tag("h1", words.title(results, main)),
        tag("p", words.subtitle(results, main.row if main else None), class_="lead"),
        None if results.noise.noisy else noise,
    ]
    cards = [_card(pick, pick is main) for pick in found] if len(results.measurements) > 1 else []
    return tag("header", said, tag("ol", cards, class_="cards") if cards else None)


def _noise(noise: Noise) -> Html:
    name, said = words.noise(noise)
    reasons = tag("ul", [tag("li", reason) for reason in noise.reasons]) if noise.reasons else None
    sign = tag("span", "!" if noise.noisy else "✓", class_="sign", aria_hidden="true")
    kind = "noise noisy" if noise.noisy else "noise"
    return tag("div", sign, tag("div", tag("p", tag("b", f"{name}. "), said), reasons), class_=kind, role="note")


def _card(pick: Pick, is_main: bool) -> Html:
    row = pick.row
    asked = f"output stride {row.stride}" if pick.limit is None else words.limit(pick)
    numbers: list[Part] = [tag("b", words.with_unit(row.frame.p50))]
    if row.accuracy:
        numbers += [" ", tag("b", f"{row.accuracy.miou:.1f}"), tag("span", " mIoU")]
    return tag(
        "li",
        tag("p", asked, class_="asked"),
        tag("p", row.series, tag("br"), f"output stride {row.stride}", class_="choice"),
        tag("p", numbers, class_="numbers"),
        [tag("p", remark, class_="remark") for remark in words.pick_words(pick)],
        class_="card main" if is_main else "card",
    )


Section = tuple[str, str, list[Part]]
"""Its id, its heading, what is in it."""


def _sections(results: Results, rows: list[Row], main: Pick | None) -> Iterator[Section]:
    """What there is to show, in order: a part that was not measured is left out."""
    judged = [row for row in rows if row.accuracy is not None]
    if len(judged) > 1:
        charts = report_scatter.scatter(judged)
        yield _section("chart", "Accuracy against latency", words.chart(judged, len(rows)), *charts)
    elif len(rows) > 1:
        yield _section("latency", "Latency", words.LATENCY, report_times.range_bars(rows))
    if rows:
        yield _section("grid", "All numbers", words.GRID, *report_tables.grid(rows))
    if failed := report_tables.failures(results):
        yield _section("failed", "What did not run", words.FAILED, failed)
    if main:
        yield _section("stages", "Where the time goes", words.stages(main.row), report_times.stage_bars(rows))
        yield _section("spread", "How steady it is", words.steadiness(rows), report_times.spreads(rows))
    if judged:
        telling = main.row if main and main.row in judged else judged[0]
        heat = report_tables.class_heat(judged)
        yield _section("classes", "Accuracy by class", words.classes(telling, judged), heat)
    if results.samples:
        pictures = report_pictures.strip(results, main)
        yield _section("pictures", "Pictures", words.PICTURES, *pictures, report_tables.class_key(results.classes))
    if rates := report_tables.rates(results):
        yield _section("rates", "At a camera's rate", words.RATES, rates)
    if starts := report_tables.starts(results):
        yield _section("start", "Cold start", words.START, starts)
    if results.growth:
        yield _section("growth", "As the work grows", report_extras.GROWTH, *report_extras.growth(results.growth))
    if results.peers:
        yield _section("peers", "Beside others", report_extras.PEERS, *report_extras.peers(results.peers))
    yield _section("method", "Machine and method", results.method, *_method(results))


def _section(key: str, name: str, said: str, *parts: Part) -> Section:
    return key, name, [tag("p", said, class_="said"), *parts]


def _method(results: Results) -> list[Part]:
    frames = results.frames
    facts = {
        "bundle": f"{results.bundle} ({results.bundle_digest[:16]})",
        "network input": f"{results.input_size[0]}×{results.input_size[1]} (height × width)",
        "frames": f"{frames.height}×{frames.width} (height × width), {frames.source} ({frames.digest[:16]})",
    }
    items = [tag("div", tag("dt", key), tag("dd", value)) for key, value in facts.items()]
    words = results.command.split(" ")  # each kept whole where the line wraps: browsers break after a hyphen
    command = [part for word in words for part in (" ", tag("span", word))][1:]
    return [
        tag("pre", tag("code", command)),
        tag("dl", items),
        report_tables.host(results.host),
    ]
