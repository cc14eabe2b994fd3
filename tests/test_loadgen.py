"""The real LoadGen drives a small network: verdicts and times are read as it wrote them, its masks score the same."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("mlperf_loadgen")
pytest.importorskip("onnxruntime")

from edgeseg import load
from edgeseg.benchmarks import loadgen
from edgeseg.benchmarks.loadgen_logs import Judged, read_logs, read_masks, score_masks
from edgeseg.benchmarks.quality import measure
from edgeseg.bundle import Bundle
from edgeseg.calibration.datasets import Dataset, open_dataset
from edgeseg.errors import BackendError, BackendMissing, EdgesegError, InputError
from edgeseg.testing import TINY, street_scene

SIZES = [(64, 96), (90, 160), (50, 70)]
TINY_FP32 = {"bundle": TINY, "backend": "ort", "precision": "fp32", "threads": 1}
SHORT = {"min_seconds": 0.1, "min_queries": 20}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of three sizes with labels of the tiny bundle's five classes, some void."""
    folder = tmp_path_factory.mktemp("data")
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for seed, size in enumerate(SIZES):
        frame, classes = street_scene(seed, size)
        cv2.imwrite(str(folder / f"images/{seed}.png"), frame[..., ::-1])
        cv2.imwrite(str(folder / f"labels/{seed}.png"), np.where(classes > 8, 255, np.minimum(classes, 4)))
    return folder


@pytest.fixture(scope="module")
def images(labelled: Path) -> Dataset:
    return open_dataset(labelled / "images", labelled / "labels", classes=Bundle.open(TINY).manifest.classes)


@pytest.fixture(scope="module")
def scored(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Judged]]:
    logs = tmp_path_factory.mktemp("scored") / "logs"
    folders = {"data": labelled / "images", "labels": labelled / "labels"}
    found = loadgen.run(**TINY_FP32, **SHORT, **folders, scenarios=["MultiStream", "Server"], accuracy=True, logs=logs)
    return logs, {one.scenario: one for one in found}


@pytest.fixture(scope="module")
def judged(scored: tuple[Path, dict[str, Judged]], tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Judged]:
    """All four scenarios by the folder of their logs."""
    logs = tmp_path_factory.mktemp("drawn") / "logs"
    found = loadgen.run(
        **TINY_FP32, frame_size=SIZES[0], min_seconds=0.3, scenarios=["SingleStream", "Offline"], logs=logs
    )
    mine = {logs / one.scenario / "performance": one for one in found}
    return mine | {scored[0] / name / "performance": one for name, one in scored[1].items()}


def test_every_scenario_says_what_loadgen_says(judged: dict[Path, Judged]) -> None:
    assert {one.scenario for one in judged.values()} == set(loadgen.SCENARIOS)
    for folder, one in judged.items():
        assert read_logs(folder) == (one if one.accuracy is None else replace_accuracy(one))
        summary = (folder / "mlperf_log_summary.txt").read_text()
        assert f"Result is : {'VALID' if one.valid else 'INVALID'}\n" in summary
        assert f"Scenario : {one.scenario}\n" in summary
        assert f"99.00 percentile latency (ns)   : {one.p99_ns}\n" in summary
        assert one.valid or one.reasons
        assert one.p50_ns <= one.p90_ns <= one.p99_ns
        assert one.queries == len(one.facts.own_ns)
        assert one.query_ns >= one.own_ns > 0
        per_query = {"MultiStream": 8, "Offline": one.samples}.get(one.scenario, 1)
        assert one.samples == one.queries * per_query
        assert one.facts.runtime.startswith("onnxruntime")


def replace_accuracy(one: Judged) -> Judged:
    fields = {name: getattr(one, name) for name in one.__slots__}
    return Judged(**fields | {"accuracy": None})


def test_loadgens_minimums_hold_and_its_figures_fit_the_segmenters(judged: dict[Path, Judged]) -> None:
    found = {one.scenario: one for one in judged.values()}
    single, offline = found["SingleStream"], found["Offline"]
    assert single.valid
    assert single.queries >= 1024
    assert single.query_ns < 2 * single.own_ns
    assert offline.valid
    assert offline.query_ns >= 0.3e9
    # the worker is never idle while the only query lasts: what is not its own is less than the own
    assert offline.query_ns < 2 * offline.own_ns
    assert offline.samples_per_s == pytest.approx(1e9 * offline.samples / offline.query_ns, rel=1e-4)
    assert found["MultiStream"].samples_per_s > 0
    assert found["Server"].target_latency_ns == 100_000_000


def test_a_test_that_was_too_short_is_shown_as_invalid(scored: tuple[Path, dict[str, Judged]]) -> None:
    multi, server = scored[1]["MultiStream"], scored[1]["Server"]
    assert not multi.valid
    assert re.fullmatch(r"Only processed \d+ queries\. Need to process at least 662 .*early stopping\.", *multi.reasons)
    text = loadgen.table([multi, server])
    assert re.search(r"MultiStream +INVALID ", text)
    assert f"MultiStream: {multi.reasons[0]}" in text
    assert f"Server: {server.target_qps:g} queries per second asked for" in text


