"""The report: its numbers are the results', nothing is fetched, no data becomes markup, a browser shows it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="the report compares its pictures with OpenCV")

from edgeseg.benchmarks import quality, report, report_rows, report_scatter, report_words
from edgeseg.benchmarks.extras import App, Comparison, Decoding, Growth, Row, Stages
from edgeseg.benchmarks.report_html import Html, tag
from edgeseg.benchmarks.results import (
    Accuracy,
    Configuration,
    FixedRate,
    Frames,
    Host,
    Latency,
    Measurement,
    Noise,
    Results,
    Sample,
    Start,
    read,
    save,
)
from edgeseg.benchmarks.spread import summarise
from edgeseg.errors import InputError
from edgeseg.palette import CAMVID
from edgeseg.scene import street_scene
from edgeseg.scoring import means
from edgeseg.types import ClassMap

CLASSES = {info.name: "#{:02x}{:02x}{:02x}".format(*info.color) for info in CAMVID}
IOU = dict(zip(CLASSES, (91.8, 83.4, 31.5, 95.2, 80.6, 76.9, 44.8, 47.3, 86.1, 58.7, 62.5), strict=True))
VOID = {"meta", "img", "br", "hr"}
GROWTH = Growth(
    "camvid, OpenVINO 2026.2, output stride 16, int8, 360x480",
    "drawn scenes 64 to 67, 30 rounds",
    frames=(Stages("480x854", 10.93, 0.35, 10.21, 0.33), Stages("2160x3840", 16.91, 2.1, 10.4, 4.31)),
    classes=(
        Decoding(21, (1080, 1920), 0.092, 1.33, 6.9, 140.2),
        Decoding(150, (1080, 1920), 0.12, 3.88, 31.5, 1650.0),
        Decoding(150, (2160, 3840), 0.12, 10.2, 92.0, None),
    ),
    batches=(Stages("batch 1", 34.1, 0.72, 32.1, 1.2), Stages("batch 4", 33.0, 0.72, 30.9, 1.2)),
    threads=(Stages("threads 1", 20.3, 0.7, 18.4, 1.1),),
    sentences=("The network is the bottleneck at every frame size.",),
)
OURS, ORT, NO_API = "edgeseg, OpenVINO", "edgeseg, ONNX Runtime", "No module named 'model_api' (pip install it)"
PEERS = Comparison(
    "camvid, output stride 16, int8, 360x480",
    "1080x1920, drawn scenes 64 to 67, 100 rounds",
    rows=(
        Row(OURS, "resize, network, exact mask", OURS, "OpenVINO 2026.2", 12.1, (12.0, 12.2), 1.0, (1.0, 1.0), 1.0),
        Row("OpenVINO alone", "the network", OURS, "openvino", 10.6, (10.5, 10.7), 0.88, (0.87, 0.89), None, 52),
        Row("Model API, coarse logits, soft", "all", OURS, missing=f"Model API, coarse logits, soft fails: {NO_API}"),
        Row("Model API, coarse logits, not soft", "all", OURS, missing=f"Model API, coarse logits, not soft: {NO_API}"),
        Row(ORT, "resize, network, exact mask", ORT, "ONNX Runtime", 16.4, (16.3, 16.5), 1.0, (1.0, 1.0), 0.9999),
        Row("ONNX Runtime and numpy", "all", ORT, "onnxruntime", 44.3, (44.0, 44.6), 2.7, (2.67, 2.75), 0.997),
    ),
    stages_ms=(0.7, 10.3, 1.1),
    whole_by_network=1.14,
    whole_by_network_interval=(1.13, 1.15),
    noise=("medians scatter: differences below 9.0% cannot be told",),
    app=App((10.2,) * 3, (10.4,) * 3, 1.02, (1.01, 1.03), "PERFORMANCE_HINT LATENCY", 19.9, "as it comes"),
    app_missing="",
)
HOSTILE = "</script><script>alert('1')</script>\" onload=\"x\" & <b>'"


def measurement(backend: str, precision: str, stride: int, number: int, samples: int = 300) -> Measurement:
    """A configuration with plausible numbers, the same in every run."""
    rng = np.random.default_rng([number, 7])
    network = {8: 62.0, 16: 21.5, 32: 13.5}[stride] * {"fp32": 1.0, "int8": 0.34}[precision]
    network *= {"openvino": 1.0, "ort": 1.22}[backend] * 1e6
    slow = (
        1 + 0.02 * np.abs(rng.standard_normal(samples)) + (rng.random(samples) < 0.02) * rng.uniform(0.05, 0.4, samples)
    )
    stages = [(part * slow * (1 + 0.01 * rng.random(samples))).astype(int) for part in (0.62e6, network, 1.45e6)]
    raw = (0.985 * network * (1 + 0.015 * np.abs(rng.standard_normal(samples)))).astype(int)
    frame = np.sum(stages, axis=0) + 40_000
    began = np.cumsum(np.full(samples, 250_000_000))
    latency = Latency(*(tuple(part.tolist()) for part in (frame, *stages, raw, began)), warmup=12)
    loss = {8: 0.0, 16: 0.9, 32: 3.6}[stride] + (0.12 if precision == "int8" else 0) + 0.01 * (backend == "ort")
    thin = {"pole": 3.2, "sign": 2.4, "fence": 1.6, "pedestrian": 1.9}
    iou = {name: round(value - loss * thin.get(name, 0.5), 3) for name, value in IOU.items()}
    miou = round(float(np.mean(list(iou.values()))), 4)
    accuracy = Accuracy(101, "5a" * 32, miou, (miou - 1.4, miou + 1.3), 92.1 - loss / 4, iou, 71.3 - 2 * loss, 4.5,
                        0.9961 if precision == "int8" else 0.999998, "torch fp32")  # fmt: skip
    load, name = int(4e8 + 1e7 * number), {"openvino": "OpenVINO 2026.2", "ort": "ONNX Runtime 1.24"}[backend]
    ages = tuple((frame[:150] + 300_000).tolist())
    return Measurement(
        Configuration(backend, "cpu", stride, precision, "float" if precision == "fp32" else "cpu"),
        runtime=name,
        device_name="a processor",
        macs=int(6.1e9 * {8: 3.4, 16: 1.0, 32: 0.7}[stride]),
        graph_bytes=9_400_000 if precision == "fp32" else 2_600_000,
        latency=latency,
        start=Start(310_000_000, load, load // 3, int(frame[0] * 1.8), 210_000_000 + 4_000_000 * number),
        rates=tuple(
            FixedRate(hz, ages, 150, int(max(0, 150 - 150e9 / hz / frame.mean()))) for hz in (10.0, 30.0, 60.0)
        ),
        accuracy=accuracy,
        energy_mj=float(network) / 1e6 * 11,
    )


def png(classes: ClassMap) -> str:
    """A class map in its classes' colours."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(CAMVID)] = [info.color[::-1] for info in CAMVID]
    return base64.b64encode(cv2.imencode(".png", palette[classes])[1].tobytes()).decode()


