"""Growth and peers beside a grid: what cannot run is told before it, all is kept in the file, compare ignores it."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from edgeseg import cli
from edgeseg.benchmarks import extras_run, growth
from edgeseg.benchmarks.compare import compare
from edgeseg.benchmarks.extras import App, Comparison, Decoding, Growth, Row, Stages
from edgeseg.benchmarks.extras_run import planned
from edgeseg.benchmarks.results import Configuration, Frames, Host, Latency, Measurement, Noise, Results, read, save
from edgeseg.bundle import Bundle
from edgeseg.errors import BackendError, BackendMissing, EdgesegError, InputError
from edgeseg.loading import EMBEDDED
from edgeseg.testing import TINY

STAGES = Stages("60x80", 3.5, 0.5, 2.0, 1.0)
GROWTH = Growth("tiny", "drawn", (STAGES,), (Decoding(2, (60, 80), 0.1, 1.0, 2.0, None),), (STAGES,), (), ("So.",))
ROWS = (
    Row("edgeseg", "all", "edgeseg", "OpenVINO", 2.0, (1.5, 2.5), 1.0, (1.0, 1.0), agreement=0.5, quantized=3),
    Row("torch", "network", "edgeseg", missing="not here"),
)
APP = App((2.0, 2.5), (2.0, 2.0), 0.9, (0.8, 1.0), "latency", 9.0, "throughput")
PEERS = (
    Comparison("tiny int8", "60x80", ROWS, (0.5, 1.0, 0.5), 1.1, (1.0, 1.2), ("late",), APP, ""),
    Comparison("tiny fp32", "60x80", ROWS, (0.5, 1.0, 0.5), 1.1, (1.0, 1.2), (), None, "no benchmark_app"),
)


def results(**changes: Any) -> Results:
    latency = Latency(*(((1_000_000, 1_100_000, 1_050_000),) * 6), warmup=3)
    one = Measurement(Configuration("ort", "cpu", 16, "fp32", "float"), latency=latency)
    made = Results("tiny", "b" * 64, (64, 96), {}, Frames(60, 80, "drawn", "f"), Host({}), Noise(0.01, False), "", "",
                   "", (one,))  # fmt: skip
    return replace(made, **changes)


def test_the_file_keeps_them_and_older_files_and_compare_do_without(tmp_path: Path) -> None:
    whole, file = results(growth=GROWTH, peers=PEERS), tmp_path / "out.json"
    save(whole, file)
    assert read(file) == whole
    data = json.loads(file.read_text(encoding="utf-8"))
    assert data["growth"]["classes"][0]["frame"] == [60, 80]
    del data["growth"], data["peers"]
    file.write_text(json.dumps(data), encoding="utf-8")
    assert read(file) == results()
    assert compare(results(), whole) == compare(results(), results())


@pytest.mark.parametrize(
    ("path", "strides", "precisions", "found"),
    [
        (EMBEDDED, None, None, (16, ("int8", "fp32"))),
        (EMBEDDED, (8, 32), ("fp32",), (32, ("fp32",))),  # of two the middle is the coarser
        (EMBEDDED, (8,), ("int8", "fp32"), (8, ("int8", "fp32"))),
        (TINY, None, None, (16, ("fp32",))),
    ],
)
def test_a_plan_is_of_what_the_grid_has(
    path: Path, strides: tuple[int, ...] | None, precisions: Any, found: tuple[int, tuple[str, ...]]
) -> None:
    plan = planned(Bundle.open(path, verify=False), strides, ["ort"], precisions, 0, growth=True)
    assert (plan.output_stride, plan.precisions, plan.growth, plan.peers) == (*found, True, None)


@pytest.mark.parametrize(
    ("absent", "arguments", "kind", "told"),
    [
        ("onnx", {"growth": True}, BackendMissing, r'--growth needs the package onnx: pip install "edgeseg\[onnx\]"'),
        ("openvino", {"peers": Path("python")}, BackendMissing, "--peers needs the package openvino: pip install"),
        ("", {"peers": Path("no/python")}, InputError, "--peers: cannot start .*python: "),
        ("", {"peers": Path(__file__).parent}, InputError, "--peers: cannot start .*tests: "),
        ("torch", {"peers": Path("python"), "weights": Path("x")}, BackendMissing, "--weights needs the package torch"),
        ("", {"peers": Path("python"), "weights": Path("nowhere")}, InputError, "--weights: there is no file nowhere"),
        ("", {"peers": Path(sys.executable)}, InputError, "has no Model API .*No module named"),
        ("", {"growth": True, "output_strides": [4]}, EdgesegError, "no output stride 4"),
        ("", {"growth": True, "backends": ["gpu"]}, BackendError, "unknown backend 'gpu'"),
    ],
)
def test_what_cannot_run_is_one_line_before_the_grid(
    absent: str, arguments: dict[str, Any], kind: type[EdgesegError], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if arguments.get("peers") == Path(sys.executable) and importlib.util.find_spec("model_api"):
        pytest.skip("Model API is here")
    monkeypatch.setattr(extras_run, "find_spec", lambda name: None if name == absent else object())
    given = {"output_strides": None, "backends": ["ort"], **arguments}
    with pytest.raises(kind, match=told) as caught:
        planned(Bundle.open(TINY), precisions=None, threads=0, **given)
    assert "\n" not in str(caught.value)


def test_the_command_measures_them_after_the_grid(
    tmp_path: Path, tiny_int8: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = pytest.importorskip("edgeseg.benchmarks.peers", reason="peers need openvino")
    pytest.importorskip("openvino")
    asked = list[dict[str, Any]]()

    def measure(found: Any, **options: Any) -> Any:
        assert "ort cpu int8 os16" in capsys.readouterr().out or asked  # after the grid's table
        assert len([part for part in (read(out).growth, *read(out).peers) if part]) == len(asked)  # written at once
        asked.append(options)
        return found

    # both take minutes; tests of their own run them
    monkeypatch.setattr(growth, "grow", functools.partial(measure, GROWTH))
    monkeypatch.setattr(peers, "compare", functools.partial(measure, PEERS[0]))
    monkeypatch.setattr(extras_run, "check_python", lambda python: None)
    monkeypatch.setattr(extras_run, "find_spec", lambda name: object())  # torch, which the stand-in does not use
    out, page, weights = (tmp_path / name for name in ("out.json", "out.html", "x.safetensors"))
    weights.touch()
    small_grid = ["--backend", "ort", "--output-stride", "16", "--frames", "60x80", "--seconds", "3", "--no-start"]
    more = ["--growth", "--peers", "python", "--weights", str(weights), "--json", str(out), "--report", str(page)]
    assert cli.main(["bench", str(tiny_int8), *small_grid, *more]) == 0
    found = read(out)
    assert (found.growth, found.peers) == (GROWTH, (PEERS[0], PEERS[0]))
    assert all(part in page.read_text(encoding="utf-8") for part in ("As the work grows", "Beside others"))
    assert growth.table(GROWTH) in capsys.readouterr().out
    shared = {"path": tiny_int8, "output_stride": 16}
    assert all(one.items() >= shared.items() for one in asked)
    assert [(one["precision"], one["rounds"]) for one in asked] == [("int8", 3), ("int8", 5), ("fp32", 5)]
    assert asked[0]["backend"] == "ort"
    assert all((one["peers"], one["weights"]) == (Path("python"), weights) for one in asked[1:])
    assert asked[1]["frame"] == (60, 80)


def test_bad_options_for_peers_are_told_before_the_grid(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    assert cli.main(["bench", str(TINY), "--backend", "ort", "--peers", "nowhere"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("edgeseg: --peers: cannot start nowhere: ")
    assert captured.err.count("\n") == 1
    assert not captured.out
