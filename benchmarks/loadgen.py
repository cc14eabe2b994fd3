"""MLPerf LoadGen drives a Segmenter: SingleStream, MultiStream, Offline and Server, with LoadGen's logs and verdict.

python -m edgeseg.benchmarks.loadgen --precision int8 --output-stride 16 --logs logs
python -m edgeseg.benchmarks.loadgen --data CAMVID --split val --accuracy --scenario SingleStream --logs camvid

A sample is one raw frame in memory, its response the class map at the frame's own size: what a user waits for. MLPerf's
rules time the model on prepared samples, so these are no figures for a submission. A test lasts 60 s, as in MLPerf 0.5
(600 s in later versions), and has at least 1,024 queries in SingleStream (0.5 too), 662 in MultiStream and Server (what
early stopping needs for a 99th percentile), in Offline as many samples as there are images.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import click

from edgeseg import EMBEDDED
from edgeseg._edge import exit_code
from edgeseg._files import replacing_directory
from edgeseg._records import to_json
from edgeseg._terminal import Finite, SizeType, status
from edgeseg.benchmarks.loadgen_logs import Judged, Scenario, read_logs, score_masks
from edgeseg.bundle import Bundle
from edgeseg.calibration.datasets import Dataset, LayoutName, open_dataset
from edgeseg.errors import BackendError, BackendMissing, InputError
from edgeseg.types import Precision, Size

SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
SECONDS = 60.0
QUERIES: dict[Scenario, int] = {"SingleStream": 1024, "MultiStream": 662, "Server": 662}
_OFFLINE = 24576
"""MLPerf's minimum of Offline, where there are as many images."""
_DRAWN = 4
_HEADS = ("", "LoadGen says", "queries", "samples", "p50 ms", "p90", "p99", "samples/s", "query ms", "own ms", "mIoU")


class ScenariosType(click.ParamType):  # type: ignore[type-arg]
    """Names of scenarios separated by commas."""

    name = "NAME,NAME"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[Scenario, ...]:
        known = {name.lower(): name for name in SCENARIOS}
        names = [name.strip() for name in str(value).split(",") if name.strip()]
        for name in names:
            if name.lower() not in known:
                self.fail(f"{name!r} is no scenario: choose among {', '.join(SCENARIOS)}", param, context)
        return tuple(dict.fromkeys(known[name.lower()] for name in names))


@click.command()
@click.argument("bundle", metavar="[BUNDLE]", type=click.Path(path_type=Path), default=EMBEDDED)
@click.option("--scenario", "scenarios", type=ScenariosType(), default=",".join(SCENARIOS), show_default=True)
@click.option("--backend", default="openvino", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", default="int8", show_default=True)
@click.option("--output-stride", type=int, default=16, show_default=True)
@click.option("--threads", type=click.IntRange(0), default=0, help="Of the network; 0: the runtime's choice.")
@click.option("--frames", "frame_size", type=SizeType(), help="Size of drawn scenes, without --data.  [1080x1920]")
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="Images, each at its own size.")
@click.option("--labels", type=click.Path(path_type=Path), metavar="DIR", help="Their labels, where they lie apart.")
@click.option("--layout", default="auto", show_default=True, help="How --data is laid out.")
@click.option("--split", metavar="NAME", help="Which split of --data.")
@click.option("--ignore", type=click.IntRange(0, 255), metavar="N", help="A label value that means no class.")
@click.option("--accuracy", is_flag=True, help="Also LoadGen's test of accuracy, on the labels of --data.")
@click.option("--min-seconds", type=Finite(0.001), default=SECONDS, show_default=True, help="Of each test of speed.")
@click.option("--min-queries", type=click.IntRange(1), help="Of each; MLPerf's if left out. Offline: samples.")
@click.option("--target-latency", "target_latency_ms", type=Finite(0.001), default=100, show_default=True,
              help="Server: milliseconds that 99 % must keep.")  # fmt: skip
@click.option("--target-qps", type=Finite(0.001),
              help="Server: queries per second; half of what one stream reaches if left out.")  # fmt: skip
@click.option("--logs", type=click.Path(path_type=Path), required=True, metavar="DIR", help="New folder for the logs.")
@click.option("--json", "as_json", is_flag=True)
def main(as_json: bool, **options: Any) -> None:
    with status() as tell:
        found = run(tell=tell, **options)
    if as_json:
        click.echo(json.dumps([to_json(one) for one in found], indent=2))
        return
    click.echo(table(found))


