"""`edgeseg tune`: choose stride, precision, backend, threads, input size on this machine; write them to the bundle."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import click

from edgeseg._terminal import Finite, SizeType, status
from edgeseg.benchmarks.resized import calibration_images
from edgeseg.benchmarks.tune import Choice, tune
from edgeseg.bundle import Bundle
from edgeseg.calibration.datasets import LayoutName, open_dataset
from edgeseg.errors import InputError
from edgeseg.loading import EMBEDDED
from edgeseg.types import Size

_LAYOUTS = ["auto", "folders", "camvid", "voc", "cityscapes", "ade20k"]


class _Milliseconds(click.ParamType):  # type: ignore[type-arg]
    """20ms, 0.02s, or 20, which is milliseconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        text = str(value)
        number, scale = (text[:-1], 1000) if text.endswith("s") and not text.endswith("ms") else (text, 1)
        try:
            milliseconds = float(number.removesuffix("ms")) * scale
        except ValueError:
            milliseconds = math.nan
        if not 0 < milliseconds < math.inf:
            what = "not above 0" if milliseconds <= 0 else "not a time"
            self.fail(f"{value!r} is {what}: give 20ms or 0.02s", param, context)
        return milliseconds


class _Sizes(click.ParamType):  # type: ignore[type-arg]
    """Sizes separated by commas."""

    name = "HxW,HxW"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[Size, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(SizeType().convert(part, param, context) for part in str(value).split(","))


@click.command(
    epilog="\b\nExample: edgeseg tune street.edgeseg --max-latency 20ms --data camvid --split val\n"
    "         edgeseg tune --max-latency 50ms -o mine.edgeseg\n"
    "         edgeseg tune --size 240x320,512x512 --weights street.safetensors --max-latency 50ms -o mine.edgeseg"
)
@click.argument("bundle", type=click.Path(path_type=Path), default=EMBEDDED, metavar="[BUNDLE]")
@click.option(
    "--max-latency",
    type=_Milliseconds(),
    help="Most that a whole frame may take, as median: 20ms, 0.02s; ms if no unit is given.",
)
@click.option("--min-miou", type=Finite(0, 100), help="Least mIoU, in percent, on the images of --data.")
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR",
              help="Labelled images, not used for calibration; they give the frames too.")  # fmt: skip
@click.option("--labels", type=click.Path(path_type=Path), metavar="DIR",
              help="Their labels, where they lie elsewhere.")  # fmt: skip
@click.option(
    "--layout", type=click.Choice(_LAYOUTS), default="auto", show_default=True, help="How --data is laid out."
)
@click.option("--split", metavar="NAME", help="Which split of --data.")
@click.option("--ignore", type=click.IntRange(0, 255), metavar="N", help="A label value that means no class.")
@click.option("--backend", default="all", show_default=True, metavar="NAME,NAME", help="Choose among these.")
@click.option("--frames", "frame_size", type=SizeType(), default="1080x1920", show_default=True,
              help="Size of your camera's frames.")  # fmt: skip
@click.option("--seconds", type=Finite(1), default=20, show_default=True,
              help="How long all configurations together are timed.")  # fmt: skip
@click.option("--size", "sizes", type=_Sizes(), default=(),
              help="Input sizes that compete with the bundle's own, exported anew from --weights.")  # fmt: skip
@click.option("--weights", type=click.Path(path_type=Path), metavar="FILE", help="The bundle's checkpoint, for --size.")
@click.option("--calibrate-on", type=click.Path(path_type=Path), metavar="DIR",
              help="Images for int8 at those sizes, none of --data; drawn scenes if left out.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="NEW.edgeseg",
              help="Write a copy with the choice; without, BUNDLE itself gets it.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the output if it is a bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the three lines.")
def command(
    bundle: Path,
    max_latency: float | None,
    min_miou: float | None,
    data: Path | None,
    labels: Path | None,
    layout: LayoutName,
    split: str | None,
    ignore: int | None,
    backend: str,
    frame_size: Size,
    seconds: float,
    sizes: tuple[Size, ...],
    weights: Path | None,
    calibrate_on: Path | None,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Choose output stride, precision, backend and threads for this machine by measuring, and write them into BUNDLE.

    `edgeseg.load(BUNDLE)`, with nothing else chosen, then takes them on this machine; on others nothing changes.
    Without --data the finest output stride that keeps --max-latency is taken, and int8 only where it is certified. With
    --size the NEW.edgeseg of -o has the input size that won; int8 at sizes exported anew competes only with --data.
    """
    if max_latency is None and min_miou is None:
        raise InputError("tune needs a goal: --max-latency 20ms, or --min-miou 60 with --data")
    if data is None and (labels or split or ignore is not None or min_miou is not None):
        raise InputError("--min-miou, --labels, --split and --ignore are about labelled images: name them with --data")
    opened, images = Bundle.open(bundle, verify=False), None
    if data is not None:
        classes = opened.manifest.classes
        images = open_dataset(data, labels, classes=classes, layout=layout, split=split, ignore=ignore)
    with status() as progress:
        found = tune(
            bundle,
            output,
            max_latency_ms=max_latency,
            min_miou=min_miou,
            images=images,
            backends=None if backend == "all" else backend.split(","),
            frame_size=frame_size,
            seconds=seconds,
            sizes=sizes,
            weights=weights,
            calibrate_on=None if calibrate_on is None else calibration_images(opened, calibrate_on, images),
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(_report(found, opened.manifest.preprocess.input_size), indent=2))
        return
    for line in found.explanation:
        click.echo(line)
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"written to {found.bundle.path}", err=True)


def _report(found: Choice, own: Size) -> dict[str, Any]:
    """`own` is the input size of the bundle that was given."""
    return {
        "bundle": str(found.bundle.path),
        "input_size": found.bundle.manifest.preprocess.input_size,
        "tuned": dataclasses.asdict(found.tuned),
        "explanation": list(found.explanation),
        "notes": list(found.notes),
        "candidates": [
            {
                "name": one.name,
                "input_size": one.input_size or own,
                **dataclasses.asdict(one.configuration),
                "p50_ns": one.p50_ns,
                "miou": None if one.accuracy is None else one.accuracy.miou,
                "interval": None if one.accuracy is None else one.accuracy.interval,
            }
            for one in found.candidates
        ],
    }
