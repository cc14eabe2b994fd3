"""The peers' comparison: everyone computes the same network, takes turns, and who is absent is said with the reason."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from edgeseg import EMBEDDED
from edgeseg._edge import exit_code
from edgeseg.benchmarks import peers_race
from edgeseg.benchmarks.extras import Comparison
from edgeseg.benchmarks.feed import frames_of
from edgeseg.benchmarks.peers import NETWORK, OURS, compare, main, table
from edgeseg.benchmarks.peers_contenders import MODEL_API, contenders
from edgeseg.benchmarks.peers_graph import IMAGE, usual_graph
from edgeseg.benchmarks.peers_race import Spec, Worker, race
from edgeseg.bundle import Bundle
from edgeseg.errors import BackendError, InputError
from edgeseg.surgery.onnx_file import read_onnx
from edgeseg.testing import TINY, street_scene
from edgeseg.types import Encoding, Precision

FRAME = (135, 240)


@pytest.fixture(scope="module")
def tiny() -> Comparison:
    return compare(path=TINY, output_stride=16, precision="fp32", frame=FRAME, threads=1, rounds=2, blocks=1)


@pytest.mark.parametrize(("precision", "encoding"), [("fp32", "float"), ("int8", "cpu")])
def test_the_usual_graph_is_the_same_network(precision: Precision, encoding: Encoding, tmp_path: Path) -> None:
    bundle = Bundle.open(EMBEDDED)
    model = bundle.model(bundle.variant(32, precision, encoding))
    usual = usual_graph(model, bundle.manifest.preprocess, tmp_path / "usual.onnx")
    pixels = street_scene(3, usual.size)[0]
    image = (pixels.astype(np.float32) - np.float32(usual.mean)) / np.float32(usual.std)
    feeds = {model.path: {"pixels": pixels[None]}, usual.path: {IMAGE: image.transpose(2, 0, 1)[None]}}
    wanted, found = (onnxruntime.InferenceSession(path).run(None, feed)[0] for path, feed in feeds.items())
    assert np.abs(found - wanted).max() <= (0 if precision == "int8" else 1e-4)


@pytest.mark.parametrize(("precision", "encoding"), [("fp32", "float"), ("int8", "cpu")])
def test_enlarged_logits_are_those(precision: Precision, encoding: Encoding, tmp_path: Path) -> None:
    bundle = Bundle.open(EMBEDDED)
    model = bundle.model(bundle.variant(32, precision, encoding))
    graphs = [
        usual_graph(model, bundle.manifest.preprocess, tmp_path / f"{enlarged}.onnx", enlarged=enlarged)
        for enlarged in (False, True)
    ]
    image = np.random.default_rng(0).normal(size=(1, 3, *graphs[0].size)).astype(np.float32)
    logits, found = (onnxruntime.InferenceSession(one.path).run(None, {IMAGE: image})[0][0] for one in graphs)
    wanted = logits.astype(np.float64)
    for axis in (1, 2):
        length = graphs[0].size[axis - 1]
        matrix = np.stack([_tent(place, wanted.shape[axis], length) for place in range(length)])
        wanted = np.moveaxis(np.tensordot(matrix, wanted, (1, axis)), 0, axis)
    assert found.shape == wanted.shape == (11, 360, 480)
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def _tent(place: int, cells: int, length: int) -> np.ndarray:
    """What each cell counts at one of `length` places, which as the cells lie at the middle of theirs."""
    at = np.clip((place + 0.5) * cells / length - 0.5, 0, cells - 1)
    return np.maximum(0, 1 - np.abs(np.arange(cells) - at))


def test_a_graph_of_another_front_is_refused(tmp_path: Path) -> None:
    bundle = Bundle.open(TINY)
    model = bundle.model(bundle.variant(16, "fp32"))
    graph = read_onnx(model.path)
    next(node for node in graph.graph.node if node.op_type == "Mul").op_type = "Div"
    onnx.save(graph, tmp_path / "other.onnx")
    with pytest.raises(InputError, match=r"begins with Cast, Transpose, Div, Add: only graphs that edgeseg wrote"):
        usual_graph(
            dataclasses.replace(model, path=tmp_path / "other.onnx"), bundle.manifest.preprocess, tmp_path / "u"
        )


def test_everyone_here_runs_and_agrees(tiny: Comparison) -> None:
    rows = {row.name: row for row in tiny.rows}
    ran = {name for name, row in rows.items() if not row.missing}
    assert ran >= {OURS, NETWORK, "edgeseg, ONNX Runtime", "ONNX Runtime and numpy"}
    assert rows[OURS].ratio == rows[OURS].agreement == 1
    assert rows[NETWORK].agreement is None
    assert rows[NETWORK].quantized == 0
    assert rows["edgeseg, ONNX Runtime"].agreement > 0.9999
    assert rows["ONNX Runtime and numpy"].agreement > 0.999  # cv2 rounds its weights otherwise
    assert all(row.interval[0] <= row.ms <= row.interval[1] for row in tiny.rows if not row.missing)
    assert tiny.whole_by_network > 0
    text = table(tiny)
    assert all(row.name in text for row in tiny.rows)
    assert "noise: " in text


def test_model_api_that_is_not_here_is_told_in_a_line(tiny: Comparison) -> None:
    if importlib.util.find_spec("model_api"):
        pytest.skip("openvino-model-api is installed here")
    assert not any(row.name.startswith(MODEL_API) for row in tiny.rows)
    assert [line for line in table(tiny).splitlines() if MODEL_API in line] == [
        "Model API: not asked for (--peers PYTHON, of an environment that has it)"
    ]


@pytest.mark.parametrize("python", ["no/python", "/bin/ls"])
def test_a_python_without_it_is_told_at_once(python: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, "peers", ["--peers", python]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith(f"peers: --peers: {'cannot start no/python' if 'no/' in python else '/bin/ls has no'}")


def test_a_worker_that_is_no_worker_is_one_line(tmp_path: Path) -> None:
    spec = Spec("a peer", "", "a peer", {}, python=Path("/bin/echo"))
    with pytest.raises(BackendError, match=r"^a peer answers '-I .*peers_worker.py .*, which is no answer$"):
        Worker(spec, tmp_path)


def test_benchmark_app_runs_the_same_graph_with_the_same_settings(tiny: Comparison) -> None:
    assert tiny.app is not None, tiny.app_missing
    assert tiny.app.theirs_ms[0] > 0
    assert tiny.app.ours_ms[0] > 0
    assert "INFERENCE_NUM_THREADS 1, INFERENCE_PRECISION_HINT f32" in tiny.app.settings
    assert "PERFORMANCE_HINT THROUGHPUT" in tiny.app.default_settings


def test_model_api_runs_the_same_quantized_network() -> None:
    python = os.environ.get("EDGESEG_PEERS")
    if not python:
        pytest.skip("no peers: set EDGESEG_PEERS to the Python of an environment with openvino-model-api")
    found = compare(
        path=EMBEDDED, output_stride=32, precision="int8", frame=FRAME, peers=Path(python), rounds=1, blocks=0
    )
    rows = {row.name: row for row in found.rows}
    api = [row for name, row in rows.items() if name.startswith("Model API")]
    assert [row.missing for row in api] == [""] * 8
    assert {row.quantized for row in api} == {rows[NETWORK].quantized}
    enlarged, coarse = ([row.agreement for row in rows] for rows in (api[:4], api[4:]))
    assert 0.9 < max(coarse) < min(enlarged) < 1  # its mask is enlarged from the logits' size by nearest


def test_a_worker_that_fails_is_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", np.zeros((1, 8, 8, 3), np.uint8))
    settings = {"kind": "openvino", "frames": str(tmp_path / "frames.npy"), "graph": "none.onnx", "threads": 1}
    with pytest.raises(BackendError, match=r"^alone fails: [^\n]+ \(get it\)$"):
        Worker(Spec("alone", "", "", settings, needs="get it"), tmp_path)
    with pytest.raises(BackendError, match=r"alone: cannot start .*none: No such file"):
        race([Spec("alone", "", "", settings, python=tmp_path / "none")], 1, lambda step: None)


def test_a_worker_that_hangs_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(signal, "SIGSTOP"):
        pytest.skip("no signal stops a process here")
    _, ours, network, *_ = contenders(Bundle.open(TINY), 16, "fp32", frames_of(None, FRAME)[0], tmp_path, None, None, 1)
    made: list[Kept] = []

    class Kept(Worker):
        def __init__(self, spec: Spec, folder: Path) -> None:
            super().__init__(spec, folder)
            made.append(self)

    def tell(step: str) -> None:
        if step == stopped_at:
            os.kill(made[-1]._process.pid, signal.SIGSTOP)

    monkeypatch.setattr(peers_race, "Worker", Kept)
    monkeypatch.setattr(peers_race, "TURN_S", 0.5)
    stopped_at = "round 2 of 3"
    ran, missing = race([ours, network], 3, tell)
    assert missing == {NETWORK: "does not answer within 0.5 s"}
    assert list(ran) == [OURS]
    assert len(ran[OURS].ns) == 3
    with pytest.raises(BackendError, match=rf"^{OURS} does not answer within 0\.5 s$"):
        race([ours], 3, tell)
    assert all(worker._process.returncode is not None for worker in made)
    monkeypatch.setattr(peers_race, "START_S", 0.05)
    with pytest.raises(BackendError, match=r"^edgeseg, OpenVINO does not answer within 0\.05 s$"):
        Worker(ours, tmp_path)


PEERS = (  # a shell's background job ignores Ctrl-C, and so would what it starts
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('edgeseg.benchmarks.peers', run_name='__main__')"
)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are looked up in /proc")
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_no_child_outlives_the_run(kind: signal.Signals, tmp_path: Path) -> None:
    options = ["--bundle", str(TINY), "--precision", "fp32", "--frames", "135x240", "--rounds", "1000000"]
    command, environment = [sys.executable, "-c", PEERS, *options], os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        _wait(lambda: len(_children(process.pid)) >= 2)
        children = _children(process.pid)
        process.send_signal(kind)
        told = process.communicate(timeout=60)[1].strip()
    if kind == signal.SIGINT:
        assert (process.returncode, told) == (130, "peers: interrupted")
    _wait(lambda: not any(_runs(child) for child in children))


def _wait(there: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not there():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def _children(pid: int) -> list[int]:
    """Of Linux; the parent is the second field behind the name, which is in brackets."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # a zombie's is empty
    return False
