"""A network with huge outliers in its activations, the same function as one without: what int8 loses on it.

python -m edgeseg.benchmarks.int8 hard-case --weights ../shared/models/NAME.safetensors --images ../shared/data/camvid
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import nn

from edgeseg._terminal import SizeType, tell
from edgeseg.benchmarks import int8_networks
from edgeseg.benchmarks.checkpoints import read_checkpoint
from edgeseg.benchmarks.int8_race import Race, executed, race
from edgeseg.bundle import Bundle
from edgeseg.calibration import recipe
from edgeseg.calibration.certificate import bootstrap, compare
from edgeseg.calibration.datasets import Dataset, open_dataset
from edgeseg.calibration.table import Rounding
from edgeseg.errors import InputError
from edgeseg.loading import load_variant
from edgeseg.models.deeplabv3 import DeepLabV3
from edgeseg.models.mobilenet import InvertedResidual, MobileNetV2
from edgeseg.scoring import means
from edgeseg.types import Model, Size

_TIMED_FRAMES = 8


@dataclass(frozen=True, slots=True)
class Row:
    """One way to calibrate: mIoU minus fp32's on the images of the final measurement, and what it costs.

    `guard_difference` is the same on the guard's images, None without a guard; `float_layers` are those it left out.
    """

    output_stride: int
    name: str
    miou_fp32: float
    difference: float
    interval: tuple[float, float]
    guard_difference: float | None
    method: str
    float_layers: tuple[str, ...]
    int8_share: float
    ms: float
    ms_fp32: float


@torch.no_grad()
def rescale(model: nn.Module, trunks: Sequence[int], factor: float, channels: int) -> None:
    """Multiply the strongest `channels` of these trunks by `factor` where they are written and divide where they are
    read, in place: the function stays, exactly so if `factor` is a power of two.

    A trunk is what the residual blocks of one stage of MobileNetV2 add to, behind linear bottlenecks; the last one,
    which the ASPP reads, is left out. Raises InputError.
    """
    if not isinstance(model, DeepLabV3) or not isinstance(model.backbone, MobileNetV2) or model.decoder is not None:
        raise InputError("the hard case is made of DeepLabV3-MobileNetV2 without a decoder, as that reads the trunks")
    stages: list[list[InvertedResidual]] = []
    for block in model.backbone.features:
        if isinstance(block, InvertedResidual):
            stages += [] if block.residual else [[]]
            stages[-1].append(block)
    for trunk in trunks:
        if not 0 <= trunk < len(stages) - 1:
            raise InputError(f"trunk is {trunk}: must be 0 to {len(stages) - 2}")
        writing, reading = stages[trunk], [*stages[trunk][1:], stages[trunk + 1][0]]
        chosen = next(writing[0].conv[-1].parameters()).abs().topk(channels).indices
        for block in writing:
            for parameter in block.conv[-1].parameters():
                parameter[chosen] *= factor
        for block in reading:
            expansion = next(block.conv[0].parameters())
            expansion[:, chosen] /= factor


@click.command("hard-case")
@click.option("--weights", type=click.Path(path_type=Path), required=True, help="DeepLabV3-MobileNetV2 checkpoint.")
@click.option("--images", "folder", type=click.Path(path_type=Path), required=True, help="CamVid: train and val.")
@click.option("--size", type=SizeType(), default="360x480", show_default=True, help="Network input.")
@click.option("--output-stride", "strides", default="16", show_default=True)
@click.option("--trunks", default="0,2", show_default=True, help="Stages of MobileNetV2 that get outliers.")
@click.option("--factor", type=float, default=128, show_default=True)
@click.option("--channels", type=click.IntRange(1), default=1, show_default=True, help="Outliers in each of them.")
@click.option("--count", type=click.IntRange(1), default=64, show_default=True, help="Images to calibrate on.")
@click.option("--guard-count", type=click.IntRange(1), default=100, show_default=True, help="Images for the guard.")
@click.option("--budget", type=float, default=600, show_default=True, help="Seconds for the guard.")
@click.option("--final", default="val", show_default=True, help="Split of the final measurement.")
@click.option("--backend", default="openvino", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=100, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def command(
    weights: Path,
    folder: Path,
    size: Size,
    strides: str,
    trunks: str,
    factor: float,
    channels: int,
    count: int,
    guard_count: int,
    budget: float,
    final: str,
    backend: str,
    rounds: int,
    as_json: bool,
) -> None:
    """Plain calibration, ours, and ours under the guard on a network with huge outliers."""
    model = read_checkpoint(weights)
    probe = torch.rand((1, 3, *size), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        before = model(probe)
        rescale(model, [int(trunk) for trunk in trunks.split(",")], factor, channels)
        after = model(probe)
    numbers = int8_networks.parse_strides(strides)
    with tempfile.TemporaryDirectory() as temporary:
        bundle = int8_networks.export(model, Path(temporary) / "float.edgeseg", size, numbers)
        train = open_dataset(folder, classes=bundle.manifest.classes, split="train")
        images = train.take(min(count, len(train)), seed=0)
        rest = train.without(images)
        guard = recipe.Guard(rest.take(min(guard_count, len(rest)), seed=0), budget_s=budget)
        made = _calibrate(bundle, images, guard, Path(temporary))
        labelled = open_dataset(folder, classes=bundle.manifest.classes, split=final)
        rows = [row for stride in numbers for row in _measure(made, stride, labelled, backend, rounds)]
    same = float((before.argmax(1) == after.argmax(1)).float().mean())
    if as_json:
        report = {"masks_equal_after_rescaling": same, "rows": [dataclasses.asdict(row) for row in rows]}
        click.echo(json.dumps(report, indent=2))
        return
    click.echo(f"{same:.4%} of fp32's mask pixels stay as they were by the rescaling (on noise)")
    for row in rows:
        guarded = "" if row.guard_difference is None else f" (guard's images: {row.guard_difference:+.2f})"
        click.echo(
            f"stride {row.output_stride:>2}  {row.name:<8} mIoU {row.miou_fp32:.2f} {row.difference:+.2f} (95 %: "
            f"{row.interval[0]:+.2f} to {row.interval[1]:+.2f}){guarded}  {row.method}  int8 {row.int8_share:.2%} of "
            f"MACs  {row.ms:.2f} ms (fp32 {row.ms_fp32:.2f})  float: {', '.join(row.float_layers) or 'none'}"
        )


def _calibrate(bundle: Bundle, images: Dataset, guard: recipe.Guard, folder: Path) -> dict[str, recipe.Calibrated]:
    """`plain` is min-max ranges, weights to nearest, biases as they are: what most tools begin with."""
    nearest = Rounding(second_order=False, correct_bias=False)
    made = {}
    made["plain"] = recipe.calibrate(
        bundle.path, folder / "plain.edgeseg", images, method="minmax", rounding=nearest, encodings=("cpu",), tell=tell
    )
    made["ours"] = recipe.calibrate(bundle.path, folder / "ours.edgeseg", images, encodings=("cpu",), tell=tell)
    made["guarded"] = recipe.calibrate(
        bundle.path, folder / "guarded.edgeseg", images, guard=guard, encodings=("cpu",), tell=tell
    )
    return made


def _measure(
    made: dict[str, recipe.Calibrated], stride: int, labelled: Dataset, backend: str, rounds: int
) -> list[Row]:
    models = {name: _model(one.bundle, stride, "int8") for name, one in made.items()}
    bundle = made["plain"].bundle
    frames = int8_networks.frames_of(bundle, labelled.take(min(_TIMED_FRAMES, len(labelled)), seed=0))
    found: Race = race(backend, {"fp32": _model(bundle, stride, "fp32"), **models}, frames, rounds)
    rows = []
    for name, one in made.items():
        outcome = next(outcome for outcome in one.outcomes if outcome.output_stride == stride)
        miou_fp32, miou, interval = _miou(one.bundle, stride, labelled, backend, self_test=name == "guarded")
        row = Row(
            output_stride=stride,
            name=name,
            miou_fp32=round(miou_fp32, 4),
            difference=round(miou - miou_fp32, 4),
            interval=interval,
            guard_difference=outcome.measured.difference if outcome.measured else None,
            method=outcome.method,
            float_layers=outcome.float_layers,
            int8_share=round(executed(backend, models[name]).int8_share, 6),
            ms=found.ms(name),
            ms_fp32=found.ms("fp32"),
        )
        rows.append(row)
    return rows


def _miou(
    bundle: Bundle, stride: int, labelled: Dataset, backend: str, *, self_test: bool
) -> tuple[float, float, tuple[float, float]]:
    """fp32's mIoU, int8's, and the 95 % interval of the difference, as certificates state them.

    Without `self_test` also where runtimes do not agree on a graph, as on one whose every rounding is magnified.
    """
    floats, quantized = bundle.variant(stride, "fp32"), bundle.variant(stride, "int8", "cpu")
    with (
        load_variant(bundle, floats, backend=backend, cache=None) as fp32,
        load_variant(bundle, quantized, backend=backend, cache=None, self_test=self_test) as int8,
    ):
        found = compare(fp32, int8, labelled, len(bundle.manifest.classes), f"output stride {stride} on {backend}")
    low, high = bootstrap(found, seed=0)
    before, after = (float(means(counts.sum(axis=1))[1]) for counts in (found.fp32, found.other))
    return before, after, (round(low, 4), round(high, 4))


def _model(bundle: Bundle, stride: int, precision: str) -> Model:
    variant = bundle.variant(stride, "fp32") if precision == "fp32" else bundle.variant(stride, "int8", "cpu")
    return bundle.model(variant)
