"""Frame in, mask out, against what others offer for the same ONNX file and frames, side by side in one run.

python -m edgeseg.benchmarks.peers --bundle BUNDLE --output-stride 16 --precision int8 --images DIR --peers PYTHON

Method: every contender in a process of its own, one frame each in turn, in an order drawn anew each round, the others
asleep; nothing of a turn but its run is timed. OpenVINO and Model API run with edgeseg's configuration (latency hint,
f32, the same threads), Model API also with its own. Model API and ONNX Runtime get the graph with a float image for
input, as they expect it, the network behind unchanged. As the mask of Model API is only as fine as the logits, it also
gets them enlarged in the graph to the network's input size, as most exports have them. benchmark_app cannot take turns
by frame: it and edgeseg's session alternate in blocks.

--peers is the Python of an environment with openvino-model-api and this environment's version of openvino; without it
Model API takes part where this environment has it.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np

from edgeseg import EMBEDDED
from edgeseg._edge import exit_code
from edgeseg._terminal import SizeType, status
from edgeseg.benchmarks.extras import App, Comparison, Row
from edgeseg.benchmarks.feed import frames_of
from edgeseg.benchmarks.peers_app import against_benchmark_app
from edgeseg.benchmarks.peers_contenders import MODEL_API, NETWORK, OURS, contenders
from edgeseg.benchmarks.peers_race import Ran, Spec, check_python, race
from edgeseg.benchmarks.resized import as_asked
from edgeseg.benchmarks.spread import Interval, median_interval, ratio, spread
from edgeseg.bundle import Bundle
from edgeseg.calibration.datasets import Dataset, open_dataset
from edgeseg.errors import EdgesegError
from edgeseg.types import Size

_WIDTH = 50
_EPILOG = """
\b
Example: python -m edgeseg.benchmarks.peers --images photos --peers ~/peers/bin/python
         python -m edgeseg.benchmarks.peers --size 512x512 --classes 21 --weights street.safetensors
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--bundle", "path", type=click.Path(path_type=Path), default=EMBEDDED, help="The embedded one if left out."
)
@click.option("--output-stride", type=int, default=16, show_default=True, help="Which of the bundle's.")
@click.option("--precision", type=click.Choice(["int8", "fp32", "bf16"]), default="int8", show_default=True,
              help="What every contender on OpenVINO runs the network in.")  # fmt: skip
@click.option("--frames", "frame", type=SizeType(), default="1080x1920", show_default=True, help="Size of the frames.")
@click.option("--images", "folder", type=click.Path(path_type=Path), help="Folder of photos; drawn scenes if left out.")
@click.option("--peers", type=click.Path(path_type=Path), metavar="PYTHON",
              help="Of an environment with Model API; left out unless it is in this one.")  # fmt: skip
@click.option("--weights", type=click.Path(path_type=Path), metavar="FILE",
              help="The bundle's checkpoint, for --size and --classes; torch joins with it in fp32, eager and compiled "
              "(a minute or more).")  # fmt: skip
@click.option("--size", type=SizeType(), help="Compare the network at this input size, exported anew from --weights.")
@click.option("--classes", type=click.IntRange(2, 255), metavar="N",
              help="Compare a network of N classes, for their cost alone, exported anew from --weights: its first N, "
              "or more by untrained ones, its own with noise.")  # fmt: skip