def run(
    bundle: Path = EMBEDDED,
    *,
    logs: Path,
    scenarios: Sequence[Scenario] = SCENARIOS,
    backend: str = "openvino",
    device: str = "auto",
    precision: Precision | Literal["auto"] = "int8",
    output_stride: int | None = 16,
    threads: int = 0,
    frame_size: Size | None = None,
    data: Path | None = None,
    labels: Path | None = None,
    layout: LayoutName = "auto",
    split: str | None = None,
    ignore: int | None = None,
    accuracy: bool = False,
    min_seconds: float = SECONDS,
    min_queries: int | None = None,
    target_latency_ms: float = 100.0,
    target_qps: float | None = None,
    tell: Callable[[str], object] = lambda step: None,
) -> tuple[Judged, ...]:
    """Run each scenario in a process of its own and keep LoadGen's files in `logs`/SCENARIO/performance (and accuracy).

    The arguments are the command's and those of `load` and `open_dataset`. `logs` is there when all has ended well,
    else not at all. Raises BackendMissing without LoadGen, InputError or BundleError for what cannot be used,
    BackendError in one line where a test fails.
    """
    if find_spec("mlperf_loadgen") is None:
        raise BackendMissing('LoadGen is not installed: pip install "edgeseg[loadgen]"')
    if not scenarios:
        raise InputError(f"no scenario: choose among {', '.join(SCENARIOS)}")
    if os.path.lexists(logs):
        raise InputError(f"{logs} exists: choose another folder for the logs")
    if data is not None and frame_size is not None:
        raise InputError("frame size is that of drawn scenes: images are taken at their own, leave it out")
    images = _images(bundle, data, labels, layout, split, ignore)
    if accuracy and (images is None or not images.labelled):
        raise InputError("a test of accuracy needs labelled images: give their folder (--data)")
    samples = _DRAWN if images is None else len(images)
    found = []
    with replacing_directory(logs) as folder:
        for scenario in scenarios:
            asked = {
                "scenario": scenario,
                "bundle": str(bundle),
                "backend": backend,
                "device": device,
                "precision": precision,
                "output_stride": output_stride,
                "threads": threads,
                "frame_size": frame_size or (1080, 1920),
                "data": None if data is None else str(data),
                "labels": None if labels is None else str(labels),
                "layout": layout,
                "split": split,
                "ignore": ignore,
                "min_seconds": min_seconds,
                "min_queries": min_queries or QUERIES.get(scenario, min(samples, _OFFLINE)),
                "target_latency_ms": target_latency_ms,
                "target_qps": target_qps,
            }
            judged = read_logs(_test({**asked, "accuracy": False}, folder / scenario / "performance", tell))
            if accuracy and images is not None:
                logged = _test({**asked, "accuracy": True}, folder / scenario / "accuracy", tell)
                judged = dataclasses.replace(judged, accuracy=score_masks(logged, images))
            found.append(judged)
    return tuple(found)


def table(found: Sequence[Judged]) -> str:
    """What was measured in lines for a terminal; what LoadGen holds against a test under it."""
    first = found[0]
    rows = [_HEADS, *map(_cells, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"LoadGen {first.loadgen}, {first.facts.choice}; {first.facts.runtime}, {first.facts.device_name}",
        f"a sample is a raw frame to its class map ({first.facts.frames}): not the prepared samples of MLPerf's rules",
    ]
    for name, *cells in rows:
        right = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        lines.append(f"{name:<{widths[0]}}  " + "  ".join(right))
    for one in found:
        if one.target_latency_ns is not None:
            lines.append(
                f"Server: {one.target_qps:g} queries per second asked for, {one.scheduled_per_s:g} scheduled, 99 % to "
                f"be answered within {one.target_latency_ns / 1e6:g} ms"
            )
        lines += [f"{one.scenario}: {reason}" for reason in one.reasons]
    lines.append("query ms: LoadGen's median (Offline: all); own ms: what the Segmenter itself took for those frames")
    return "\n".join(lines)


def _cells(one: Judged) -> tuple[str, ...]:
    times = (f"{ns / 1e6:.2f}" for ns in (one.p50_ns, one.p90_ns, one.p99_ns))
    return (
        one.scenario,
        "VALID" if one.valid else "INVALID",
        str(one.queries),
        str(one.samples),
        *times,
        f"{one.samples_per_s:.1f}",
        f"{one.query_ns / 1e6:.2f}",
        f"{one.own_ns / 1e6:.2f}",
        "-" if one.accuracy is None else f"{one.accuracy.miou:.2f}",
    )


def _images(
    bundle: Path, data: Path | None, labels: Path | None, layout: LayoutName, split: str | None, ignore: int | None
) -> Dataset | None:
    classes = Bundle.open(bundle, verify=False).manifest.classes
    if data is not None:
        return open_dataset(data, labels, classes=classes, layout=layout, split=split, ignore=ignore)
    if labels is not None or split is not None or ignore is not None:
        raise InputError("labels, split and ignore are about --data: give that too")
    return None


def _test(asked: dict[str, Any], folder: Path, tell: Callable[[str], object]) -> Path:
    """Run one test to its end and return the folder of its logs; the process does not outlive this call."""
    folder.mkdir(parents=True)
    name, begin = f"{asked['scenario']}, {folder.name}", time.monotonic()
    command = [sys.executable, "-m", "edgeseg.benchmarks.loadgen_run", json.dumps({**asked, "folder": str(folder)})]
    with (
        tempfile.TemporaryFile() as stderr,
        # stdin: the test ends when nobody holds it open any more
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr) as process,
    ):
        try:
            while process.poll() is None:
                tell(f"{name}: {time.monotonic() - begin:.0f} s")
                try:
                    process.wait(1)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
        if process.returncode:
            stderr.seek(0)
            told = stderr.read().decode(errors="replace").strip().splitlines()
            raise BackendError(f"{name}: {told[-1] if told else f'ended with exit code {process.returncode}'}")
    return folder


if __name__ == "__main__":
    raise SystemExit(exit_code(main, "loadgen"))
