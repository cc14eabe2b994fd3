"""`edgeseg bench`: every stride, precision and backend on this machine, from raw frame to mask, and how surely."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import click

from edgeseg._terminal import Finite, NumbersType, SizeType, status
from edgeseg.benchmarks import report as reports
from edgeseg.benchmarks.bench import bench
from edgeseg.benchmarks.extras_run import extended, planned, tables
from edgeseg.benchmarks.grid import grid
from edgeseg.benchmarks.resized import as_asked
from edgeseg.benchmarks.results import Measurement, Noise, Results, save
from edgeseg.benchmarks.spread import LIMIT, P99_SAMPLES, ratio, summarise
from edgeseg.bundle import Bundle
from edgeseg.calibration.datasets import LayoutName, open_dataset
from edgeseg.errors import InputError
from edgeseg.loading import EMBEDDED
from edgeseg.types import Precision, Size

_LAYOUTS = ["auto", "folders", "camvid", "voc", "cityscapes", "ade20k"]
_EPILOG = """
\b
Example: edgeseg bench --report bench.html
         edgeseg bench street.edgeseg --backend openvino --precision int8 --rate 30 --json street.json
         edgeseg bench --data camvid --split val --thorough --json thorough.json
         edgeseg bench street.edgeseg --size 512x512 --weights street.safetensors
         edgeseg bench --growth --peers ~/peers/bin/python --report bench.html
