"""OpenVINO's benchmark_app against edgeseg's own session: the network only, block by block in turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from edgeseg.benchmarks.extras import App
from edgeseg.benchmarks.peers_race import START_S, Spec, Worker
from edgeseg.benchmarks.spread import ratio
from edgeseg.errors import BackendError, one_line

_RUN = (  # it ends with its parent
    "import sys; from edgeseg.benchmarks.peers_worker import commands; commands(); "
    "from openvino.tools.benchmark.main import main; sys.exit(main())"
)
_TOLD = ("PERFORMANCE_HINT", "OPTIMAL_NUMBER_OF_INFER_REQUESTS", "INFERENCE_NUM_THREADS", "INFERENCE_PRECISION_HINT")
_SHORT = {"<Type: 'float32'>": "f32", "<Type: 'bfloat16'>": "bf16", "<Type: 'float16'>": "f16"}


def against_benchmark_app(
    session: Spec, graph: Path, batch: Path, threads: int, blocks: int, iterations: int, tell: Callable[[str], None]
) -> App:
    """Let benchmark_app (this environment's) and a `session` worker run `iterations` each, in turns, `blocks` times.

    Both synchronously on the same prepared batch, in f32 where the graph is not quantized (or bf16, if the session is),
    for the least latency. Raises BackendError where either fails.
    """
    wanted = ["-hint", "latency"]
    if threads:  # its own rule: the hint and the number of threads exclude each other
        wanted = ["-hint", "none", "-api", "sync", "-nstreams", "1", "-nthreads", str(threads)]
    wanted += ["-infer_precision", "bf16" if session.settings["precision"] == "bf16" else "f32"]
    theirs, ours, settings = [], [], ""
    with tempfile.TemporaryDirectory() as folder, Worker(session, Path(folder)) as worker:
        seconds = START_S + iterations
        worker.ask(f"block {iterations}", seconds)
        for block in range(blocks):
            tell(f"benchmark_app, block {block + 1} of {blocks}")
            median, settings = _benchmark_app(graph, batch, [*wanted, "-niter", str(iterations)], Path(folder), seconds)
            theirs.append(median)
            elapsed = sorted(worker.ask(f"block {iterations}", seconds)["ns"])
            ours.append(elapsed[len(elapsed) // 2] / 1e6)
        default, told = _benchmark_app(graph, batch, ["-niter", str(iterations)], Path(folder), seconds)
    middle, interval = ratio(ours, theirs)
    return App(tuple(theirs), tuple(ours), middle, interval, settings, default, told)


def _benchmark_app(graph: Path, batch: Path, options: list[str], folder: Path, seconds: float) -> tuple[float, str]:
    """Its median latency in milliseconds, and the settings it reports."""
    report = folder / "benchmark_report.json"
    report.unlink(missing_ok=True)
    shared: list[str | Path] = [
        "-m",
        graph,
        "-d",
        "CPU",
        "-i",
        batch,
        "-report_type",
        "no_counters",
        "-json_stats",
        "-report_folder",
    ]
    command, (stdin, ours) = [sys.executable, "-c", _RUN, *shared, folder, *options], os.pipe()
    try:
        done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"benchmark_app does not end within {seconds:g} s") from error
    finally:
        os.close(stdin)
        os.close(ours)
    if done.returncode or not report.exists():
        lines = (done.stderr + done.stdout).splitlines()
        told = [line for line in lines if line.strip() and not line.startswith("[ INFO ]")]
        raise BackendError(f"benchmark_app fails: {one_line(told[-1] if told else 'no message')}")
    pairs = [line.removeprefix("[ INFO ]").strip().partition(": ") for line in done.stdout.splitlines()]
    found = {key: _SHORT.get(value, value) for key, _, value in pairs if key in _TOLD}
    median = json.loads(report.read_text(encoding="utf-8"))["execution_results"]["latency (ms)"]
    return float(median), ", ".join(f"{key} {found[key]}" for key in _TOLD if key in found)
