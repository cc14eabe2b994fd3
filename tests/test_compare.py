"""`edgeseg compare`: ratios and differences against plain resampling, refusals, gates and their exit codes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseg.benchmarks.compare import Comparison, Gate, Verdict, compare, judge
from edgeseg.benchmarks.quality import pack
from edgeseg.benchmarks.results import (
    Accuracy,
    Configuration,
    Frames,
    Host,
    Latency,
    Measurement,
    Noise,
    Results,
    read,
    save,
)
from edgeseg.cli import main
from edgeseg.errors import InputError
from edgeseg.scoring import means

FINE = Configuration("openvino", "cpu", 8, "fp32", "float")
COARSE = Configuration("ort", "cpu", 16, "int8", "cpu", threads=2)


def times(median_ms: float, seed: int = 0, count: int = 200, width: float = 0.02) -> tuple[int, ...]:
    drawn = np.random.default_rng(seed).normal(median_ms, width * median_ms, count)
    return tuple(int(value * 1e6) for value in drawn)


def latency(frame_ms: float, network_ms: float | None = None, **settings: Any) -> Latency:
    raw = () if network_ms is None else times(network_ms, **settings)
    frame = times(frame_ms, **settings)
    return Latency(frame, frame, frame, frame, raw, tuple(range(len(frame))), 10)


def accuracy(table: np.ndarray, data: str = "d" * 64, kept: bool = True) -> Accuracy:
    iou, miou = means(table.sum(axis=1))
    each = {f"class{index}": float(value) for index, value in enumerate(iou)}
    interval = (float(miou) - 2, float(miou) + 2)
    return Accuracy(table.shape[1], data, float(miou), interval, 90, each, 60, 4.5, 1, "", pack(table) if kept else "")


def results(*measurements: Measurement, claim: float = 0.01, **changes: Any) -> Results:
    made = Results(
        bundle="street.edgeseg",
        bundle_digest="b" * 64,
        input_size=(64, 96),
        classes={"road": "#ff0000"},
        frames=Frames(1080, 1920, "drawn scenes 64 to 71", "f" * 64),
        host=Host({"processor": "Some CPU", "cores": "2"}),
        noise=Noise(claim, False),
        method="interleaved",
        command="edgeseg bench",
        began="2026-01-01T00:00:00",
        measurements=measurements,
    )
    return replace(made, **changes)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["compare", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def counts() -> tuple[np.ndarray, np.ndarray]:
    """Hits and unions of 30 images that differ much, and the same with each image a little worse."""
    rng = np.random.default_rng(5)
    union = rng.integers(500, 5000, (30, 3))
    hits = (union * rng.uniform(0.3, 1, union.shape)).astype(np.int64)
    return np.stack([hits, union]), np.stack([hits - union // 100, union])


def test_a_ratio_and_its_interval_as_plain_resampling_has_them() -> None:
    before, after = latency(10, 8), latency(11, 8, seed=1)
    row = compare(results(Measurement(FINE, latency=before)), results(Measurement(FINE, latency=after))).rows[0]
    assert row.frame is not None
    assert row.network is not None
    old, new = np.array(before.frame_ns), np.array(after.frame_ns)
    assert row.frame.change == np.median(new) / np.median(old) == pytest.approx(1.1, abs=0.01)
    rng = np.random.default_rng(3)
    drawn = [np.median(rng.choice(new, 200)) / np.median(rng.choice(old, 200)) for _ in range(2000)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    exact = compare(
        results(Measurement(FINE, latency=before), claim=0), results(Measurement(FINE, latency=after), claim=0)
    ).rows[0]
    assert exact.frame is not None
    assert exact.frame.interval == pytest.approx((low, high), abs=0.003)
    assert row.frame.interval == pytest.approx((0.99 * row.frame.change, 1.01 * row.frame.change), abs=0.001)
    assert row.frame.certain
    assert not row.network.certain


def test_a_run_that_can_tell_little_claims_little() -> None:
    before = results(Measurement(FINE, latency=latency(10)), claim=0.2)
    found = compare(before, results(Measurement(FINE, latency=latency(11)))).rows[0].frame
    assert found is not None
    assert found.interval == pytest.approx((0.8 * found.change, 1.2 * found.change))
    assert not found.certain
    few = compare(before, results(Measurement(FINE, latency=latency(11, count=3)))).rows[0]
    assert few.frame is not None
    assert few.network is None


def test_miou_image_by_image_sees_what_its_intervals_cannot(counts: tuple[np.ndarray, np.ndarray]) -> None:
    before, after = (results(Measurement(FINE, accuracy=accuracy(table))) for table in counts)
    found = compare(before, after)
    row = found.rows[0]
    assert row.paired
    assert row.miou is not None
    assert row.miou.change == pytest.approx(-1, abs=0.05)
    differences = []
    for drawn in np.random.default_rng(0).integers(0, 30, (2000, 30)):
        old, new = (means(table[:, drawn].sum(axis=1))[1] for table in counts)
        differences.append(new - old)
    assert row.miou.interval == pytest.approx(np.percentile(differences, [2.5, 97.5]), abs=1e-9)
    assert row.miou.certain
    assert not found.notes
    alone = compare(before, results(Measurement(FINE, accuracy=accuracy(counts[1], kept=False))))
    assert not alone.rows[0].paired
    assert alone.rows[0].miou is not None
    assert alone.rows[0].miou.interval == pytest.approx((row.miou.change - 4, row.miou.change + 4))
    assert not alone.rows[0].miou.certain
    assert alone.notes == (f"mIoU not compared image by image, only by its intervals: {FINE.name}",)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"host": Host({"processor": "Other", "cores": "2"})}, r"hosts differ in processor \(Some CPU against Other\)"),
        ({"host": Host({"processor": "Some CPU"})}, r"hosts differ in cores \(2 against not said\)"),
        ({"frames": Frames(720, 1280, "photos", "e" * 64)}, r"frames differ \(1080x1920, drawn .* against 720x1280, "),
    ],
)
def test_unlike_runs_are_refused_by_name(change: dict[str, Any], named: str) -> None:
    one = Measurement(FINE, latency=latency(10))
    with pytest.raises(InputError, match=rf"^a and b cannot be compared: {named}.*; do it anyway with --anyway$"):
        compare(results(one), results(one, **change), names=("a", "b"))
    notes = compare(results(one), results(one, **change), anyway=True).notes
    assert len(notes) == 1


def test_runtimes_are_compared_where_both_runs_have_them_in_any_order() -> None:
    one = Measurement(FINE, latency=latency(10))
    runs = [
        results(one, host=Host({"runtimes": said} if said else {}))
        for said in ("ort 1.2, openvino 3", "openvino 3, ort 1.2", "ort 1.2", "", "ort 1.2, openvino 4")
    ]
    for other in runs[:4]:
        assert not compare(runs[0], other).notes
        assert not compare(other, runs[0]).notes
    with pytest.raises(InputError, match=r"hosts differ in runtimes \(openvino 3, ort 1\.2 against openvino 4, ort 1"):
        compare(runs[0], runs[4])


def test_other_images_and_classes_are_refused(counts: tuple[np.ndarray, np.ndarray]) -> None:
    before = results(Measurement(FINE, accuracy=accuracy(counts[0])))
    other = results(Measurement(FINE, accuracy=accuracy(counts[0], data="e" * 64)))
    with pytest.raises(InputError, match=r"labelled images differ \(30 images, d{12} against 30 images, e{12}\)"):
        compare(before, other)
    assert not compare(before, other, anyway=True).rows[0].paired
    fewer = results(Measurement(FINE, accuracy=accuracy(counts[0][:, :, :2])))
    with pytest.raises(InputError, match=r"classes differ \(class0, class1, class2 against class0, class1\)"):
        compare(before, fewer)
    assert not compare(before, fewer, anyway=True).rows[0].paired


def test_a_slower_machine_is_told_from_slower_code() -> None:
    times_ms = ((20, 15), (24, 15), (24, 18))
    one, slower_code, slower_machine = (results(Measurement(FINE, latency=latency(*pair))) for pair in times_ms)
    assert compare(one, slower_code).notes == ()
    (note,) = compare(one, slower_machine).notes
    assert note.startswith("the runtimes alone take 1.20 times as long")


def test_what_only_one_run_has_and_noise_are_told() -> None:
    fine, coarse = Measurement(FINE, latency=latency(10)), Measurement(COARSE, latency=latency(5))
    noisy = results(fine, coarse, noise=Noise(0.2, True, ("times drifted by +9.0 %",)))
    assert compare(noisy, results(fine), names=("a", "b")).notes == (
        "a is noisy: times drifted by +9.0 %",
        "only in a: ort cpu int8 os16 t2",
    )
    with pytest.raises(InputError, match="no configuration in common: openvino cpu fp32 os8 against ort cpu int8 os16"):
        compare(results(fine), results(coarse))


@pytest.mark.parametrize("text", ["slower", "slower-than=5", "slower-than=x%", "miou-drop=-1", "miou-drop=nan", "x=1"])
def test_what_is_no_gate_says_so(text: str) -> None:
    with pytest.raises(InputError, match=r"is no gate: give slower-than=5% or miou-drop=0\.3"):
        Gate.read(text)


def judged(found: Comparison, *gates: str) -> list[str]:
    return [str(one) for one in judge(found, [Gate.read(gate) for gate in gates])]


def test_gates_fire_where_the_whole_interval_is_beyond(counts: tuple[np.ndarray, np.ndarray]) -> None:
    before = results(
        Measurement(FINE, latency=latency(10), accuracy=accuracy(counts[0])),
        Measurement(COARSE, latency=latency(5), accuracy=accuracy(counts[0])),
    )
    after = results(
        Measurement(FINE, latency=latency(10.8), accuracy=accuracy(counts[0])),
        Measurement(COARSE, latency=latency(5.6), accuracy=accuracy(counts[1])),
    )
    found = compare(before, after)
    said = judged(found, "slower-than=5%", "miou-drop=0.5")
    assert said[0].startswith("slower-than=5%: not held: ort cpu int8 os16 t2 takes 1.1")
    assert said[0].endswith(", and 1 more")
    assert said[1].startswith("miou-drop=0.5: not held: ort cpu int8 os16 t2 has -0.9")
    # beyond or at it, not surely
    assert judged(found, "slower-than=11.5%", "miou-drop=1") == ["slower-than=11.5%: held", "miou-drop=1: held"]
    # surely faster and better is below any limit, however little these runs tell
    both = compare(results(after.measurements[1]), results(before.measurements[1]))
    assert judged(both, "slower-than=0%", "miou-drop=0") == ["slower-than=0%: held", "miou-drop=0: held"]
    with pytest.raises(InputError, match=r"miou-drop=0\.3 has nothing to judge"):
        judged(compare(results(Measurement(FINE, latency=latency(1))), after), "miou-drop=0.3")
    broken = results(Measurement(FINE, failure="backend openvino: no"), after.measurements[1])
    assert judged(compare(before, broken), "slower-than=50%") == [
        "slower-than=50%: not held: openvino cpu fp32 os8 no longer runs: backend openvino: no"
    ]


def test_a_gate_finer_than_the_runs_can_tell_cannot_be_judged(counts: tuple[np.ndarray, np.ndarray]) -> None:
    fine = Measurement(FINE, latency=latency(10), accuracy=accuracy(counts[0], kept=False))
    coarse = Measurement(COARSE, latency=latency(5))
    found = compare(results(fine, coarse, claim=0.2), results(fine, coarse))
    assert judge(found, [Gate.read("slower-than=5%"), Gate.read("slower-than=30%"), Gate.read("miou-drop=0.3")]) == (
        Verdict(
            Gate("slower-than", 0.05),
            "cannot be judged",
            "these runs tell no difference below 20.0 % of ort cpu int8 os16 t2",
        ),
        Verdict(Gate("slower-than", 0.3), "held", ""),
        Verdict(
            Gate("miou-drop", 0.3),
            "cannot be judged",
            "these runs tell no difference below 4.00 points of openvino cpu fp32 os8",
        ),
    )
    slower = compare(results(fine, coarse, claim=0.2), results(replace(fine, latency=latency(15)), coarse))
    assert judged(slower, "slower-than=5%")[0].startswith("slower-than=5%: not held: openvino cpu fp32 os8 takes 1.5")


def test_the_command(tmp_path: Path, counts: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    save(results(Measurement(FINE, latency=latency(10, 8), accuracy=accuracy(counts[0]))), before)
    save(results(Measurement(FINE, latency=latency(12, 8), accuracy=accuracy(counts[1]))), after)
    assert read(after).measurements[0].accuracy == accuracy(counts[1])
    code, out, err = run(capsys, before, after)
    assert (code, err) == (0, "")
    verdicts = [line.split("  ")[-1] for line in out.splitlines() if line.startswith("openvino")]
    assert verdicts == ["slower", "no difference told", "worse"]
    assert run(capsys, before, before)[1].count("no difference told") == 3
    code, out, err = run(capsys, before, after, "--fail-if", "slower-than=5%", "--fail-if", "miou-drop=3", "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["gates"]) == (1, False, ["slower-than=5%", "miou-drop=3"])
    assert err.startswith("edgeseg: slower-than=5%: not held: openvino cpu fp32 os8 takes 1.2")
    assert err.count("\n") == 1
    assert [f"edgeseg: {line}" for line in report["failed"]] == err.splitlines()
    assert [one["outcome"] for one in report["verdicts"]] == ["not held", "held"]
    assert not report["notes"]
    gates = [part for gate in ("slower-than=5%", "miou-drop=3") for part in ("--fail-if", gate)]
    code, out, err = run(capsys, before, after, *gates)
    assert (code, err) == (1, "")
    assert out.splitlines()[-3:] == ["", f"gate {report['failed'][0]}", "gate miou-drop=3: held"]
    code, out, err = run(capsys, before, before, "--fail-if", "slower-than=0.1%")
    assert (code, err) == (0, "")
    said = "slower-than=0.1%: cannot be judged: these runs tell no difference below 1.0 % of openvino cpu fp32 os8"
    assert out.splitlines()[-1] == f"gate {said}"
    assert out.count("0.1%") == 1
    assert report["configurations"][0]["frame_ns"]["certain"]
    for arguments, named in (
        ([before, tmp_path / "none.json"], "cannot read"),
        ([before, after, "--fail-if", "much"], "'much' is no gate"),
        ([before], "Missing argument"),
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert named in err