def test_the_logged_masks_score_exactly_as_quality_does(
    scored: tuple[Path, dict[str, Judged]], images: Dataset
) -> None:
    with load(TINY, backend="ort", precision="fp32", output_stride=16, threads=1) as segmenter:
        wanted = measure(segmenter, images)
        masks = [segmenter(images.frame(index)).class_map.tobytes() for index in range(3)]
    for name, one in scored[1].items():
        assert one.accuracy is not None
        assert one.accuracy.images == 3
        assert one.accuracy.miou == wanted.miou
        assert one.accuracy.pixel_accuracy == wanted.pixel_accuracy
        assert one.accuracy.iou == wanted.iou
        logged = list(read_masks(scored[0] / name / "accuracy"))
        assert len(logged) >= (8 if name == "MultiStream" else 3)
        assert all(data == masks[index] for index, data in logged)


def test_a_log_that_does_not_fit_the_images_is_refused(
    scored: tuple[Path, dict[str, Judged]], images: Dataset, tmp_path: Path
) -> None:
    lines = (scored[0] / "Server/accuracy/mlperf_log_accuracy.json").read_text().splitlines()
    entry, log = next(line for line in lines if '"qsl_idx" : 0,' in line), tmp_path / "mlperf_log_accuracy.json"
    other = re.sub(r'"data" : "..', '"data" : "09', entry)
    for content, kind, told in (
        ([entry], BackendError, "masks of 1 of 3 images"),
        ([entry, other], BackendError, "two masks of 0.png that differ"),
        ([entry.replace('"data" : "', '"data" : "00')], InputError, "has 6145 pixels, the image 64x96"),
        ([entry[:99]], InputError, "cannot be read as LoadGen's log of accuracy"),
    ):
        log.write_text("\n".join(["[", *content, "]"]))
        with pytest.raises(kind, match=told):
            score_masks(tmp_path, images)
    with pytest.raises(BackendError, match="holds no logs of a finished LoadGen test"):
        read_logs(tmp_path)


def test_an_error_in_a_callback_is_one_line_and_leaves_nothing(labelled: Path, tmp_path: Path) -> None:
    broken = tmp_path / "images"
    broken.mkdir()
    (broken / "0.png").write_bytes((labelled / "images/0.png").read_bytes())
    (broken / "1.png").write_bytes(b"no picture")  # LoadGen has it loaded, the warm-up does not
    with pytest.raises(BackendError, match=r"^SingleStream, performance: [^\n]*1\.png[^\n]*$"):
        loadgen.run(**TINY_FP32, **SHORT, data=broken, scenarios=["SingleStream"], logs=tmp_path / "logs")
    assert list(tmp_path.iterdir()) == [broken]


def test_an_error_in_the_worker_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import threading\n"
        "from edgeseg.segmenter import Segmenter\n"
        "real = Segmenter.__call__\n"
        "def call(self, frame):\n"
        "    if threading.current_thread() is not threading.main_thread():\n"
        "        raise MemoryError('none\\nleft')\n"
        "    return real(self, frame)\n"
        "Segmenter.__call__ = call\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BackendError, match=r"^Offline, performance: MemoryError: none left$"):
        loadgen.run(**TINY_FP32, **SHORT, frame_size=SIZES[0], scenarios=["Offline"], logs=tmp_path / "logs")


@pytest.mark.skipif(os.name == "nt", reason="signals and process groups are POSIX")
@pytest.mark.parametrize("sent", ["SIGINT", "SIGKILL"])
def test_no_test_outlives_the_command(sent: str, tmp_path: Path) -> None:
    options = [
        "--backend",
        "ort",
        "--precision",
        "fp32",
        "--frames",
        "64x96",
        "--scenario",
        "singlestream",
        "--min-seconds",
        "30",
    ]
    command = [sys.executable, "-m", "edgeseg.benchmarks.loadgen", str(TINY), *options, "--logs", str(tmp_path / "l")]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        try:
            limit = time.monotonic() + 60
            while not list(tmp_path.glob(".*.tmp/*/*/mlperf_log_*")):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < limit
                time.sleep(0.02)
            process.send_signal(getattr(signal, sent))
            told = process.communicate(timeout=20)[1]
            while _is_alive(process.pid):
                assert time.monotonic() < limit
                time.sleep(0.02)
        finally:
            process.kill()
    if sent == "SIGINT":
        assert process.returncode == 130
        assert "Traceback" not in told
        assert not list(tmp_path.iterdir())


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("arguments", "kind", "told"),
    [
        ({"logs": Path(__file__).parent}, InputError, "tests exists: choose another folder for the logs"),
        ({"scenarios": []}, InputError, "no scenario: choose among SingleStream, MultiStream, Offline, Server"),
        ({"accuracy": True}, InputError, "a test of accuracy needs labelled images"),
        ({"split": "val"}, InputError, "labels, split and ignore are about --data"),
        ({"data": Path(), "frame_size": (5, 5)}, InputError, "images are taken at their own, leave it out"),
        ({"backend": "gpu", "scenarios": ["Server"]}, BackendError, "^Server, performance: unknown backend 'gpu'"),
    ],
)
def test_bad_arguments_are_one_clear_line(
    arguments: dict[str, object], kind: type[EdgesegError], told: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=told) as caught:
        loadgen.run(**{**TINY_FP32, "logs": tmp_path / "logs", **arguments})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_unknown_scenario_and_an_absent_loadgen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(loadgen.main, ["--scenario", "Server,Slow", "--logs", str(tmp_path / "logs")])
    assert "'Slow' is no scenario: choose among SingleStream" in done.output
    monkeypatch.setattr("edgeseg.benchmarks.loadgen.find_spec", lambda name: None)
    with pytest.raises(BackendMissing, match=r'pip install "edgeseg\[loadgen\]"'):
        loadgen.run(**TINY_FP32, logs=tmp_path / "logs")