@click.option("--calibrate-on", type=click.Path(path_type=Path), metavar="DIR",
              help="Photos for the int8 of what is exported anew; drawn scenes if left out.")  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(0), default=0, show_default=True, help="Of the network; 0: as they choose."
)
@click.option("--rounds", type=click.IntRange(1), default=100, show_default=True, help="Frames for each contender.")
@click.option("--blocks", type=click.IntRange(0), default=12, show_default=True, help="Of benchmark_app; 0: without.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def main(as_json: bool, folder: Path | None, path: Path, **options: Any) -> None:
    """Compare edgeseg, frame in and exact mask out, with others on the same network and frames, taking turns."""
    if options["peers"] is not None:
        check_python(options["peers"])
    own = Bundle.open(path, verify=False).manifest.classes
    images = None if folder is None else open_dataset(folder, classes=own)
    with status() as tell:
        found = compare(path=path, images=images, tell=tell, **options)
    click.echo(json.dumps(dataclasses.asdict(found), indent=2) if as_json else table(found))


def compare(
    *,
    path: Path,
    output_stride: int,
    precision: Literal["int8", "fp32", "bf16"],
    frame: Size,
    images: Dataset | None = None,
    peers: Path | None = None,
    weights: Path | None = None,
    size: Size | None = None,
    classes: int | None = None,
    calibrate_on: Path | None = None,
    threads: int = 0,
    rounds: int = 100,
    blocks: int = 12,
    tell: Callable[[str], None] = lambda step: None,
) -> Comparison:
    """Run everything that is here on four of `images`, or of drawn scenes.

    With `size` (height, width) or `classes`, `weights` and `calibrate_on` it is the network at that input size or with
    as many classes, some of them untrained, exported anew (`resized.as_asked`).
    Raises BundleError for a variant that the bundle lacks, BackendError, InputError.
    """
    bundle = Bundle.open(path)
    pictures, fed = frames_of(images, frame)
    with tempfile.TemporaryDirectory() as temporary:
        bundle, exported = as_asked(
            bundle,
            size,
            Path(temporary),
            weights=weights,
            calibrate_on=calibrate_on,
            classes=classes,
            apart_from=images,
            output_strides=(output_stride,),
            int8=precision == "int8",
            progress=tell,
        )
        specs = contenders(bundle, output_stride, precision, pictures, Path(temporary), peers, weights, threads)
        ran, missing = race(specs[1:], rounds, tell)
        app, app_missing = None, "not asked for"
        if blocks:
            session = specs[0]
            graph, batch = Path(session.settings["graph"]), Path(session.settings["batch"])
            try:
                app, app_missing = against_benchmark_app(session, graph, batch, threads, blocks, rounds, tell), ""
            except EdgesegError as error:
                app_missing = str(error)
    height, width = bundle.manifest.preprocess.input_size
    whole, interval = ratio(ran[OURS].ns, ran[NETWORK].ns) if NETWORK in ran else (0.0, (0.0, 0.0))
    return Comparison(
        network=f"{bundle.manifest.name}, output stride {output_stride}, {precision}, {height}x{width}"
        + f" ({exported})" * bool(exported),
        frames=f"{frame[0]}x{frame[1]}, {fed.source}, {rounds} rounds",
        rows=tuple(_row(spec, ran, missing) for spec in specs[1:]),
        stages_ms=_stages(ran[OURS]),
        whole_by_network=whole,
        whole_by_network_interval=interval,
        noise=spread([one.ns for one in ran.values()]).reasons,
        app=app,
        app_missing=app_missing,
    )


def table(found: Comparison) -> str:
    """The comparison in lines for a terminal."""
    lines = [f"{found.network}; frames {found.frames}"]
    for row in found.rows:
        if row.missing:
            lines.append(f"{row.name:<{_WIDTH}} not run: {row.missing}")
            continue
        line = f"{row.name:<{_WIDTH}} {row.ms:8.2f} ms {_between(row.interval):<18}"
        if row.against != row.name:
            line += f" {row.ratio:6.2f} {_between(row.ratio_interval):<14} of {row.against}"
        about = [row.includes, row.runtime]
        if row.quantized is not None:
            about.append(f"{row.quantized} convolutions in int8")
        if row.agreement is not None and row.name != OURS:
            about.append(f"{row.agreement:.2%} of pixels as {OURS}")
        lines += [line.rstrip(), "    " + "; ".join(about)]
    if not any(row.name.startswith(MODEL_API) for row in found.rows):
        lines.append(f"{MODEL_API}: not asked for (--peers PYTHON, of an environment that has it)")
    stages = "preprocess {:.2f}, network {:.2f}, decode {:.2f} ms".format(*found.stages_ms)
    whole = f"{found.whole_by_network:.3f} {_between(found.whole_by_network_interval, 3)}"
    lines.append(f"{OURS}: {stages}; whole frame / {NETWORK} {whole}")
    lines += [f"benchmark_app: not run: {found.app_missing}"] if found.app is None else _app_lines(found.app)
    return "\n".join([*lines, *(f"noise: {reason}" for reason in found.noise)])


def _app_lines(app: App) -> list[str]:
    ours = f"{statistics.median(app.ours_ms):.2f} ms"
    theirs = f"{statistics.median(app.theirs_ms):.2f} ms"
    return [
        f"network only, {len(app.ours_ms)} blocks: edgeseg's session {ours}, benchmark_app {theirs}, block by block "
        f"{app.ratio:.3f} {_between(app.interval, 3)}",
        f"    benchmark_app ran with {app.settings}",
        f"    as it comes it says {app.default_ms:.2f} ms, with {app.default_settings}",
    ]


def _row(spec: Spec, ran: dict[str, Ran], missing: dict[str, str]) -> Row:
    if spec.name not in ran:
        return Row(spec.name, spec.includes, spec.against, missing=missing[spec.name])
    one, ours = ran[spec.name], np.array(ran[OURS].masks)
    against = spec.against if spec.against in ran else OURS
    times, between = ratio(one.ns, ran[against].ns)
    low, high = median_interval(one.ns)
    return Row(
        name=spec.name,
        includes=spec.includes,
        against=against,
        runtime=one.runtime,
        ms=statistics.median(one.ns) / 1e6,
        interval=(low / 1e6, high / 1e6),
        ratio=times,
        ratio_interval=between,
        agreement=None if one.masks is None else float(np.mean(np.array(one.masks) == ours)),
        quantized=one.quantized,
    )


def _stages(ran: Ran) -> tuple[float, float, float]:
    preprocess, network, decode = (float(value) / 1e6 for value in np.median(np.array(ran.stages), axis=0))
    return preprocess, network, decode


def _between(interval: Interval, places: int = 2) -> str:
    return f"({interval[0]:.{places}f}, {interval[1]:.{places}f})"


if __name__ == "__main__":
    raise SystemExit(exit_code(main, "peers"))