def sample(seed: int, measurements: tuple[Measurement, ...]) -> Sample:
    """A drawn street; masks as coarse as their stride."""
    image, label = street_scene(seed, (180, 320))
    masks = {}
    for one in measurements:
        coarse = label[2 :: one.configuration.output_stride // 3, 2 :: one.configuration.output_stride // 3]
        mask = cv2.resize(coarse, (320, 180), interpolation=cv2.INTER_NEAREST)
        masks[one.configuration.name] = png(mask)
    label[160:] = 255
    frame = base64.b64encode(cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()).decode()
    return Sample(f"street {seed}", frame, png(label), masks)


@pytest.fixture(scope="module")
def results() -> Results:
    return example()


def example() -> Results:
    cells = [(b, p, s) for b in ("openvino", "ort") for p in ("fp32", "int8") for s in (8, 16, 32)]
    measurements = tuple(measurement(*cell, number=number) for number, cell in enumerate(cells))
    return Results(
        bundle="camvid.edgeseg",
        bundle_digest="3f" * 32,
        input_size=(360, 480),
        classes=CLASSES,
        frames=Frames(1080, 1920, "drawn scenes 64 to 71", "9c" * 32),
        host=Host(
            {"processor": "a processor, 2 cores", "memory": "24 GiB", "openvino": "2026.2.0", "onnxruntime": "1.24.1"},
            {"load before": "0.12", "governor": "performance", "clock": "3.05 GHz", "temperature": "51 °C"},
        ),
        noise=Noise(0.021, False),
        method="All configurations in one process, interleaved: each round takes one frame of every configuration in "
        "an order drawn anew. 12 rounds of warm-up came before, until three in a row were within 2 %.",
        command="edgeseg bench --output-stride 8,16,32 --precision fp32,int8 --data camvid --report out.html",
        began="2026-11-23T02:10:00+00:00",
        measurements=measurements,
        samples=tuple(sample(seed, measurements) for seed in (3, 5, 11)),
        growth=GROWTH,
        peers=(PEERS, replace(PEERS, network="camvid, fp32", app=None, app_missing="no app")),
    )  # fmt: skip


class Page(HTMLParser):
    """Every element closed, and by name: its attributes; tables as rows of (text, sort value); all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[tuple[str, str | None]]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append(("", dict(attrs).get("data-v")))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"th", "td"} & set(self.open):
            text, value = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (text + data, value)
        if not {"style", "script"} & set(self.open):
            self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


@pytest.fixture(scope="module")
def text(results: Results) -> str:
    return report.page(results)


def only(results: Results, *indices: int, **changes: Any) -> Results:
    chosen = tuple(replace(results.measurements[index], **changes) for index in indices)
    return replace(results, measurements=chosen, samples=(), growth=None, peers=())


def test_the_page_is_whole_and_holds_all_it_needs(text: str) -> None:
    page = Page(text)
    assert "://" not in text
    for _, attributes in page.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert all(part.startswith("url(data:image/png;base64,") for part in re.findall(r"url\([^)]{0,40}", text))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in page.all("a")} <= {f"#{key}" for key in ids}
    assert all(image.get("alt") for image in page.all("img"))
    assert all(head.get("scope") for head in page.all("th"))
    shown = [svg for svg in page.all("svg") if svg.get("aria-hidden") is None]
    assert text.count('role="img"><title>') == len(shown) > 12 or all(svg.get("role") == "img" for svg in shown)
    assert len(page.all("script")) == len(page.all("main")) == len(page.all("h1")) == 1


def test_numbers_are_the_results_own(results: Results, text: str) -> None:
    page = Page(text)
    heads, lines = page.tables[0][1], page.tables[0][2:]
    names = [name for name, _ in heads]
    assert len(lines) == 12
    found = {line[0][0]: dict(zip(names, line[1:], strict=True)) for line in lines}
    for one in results.measurements:
        assert one.latency is not None
        assert one.accuracy is not None
        backend = {"openvino": "OpenVINO", "ort": "ONNX Runtime"}[one.configuration.backend]
        row = found[f"{backend} {one.configuration.precision}, stride {one.configuration.output_stride}"]
        frame = np.sort(one.latency.frame_ns) / 1e6
        assert float(row["p90"][1] or "") == frame[269]
        assert float(row["p99"][1] or "") == frame[296]
        assert float(row["max"][1] or "") == frame[-1]
        assert row["p99"][0] == report_words.ms(frame[296])
        assert row["mIoU"][0].startswith(f"{one.accuracy.miou:.2f} ±1.")
        ratio = np.median(np.array(one.latency.frame_ns) / np.array(one.latency.raw_ns))
        assert row["frame ×"][0] == f"{ratio:.2f}"
        assert f"{one.accuracy.iou['pole']:.1f}" in [cell for cell, _ in page.tables[1][3]]
    assert page.tables[1][3][0][0] == "pole"
    # two tables have a p50: the runtime's own comes after the frame's
    medians = sorted(np.median(one.latency.raw_ns) / 1e6 for one in results.measurements if one.latency)
    assert sorted(float(row["p50"][1] or "") for row in found.values()) == pytest.approx(medians)


def test_accuracy_is_compared_image_by_image(results: Results) -> None:
    rng = np.random.default_rng(5)
    union = rng.integers(500, 5000, (30, len(CLASSES)))
    hits = (union * rng.uniform(0.3, 1, union.shape)).astype(np.int64)
    tables = [np.stack([hits - loss * union // 100, union]) for loss in (1, 0, 2)]
    judged = []
    for one, table in zip(results.measurements, tables, strict=False):
        iou, miou = means(table.sum(axis=1))
        by_class = dict(zip(CLASSES, iou.tolist(), strict=True))
        interval = (float(miou) - 3, float(miou) + 3)
        accuracy = Accuracy(30, "5a", float(miou), interval, 90.0, by_class, 70.0, 4.5, 1.0, "", quality.pack(table))
        judged.append(replace(one, accuracy=accuracy))
    assert judged[2].accuracy is not None
    other = replace(results.measurements[3], accuracy=replace(judged[2].accuracy, data="5b", miou=1.0))
    found = replace(results, measurements=(*judged, other, results.measurements[4]), samples=())
    rows = report_rows.rows_of(found)
    by_label = dict(zip([row.label for row in rows], report_rows.behind(rows), strict=True))
    labels = [label for _, label in report_rows.labels(found)]
    assert by_label[labels[3]] is by_label[labels[4]] is None  # of other images, and without counts
    assert by_label[labels[1]] == (0, (0, 0))
    drawn = rng.integers(0, 30, (3000, 30))
    for at in (0, 2):
        points, interval = by_label[labels[at]] or (0.0, (0.0, 0.0))
        best, this = (np.array([means(tables[n][:, images].sum(axis=1))[1] for images in drawn]) for n in (1, at))
        assert points == pytest.approx(means(tables[1].sum(axis=1))[1] - means(tables[at].sum(axis=1))[1])
        assert interval == pytest.approx(np.percentile(best - this, [2.5, 97.5]), abs=0.002)
    page = Page(report.page(found))
    heads, line = page.tables[1][0], page.tables[1][-1]
    assert line[0][0] == "to best"
    shown = {head.replace(" stride", ", stride"): text for (head, _), (text, _) in zip(heads, line, strict=True)}
    points = [ahead[0] if (ahead := by_label[label]) else 0.0 for label in labels[:3]]
    assert [shown[label][:4] for label in labels] == [f"{points[0]:.2f}", "best", f"{points[2]:.2f}", "–", "–"]
    assert "so their differences are surer, to about ±0.0" in page.text
    damaged = replace(judged[0], accuracy=replace(judged[2].accuracy, overlaps="eA=="))
    with pytest.raises(InputError, match="the overlaps of an accuracy are damaged"):
        report.page(replace(found, measurements=(damaged, judged[1])))


def test_the_sentence_is_the_best_choice(results: Results) -> None:
    rows = report_rows.rows_of(results)
    chosen = report_rows.picks(rows, 0.02)
    assert [pick.limit for pick in chosen] == sorted(pick.limit or 0 for pick in chosen)
    for pick in chosen:
        assert pick.limit is not None
        within = [row for row in rows if row.frame.interval[1] < pick.limit]
        assert pick.row in within
        assert pick.row.miou >= max(row.miou for row in within) - 0.1
        assert all(row.miou < max(r.miou for r in within) - 0.1 for row in within if row.frame.p50 < pick.row.frame.p50)
    assert chosen[-1].last
    front = report_rows.front(rows)
    beaten = [row for row in rows if any(o.frame.p50 < row.frame.p50 and o.miou >= row.miou for o in rows)]
    assert {row.label for row in rows} == {row.label for row in front} | {row.label for row in beaten}
    assert not {row.label for row in front} & {row.label for row in beaten}
    best = results.measurements[4]
    assert best.latency is not None
    twelve = replace(best.latency, frame_ns=(12_340_000,) * 300)
    accuracy = replace(best.accuracy, miou=72.06) if best.accuracy else None
    one = replace(best, latency=twelve, accuracy=accuracy)
    slow = replace(results.measurements[0], accuracy=accuracy and replace(accuracy, miou=74.0))
    two = replace(results, measurements=(one, slow), samples=())
    said = Page(report.page(two)).text.replace("\u202f", " ")
    assert "For at most 15 ms a frame choose OpenVINO int8 at output stride 16: 12.3 ms, 72.1 mIoU." in said


def test_a_limit_lies_above_the_whole_interval(results: Results) -> None:
    one = results.measurements[5]
    assert one.latency is not None
    wide = replace(one.latency, frame_ns=tuple(8_300_000 + 26_300 * (7 * at % 101) for at in range(101)))
    noisy = replace(results, noise=Noise(0.2, True), measurements=(replace(one, latency=wide), results.measurements[1]))
    found = report_rows.picks(report_rows.rows_of(noisy), noisy.noise.claim)
    low, high = found[0].row.frame.interval
    assert low < found[0].row.frame.p50 < 10 < high < 15
    assert found[0].limit == 15
    low, high = found[1].row.frame.interval
    assert low < found[1].row.frame.p50 < 25 < high < 33
    assert "33\u202fms or more" in Page(report.page(noisy)).text


def test_equal_configurations_are_called_equal(results: Results) -> None:
    one = results.measurements[4]
    other = replace(one, configuration=replace(one.configuration, backend="ort"))
    rows = report_rows.rows_of(replace(results, measurements=(one, other)))
    (pick,) = report_rows.picks(rows, 0.02)
    assert [row.label for row in pick.equals] == ["ONNX Runtime int8, stride 16"]


@pytest.mark.parametrize("noisy", [False, True])
def test_noise_is_on_the_first_screen(results: Results, noisy: bool) -> None:
    reasons = ("times drifted by +9.0% from begin to end",) if noisy else ()
    page = report.page(replace(only(results, 0), noise=Noise(0.094, noisy, reasons)))
    head = page[page.index("<header") : page.index("</header")]
    assert ("Noisy run" in head) == noisy == ("drifted" in head)
    assert ("Quiet run" in head) != noisy
    assert "9.4" in head


def test_hostile_names_stay_text(results: Results) -> None:
    first = results.measurements[0]
    assert first.accuracy is not None
    configuration = replace(first.configuration, backend=HOSTILE, device=HOSTILE, precision=HOSTILE)
    accuracy = replace(first.accuracy, iou={HOSTILE: 50.0}, reference=HOSTILE)
    bad = replace(first, configuration=configuration, accuracy=accuracy)
    failed = replace(first, latency=None, failure=HOSTILE)
    sample = results.samples[0]
    sample = replace(sample, name=HOSTILE, masks={HOSTILE: next(iter(sample.masks.values()))})
    hostile = replace(
        results, bundle=HOSTILE, bundle_digest=HOSTILE, classes={HOSTILE: "red;background:url(x)", **results.classes},
        host=Host({HOSTILE: HOSTILE}, {HOSTILE: HOSTILE}), noise=Noise(0.1, True, (HOSTILE,)), method=HOSTILE,
        command=HOSTILE, began=HOSTILE, frames=Frames(1, 1, HOSTILE, HOSTILE), samples=(sample,),
        measurements=(bad, *results.measurements[1:3], failed),
        growth=replace(GROWTH, network=HOSTILE, sentences=(HOSTILE,), threads=(Stages(HOSTILE, 1.0, 0.2, 0.6, 0.2),)),
        peers=(
            replace(
                PEERS, network=HOSTILE, frames=HOSTILE, noise=(HOSTILE,), app=None, app_missing=HOSTILE,
                rows=(Row(HOSTILE, HOSTILE, HOSTILE, HOSTILE, 1.0, (1.0, 1.0), 1.0, (1.0, 1.0), 1.0), *PEERS.rows[1:]),
            ),
        ),
    )  # fmt: skip
    page = Page(report.page(hostile))
    assert len(page.all("script")) == 1
    assert not any("onload" in attributes for _, attributes in page.elements)
    assert page.text.count(HOSTILE) >= 12
    assert not any("url(x)" in (attributes.get("style") or "") for _, attributes in page.elements)


def test_children_are_escaped_and_markup_is_not() -> None:
    assert tag("p", "a<b", tag("b", 'c"'), None, 2, class_='"') == ('<p class="&quot;">a&lt;b<b>c&quot;</b>2</p>')
    assert isinstance(tag("br"), Html)


def test_what_was_not_measured_is_left_out(results: Results, tmp_path: Path) -> None:
    bare = only(results, *range(12), accuracy=None, start=None, rates=(), energy_mj=None)
    page = Page(report.page(bare))
    ids = {attributes.get("id") for attributes in page.all("section")}
    assert ids == {"latency", "grid", "stages", "spread", "method"}
    assert "The fastest is OpenVINO int8 at output stride 32" in page.text
    assert "mIoU" not in page.text
    blunt = replace(bare, noise=replace(bare.noise, claim=0.9))  # all may be as fast
    assert "Among the fastest is OpenVINO int8 at output stride 32" in Page(report.page(blunt)).text
    one = Page(report.page(only(results, 0)))
    assert "OpenVINO fp32 at output stride 8 takes" in one.text
    assert "chart" not in {attributes.get("id") for attributes in one.all("section")}
    failed = Page(report.page(only(results, 0, latency=None, accuracy=None, start=None, rates=(), failure="no device")))
    assert "Nothing could be measured." in failed.text
    assert "no device" in failed.text
    some = replace(results, measurements=(*results.measurements[:3], *only(results, 5, accuracy=None).measurements))
    assert "1 of 4 configurations are not here" in Page(report.page(some)).text
    none = only(results, 0)
    (few,) = none.measurements
    assert few.latency is not None
    latency = replace(few.latency, frame_ns=few.latency.frame_ns[:5], raw_ns=(), rounds_ns=())
    few = replace(few, latency=latency, rates=(FixedRate(30.0, (), 0, 0),))
    assert summarise(latency.frame_ns).p99 is None
    short = Page(report.page(replace(none, measurements=(few,)))).text
    assert "Too few frames" in short
    assert "dashed" not in short
    assert "The solid line is the median, the dashed one p99; the strip below" in page.text
    save(bare, tmp_path / "out.json")
    assert report.page(read(tmp_path / "out.json")) == report.page(bare)


def test_growth_and_peers_are_the_results_own(results: Results, text: str, tmp_path: Path) -> None:
    page = Page(text)
    classes, int8, _ = page.tables[-3:]
    assert [[cell for cell, _ in line] for line in classes[2:]] == [
        ["21", "9\u202f%", "1.33", "6.90", "140", "–", "–", "–"],
        ["150", "12\u202f%", "3.88", "31.5", "1\u202f650", "10.2", "92.0", "too large"],
    ]
    rows = {line[0][0]: [cell for cell, _ in line[1:]] for line in int8[1:]}
    assert list(rows) == [OURS, "OpenVINO alone", ORT, "ONNX Runtime and numpy"]
    assert rows["OpenVINO alone"] == [
        "10.6 ±0.10", "0.88(0.87 to 0.89)", "–", "the network; openvino; 52 convolutions in int8"
    ]  # fmt: skip
    assert rows["ONNX Runtime and numpy"][1:3] == [f"2.70(2.67 to 2.75)of {ORT}", "99.70\u202f%"]
    for said in (
        "The network is the bottleneck at every frame size.", "2160×3840", "the others take 2.70 times as long",
        f"Model API, coarse logits, soft; Model API, coarse logits, not soft: {NO_API}", "Did not run: no app",
        "edgeseg's session takes 10.4\u202fms, 1.020 (1.010 to 1.030) times", "differences below 9.0%",
        "the whole frame takes 1.140 (1.130 to 1.150) times the network alone",
    ):  # fmt: skip
        assert said in page.text
    save(results, tmp_path / "out.json")
    assert read(tmp_path / "out.json") == results


def test_differences_are_where_a_labelled_pixel_is_another(results: Results, text: str) -> None:
    _, label = street_scene(3, (180, 320))
    name = results.measurements[1].configuration.name
    png_of_mask = base64.b64decode(results.samples[0].masks[name])
    palette = np.array([info.color[::-1] for info in CAMVID], np.uint8)
    wrong = (cv2.imdecode(np.frombuffer(png_of_mask, np.uint8), cv2.IMREAD_COLOR) != palette[label]).any(axis=2)
    wrong[160:] = False
    alt = f"OpenVINO fp32, stride 16: {100 * wrong[:160].mean():.1f}\u202f% not as the label"
    images = [image for image in Page(text).all("img") if image["alt"] == alt]
    data = base64.b64decode((images[0]["src"] or "").partition(",")[2])
    drawn = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(drawn[:, :, 3] > 0, wrong)
    bare = replace(results.samples[0], label="")  # then it is compared with the first fp32 mask, if there is one
    other = replace(bare, masks={name: bare.masks[name]}, name="other")
    page = Page(report.page(replace(results, samples=(bare, other)))).text
    assert "0.0\u202f% not as OpenVINO fp32, stride 8" in page
    assert page.count("% not as") == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame": "!"}, "the frame of street 3 is not base64"),
        ({"frame": base64.b64encode(b"<svg>").decode()}, "the frame of street 3 is not a PNG file"),
        ({"label": "iVBORw0KGgoAAAANSUhEUgAAAUAAAAC0"}, "the label of street 3 is a damaged PNG file"),
        ({"label": png(np.zeros((4, 6), np.uint8))}, "has a mask of 180x320 and a label of 4x6"),
    ],
)
def test_pictures_that_are_none_are_one_line(results: Results, changes: dict[str, str], message: str) -> None:
    bad = replace(results, samples=(replace(results.samples[0], **changes),))
    with pytest.raises(InputError, match=message):
        report.page(bad)


def test_writing_is_whole_or_not_at_all(results: Results, tmp_path: Path) -> None:
    small = only(results, 0)
    report.write(small, tmp_path / "out.html")
    assert (tmp_path / "out.html").read_text(encoding="utf-8") == report.page(small)
    with pytest.raises(InputError, match="cannot write"):
        report.write(small, tmp_path / "none" / "out.html")
    assert [path.name for path in tmp_path.iterdir()] == ["out.html"]


def test_words_in_the_chart_lie_on_few_lines(results: Results) -> None:
    rows = report_rows.rows_of(results)
    best = report_rows.front(rows)
    for size in (report_scatter._WIDE, report_scatter._NARROW):
        plane = report_scatter._plane(rows, size)
        lines = report_scatter._on_lines(plane, rows, best)
        drawn = "".join(report_scatter._labels(plane, rows, best, []))
        found = re.findall(r'x="([\d.]+)" y="([\d.]+)" class="(value|name)[^>]*>([^<]+)<', drawn)
        assert [kind for *_, kind, _ in found].count("value") == len(best)
        for x, y, kind, words in found:
            left, bottom = float(x) - 2, float(y) + 4
            box = (left, bottom - 16, left + report_scatter._LETTER * len(words) + 4, bottom)
            crossed = sum(report_scatter._meet(box, line) for line in lines)
            assert crossed <= (4 if kind == "value" else 0), (size, words)


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
DRIVER = """<!doctype html><body><script>
const said = [];
for (const width of [1440, 390]) {
  const frame = document.createElement("iframe");
  frame.style.width = width + "px"; frame.style.height = "900px"; frame.srcdoc = PAGE;
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement;
    const column = () => [...page.querySelectorAll("#grid tbody tr")].map((row) => row.cells[0].textContent);
    const head = [...page.querySelectorAll("#grid button")].find((one) => one.textContent === "mIoU");
    const before = column(); head.click(); const up = column(); head.click(); const down = column();
    const pre = page.querySelector("pre");
    const menu = page.getElementById("masks"); menu.value = "11";
    menu.dispatchEvent(new frame.contentWindow.Event("change"));
    const mask = [...page.querySelectorAll(".tile.on figcaption")].map((one) => one.textContent);
    const charts = [...page.querySelectorAll("svg.scatter")].filter((one) => one.getBoundingClientRect().width).length;
    said.push({ width, hidden: pre.scrollWidth - pre.clientWidth,
      over: root.scrollWidth - root.clientWidth, before, up, down, mask, charts,
      broken: [...page.images].filter((one) => !one.naturalWidth).length,
      sort: head.parentNode.getAttribute("aria-sort") });
    if (said.length === 2) document.title = JSON.stringify(said);
  };
  document.body.append(frame);
}
</script></body>"""


def test_a_browser_shows_it_sorts_it_and_has_no_room_left_over(text: str, results: Results, tmp_path: Path) -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    page = json.dumps(text).replace("</", "<\\/")
    (tmp_path / "driver.html").write_text(DRIVER.replace("PAGE", page), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               "--window-size=1500,1000", "--virtual-time-budget=20000", "--dump-dom",
               (tmp_path / "driver.html").as_uri()]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr
    wide, phone = sorted(json.loads(Page(title[0]).text), key=lambda one: -one["width"])
    by_miou = sorted(results.measurements, key=lambda one: one.accuracy.miou if one.accuracy else 0)
    for seen in (wide, phone):
        assert seen["over"] == 0  # nothing is wider than the page
        assert seen["hidden"] == 0  # the command wraps
        assert seen["broken"] == 0
        assert seen["charts"] == 1
        assert seen["up"] == seen["down"][::-1] != seen["before"]
        assert seen["sort"] == "descending"
        assert seen["down"][0].endswith(f"{by_miou[-1].configuration.precision}, stride 8")
        assert len(seen["mask"]) == 2 * len(results.samples)
        assert seen["mask"][0] == "mask: ONNX Runtime int8, stride 32"