"""


@click.command(epilog=_EPILOG)
@click.argument("bundle_path", metavar="[BUNDLE]", type=click.Path(path_type=Path), default=EMBEDDED)
@click.option("--output-stride", "strides", type=NumbersType(int), help="Only these; all of the bundle's if left out.")
@click.option("--backend", default="all", show_default=True, metavar="NAME,NAME",
              help="openvino, ort, tensorrt or plug-ins; all that are here, but reference and simulate.")  # fmt: skip
@click.option("--precision", metavar="NAME,NAME",
              help="fp32, fp16, int8, bf16; all but bf16 that bundle and backend have if left out.")  # fmt: skip
@click.option("--frames", "frame_size", type=SizeType(), default="1080x1920", show_default=True,
              help="Size of the frames that are timed.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR",
              help="Images for the frames; labelled ones: measure accuracy too. Drawn scenes if left out.")  # fmt: skip
@click.option("--labels", type=click.Path(path_type=Path), metavar="DIR",
              help="Their labels, where they lie elsewhere.")  # fmt: skip
@click.option(
    "--layout", type=click.Choice(_LAYOUTS), default="auto", show_default=True, help="How --data is laid out."
)
@click.option("--split", metavar="NAME", help="Which split of --data.")
@click.option("--ignore", type=click.IntRange(0, 255), metavar="N", help="A label value that means no class.")
@click.option("--weights", type=click.Path(path_type=Path), metavar="FILE",
              help="The bundle's checkpoint: for --size, and on --data agreement is then with torch "
              "fp32.")  # fmt: skip
@click.option("--size", type=SizeType(), help="Measure the network at this input size, exported anew from --weights.")
@click.option("--calibrate-on", type=click.Path(path_type=Path), metavar="DIR",
              help="Images for its int8, none of --data; drawn scenes if left out.")  # fmt: skip
@click.option("--rate", "rates", type=NumbersType(float), help="Also simulate cameras of these rates, in Hz: 10,30,60.")
@click.option("--seconds", type=Finite(1), default=60, show_default=True,
              help="How long all configurations together are sampled; "
              "less than 60 shortens --growth and --peers.")  # fmt: skip
@click.option("--thorough", is_flag=True,
              help="1024 frames and 60 s for each configuration, and every one's cold start.")  # fmt: skip
@click.option("--no-start", is_flag=True, help="Leave out the cold starts.")
@click.option("--threads", type=click.IntRange(0), default=0, metavar="N",
              help="CPU threads of the network; 0: the runtime's choice.")  # fmt: skip
@click.option("--growth", is_flag=True,
              help="Then also the cost as frames, classes, batch and threads grow.")  # fmt: skip
@click.option("--peers", type=click.Path(path_type=Path), metavar="PYTHON",
              help="Then also others on the same graph and frames; PYTHON is of an environment with "
              "openvino-model-api.")  # fmt: skip
@click.option("--json", "json_path", type=click.Path(path_type=Path), metavar="FILE.json", help="Write every sample.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.html", help="Write a page with charts.")
@click.option("--overwrite", is_flag=True, help="Replace these files where they exist.")
def command(
    bundle_path: Path,
    strides: tuple[int, ...] | None,
    backend: str,
    precision: str | None,
    frame_size: Size,
    data: Path | None,
    labels: Path | None,
    layout: LayoutName,
    split: str | None,
    ignore: int | None,
    weights: Path | None,
    size: Size | None,
    calibrate_on: Path | None,
    rates: tuple[float, ...] | None,
    seconds: float,
    thorough: bool,
    no_start: bool,
    threads: int,
    growth: bool,
    peers: Path | None,
    json_path: Path | None,
    report: Path | None,
    overwrite: bool,
) -> None:
    """Measure a bundle on this machine: every output stride, precision and backend, taking turns.

    Without a BUNDLE the embedded street network, in less than two minutes. Times are of one stream, from the raw frame
    to the class map at the frame's own size; raw is the runtime's own inference of the same graph in the same rounds.
    """
    for file in filter(None, (json_path, report)):
        _check_writable(file, overwrite)
    if json_path is not None and report is not None and json_path.resolve() == report.resolve():
        raise InputError(f"--json and --report are both {report}: give two files")
    images, bundle = None, Bundle.open(bundle_path, verify=False)
    if data is not None:
        classes = bundle.manifest.classes
        images = open_dataset(data, labels, classes=classes, layout=layout, split=split, ignore=ignore)
    elif labels is not None or split is not None or ignore is not None:
        raise InputError("--labels, --split and --ignore are about --data: give that too")
    elif weights is not None and size is None and peers is None:
        raise InputError("--weights is for --data, --size or --peers: give one of these too")
    backends = None if backend == "all" else _names(backend)
    precisions = None if precision is None else cast(list[Precision], _names(precision))
    plan = None
    if growth or peers is not None:
        plan = planned(bundle, strides, backends, precisions, threads, growth=growth, peers=peers, weights=weights)
    if size is not None:
        grid(bundle, strides, backends, precisions, threads)  # mistakes are told before minutes of exporting
    with status() as tell:
        bundle, exported = as_asked(
            bundle,
            size,
            Path(click.get_current_context().with_resource(tempfile.TemporaryDirectory())),
            weights=weights,
            calibrate_on=calibrate_on,
            apart_from=images,
            output_strides=strides,
            int8=precisions is None or "int8" in precisions,
            progress=tell,
        )
        results = bench(
            bundle.path,
            output_strides=strides,
            backends=backends,
            precisions=precisions,
            frame_size=frame_size,
            images=images,
            weights=weights,
            threads=threads,
            seconds=seconds,
            thorough=thorough,
            rates=rates or (),
            starts=not no_start,
            command=shlex.join(["edgeseg", *sys.argv[1:]]),
            progress=tell,
        )
    if exported:
        results = replace(results, method=f"Measured is the {exported}. {results.method}")
    _write(results, json_path, report)
    for line in [*_lines(results), *filter(None, [exported])]:
        click.echo(line)
    if plan is not None:
        with status() as tell:
            for more in extended(results, plan, bundle, images=images, seconds=seconds, tell=tell):
                results = more
                _write(results, json_path, report)  # whatever happens, what is measured so far is kept
        for text in tables(results):
            click.echo(f"\n{text}")
    for file in filter(None, (json_path, report)):
        click.echo(f"written to {file}")


def _write(results: Results, json_path: Path | None, report: Path | None) -> None:
    if json_path is not None:
        save(results, json_path)
    if report is not None:
        reports.write(results, report)


def _check_writable(file: Path, overwrite: bool) -> None:
    """Before minutes of measuring, not after."""
    if file.is_dir():
        raise InputError(f"cannot write {file}: it is a folder")
    if file.exists() and not overwrite:
        raise InputError(f"{file} exists, perhaps a run to compare with: choose another name, or allow --overwrite")
    if not file.parent.is_dir():
        raise InputError(f"cannot write {file}: there is no folder {file.parent}")
    try:
        tempfile.TemporaryFile(dir=file.parent).close()  # root may write anywhere, by os.access
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror or error}") from error


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


_HEADS = (
    *("", "p50 ms", "p90", "p99", "max", "pre", "net", "dec", "raw", "whole/raw"),
    *("fps", "MB", "mJ", "mIoU"),
)
"""Short, and p90 and max only where there is no p99: in a terminal of 120 columns a row is a line."""


def _lines(results: Results) -> Iterator[str]:
    """The table, then what does not fit in it, then how sure it is."""
    height, width = results.input_size
    frames = results.frames
    yield (
        f"{results.bundle}, network {height}x{width}, {frames.source}, {frames.height}x{frames.width}, "
        f"on {results.host.fixed.get('processor', 'an unknown processor')}"
    )
    measured = [one for one in results.measurements if one.latency is not None]
    rows = [_HEADS, *(_cells(one, results.noise.claim) for one in measured)]
    kept = [column for column in range(len(_HEADS)) if any(row[column] not in ("", "-") for row in rows[1:])]
    widths = {column: max(len(row[column]) for row in rows) for column in kept}
    for row in rows:
        cells = [f"{row[column]:>{widths[column]}}" if column else f"{row[0]:<{widths[0]}}" for column in kept]
        yield "  ".join(cells).rstrip()
    fewest = min(len(one.latency.frame_ns) for one in measured if one.latency)
    if fewest < P99_SAMPLES:
        needs = f"it needs {P99_SAMPLES} (--seconds, --thorough, or fewer configurations)"
        yield f"p90 and max instead of p99: {fewest} frames each, {needs}"
    labelled = [one.accuracy for one in measured if one.accuracy]
    if labelled:
        widest = max((high - low) / 2 for low, high in (one.interval for one in labelled))
        yield f"mIoU on {labelled[0].images} labelled images, ± {widest:.1f} or less at 95 %"
    for one in results.measurements:
        yield from _more(one)
    yield noise_line(results.noise)


def _cells(one: Measurement, claim: float) -> tuple[str, ...]:
    assert one.latency is not None
    latency, whole = one.latency, summarise(one.latency.frame_ns, claim)
    stages = (latency.preprocess_ns, latency.network_ns, latency.decode_ns)
    over, p99 = "-", whole.p99
    if latency.raw_ns:
        share, (low, high) = ratio(latency.frame_ns, latency.raw_ns)
        over = f"{share:.2f} ({low:.2f}, {high:.2f})"
    return (
        one.configuration.name,
        f"{_ms(whole.p50)} ({', '.join(map(_ms, whole.interval))})",
        *((_ms(whole.p90), "-", _ms(whole.largest)) if p99 is None else ("-", _ms(p99), "-")),
        *(_ms(summarise(stage).p50) for stage in stages),
        _ms(summarise(latency.raw_ns).p50) if latency.raw_ns else "-",
        over,
        f"{whole.per_second:.1f}",
        f"{one.graph_bytes / 1e6:.1f}",
        "-" if one.energy_mj is None else f"{one.energy_mj:.0f}",
        "-" if one.accuracy is None else f"{one.accuracy.miou:.2f}",
    )


def _ms(value: float) -> str:
    return f"{value:.{2 if value < 99.995 else 1}f}"


def _more(one: Measurement) -> Iterator[str]:
    """Cold start, cameras, or why nothing was measured."""
    name = one.configuration.name
    if one.failure:
        yield f"{name}: not measured: {one.failure}"
    if one.start is not None:
        start = one.start
        yield (
            f"{name}: import {start.import_ns / 1e9:.2f} s, load {start.load_ns / 1e9:.2f} s with an empty cache and "
            f"{start.warm_load_ns / 1e9:.2f} s with a full one, first frame {start.first_frame_ns / 1e6:.0f} ms, "
            f"peak memory {start.peak_bytes / 1e6:.0f} MB"
        )
    for rate in one.rates:
        age = summarise(rate.age_ns)
        yield (
            f"{name} at {rate.hz:g} Hz: results {age.p50:.1f} ms old, at most {age.largest:.1f} ms, "
            f"{rate.missed} of {rate.frames} frames missed"
        )


def noise_line(noise: Noise) -> str:
    """The verdict in a line."""
    if not noise.noisy:
        return f"steady: differences above {noise.claim:.1%} between such runs are real"
    return f"this machine is too noisy for a {LIMIT:.0%} claim: {'; '.join(noise.reasons)}"
