"""The figures of INT8: speed against fp32 and other quantizers' graphs, what each step brings, a network that is hard.

python -m edgeseg.benchmarks.int8 speed --weights ../shared/models/NAME.safetensors --images ../shared/data/camvid \
    --split train
python -m edgeseg.benchmarks.int8 steps ...            # the same options
python -m edgeseg.benchmarks.int8 hard-case ... --images ../shared/data/camvid

Method of `speed` and `steps`: the network only, raw sessions on prepared batches; all contenders of one backend take
turns frame by frame in one process, in an order drawn anew each round, the backends one after the other, ONNX Runtime
without spinning threads. Reported: medians, and medians and quartiles of the ratios round by round.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import onnx

from edgeseg._edge import exit_code
from edgeseg._terminal import SizeType, progress
from edgeseg.benchmarks import hard_case, int8_networks
from edgeseg.benchmarks.checkpoints import read_checkpoint
from edgeseg.benchmarks.int8_plain import normalisation, quantize_by_nncf, quantize_plainly
from edgeseg.benchmarks.int8_race import Ratio, contender, executed, race
from edgeseg.benchmarks.int8_steps import STEPS, read_encoded
from edgeseg.bundle import Bundle
from edgeseg.errors import InputError
from edgeseg.types import Image, Model, Size

_TIMED_FRAMES = 8
_ISLANDS_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One contender: median milliseconds, fp32's time by its own, its own by that of the plain graph.

    `agreement` is the share of the logits' argmaxes that are fp32's in the same runtime, `int8_share` that of the
    multiply-accumulates done in int8, `islands` names float layers between int8 ones.
    """

    backend: str
    output_stride: int
    name: str
    ms: float
    faster_than_fp32: Ratio
    of_plain: Ratio
    agreement: float
    int8_share: float
    islands: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class StepRow:
    """One step: median milliseconds of our graph, and of it without the step; `gain` is the second by the first.

    `agreement` is the share of the logits' argmaxes that stay as they are without the step.
    """

    backend: str
    output_stride: int
    step: str
    ms_with: float
    ms_without: float
    gain: Ratio
    agreement: float


@dataclass(frozen=True, slots=True)
class _Ground:
    """What is raced on: an int8 bundle, network-sized frames that it was calibrated on, a folder for more graphs."""

    bundle: Bundle
    frames: list[Image]
    folder: Path

    def write(self, graph: onnx.ModelProto, name: str, like: Model) -> Model:
        path = self.folder / f"{name}.onnx"
        onnx.save(graph, path)
        return contender(path, like)


@click.group()
def main() -> None:
    pass


def _shared(command: Callable[..., None]) -> Callable[..., None]:
    """The options of `speed` and `steps`."""
    for option in reversed([
        click.option("--weights", type=click.Path(path_type=Path), help="DeepLabV3-MobileNetV2 checkpoint."),
        click.option("--bundle", "bundle_path", type=click.Path(path_type=Path), help="Instead: a bundle; one in int8 "
                     "is raced as it is."),
        click.option("--images", "folder", type=click.Path(path_type=Path), required=True, help="To calibrate on, and "
                     "the first to run on."),
        click.option("--split", help="Which split of --images, where it has several."),
        click.option("--count", type=click.IntRange(1), default=32, show_default=True, help="Images to calibrate on."),
        click.option("--size", type=SizeType(), default="512x512", show_default=True, help="Input of --weights."),
        click.option("--output-stride", "strides", default="8,16,32", show_default=True),
        click.option("--backend", "backends", default="openvino,ort", show_default=True),
        click.option("--rounds", type=click.IntRange(1), default=100, show_default=True),
        click.option("--json", "as_json", is_flag=True),
    ]):  # fmt: skip
        command = option(command)
    return command


@main.command()
@_shared
@click.option("--nncf", type=click.Path(path_type=Path), metavar="PYTHON",
              help="Python of an environment with nncf and openvino: its graph joins in OpenVINO.")  # fmt: skip
def speed(nncf: Path | None, backends: str, strides: str, rounds: int, as_json: bool, **ground: Any) -> None:
    """fp32, ours, and other quantizers' graphs of the same network."""
    rows: list[Row] = []
    numbers = int8_networks.parse_strides(strides)
    with tempfile.TemporaryDirectory() as temporary:
        found = _ground(strides=numbers, temporary=Path(temporary), **ground)
        contenders = {stride: _contenders(found, stride, nncf) for stride in numbers}
        for backend in backends.split(","):
            with progress(numbers, backend) as bar:
                for stride in bar:
                    rows += _race(backend, stride, contenders[stride], found.frames, rounds)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return
    for row in rows:
        click.echo(
            f"{row.backend:<8} stride {row.output_stride:>2}  {row.name:<15} {row.ms:7.2f} ms  fp32 / this "
            f"{row.faster_than_fp32!s:<18}  this / plain {row.of_plain!s:<18}  masks as fp32 {row.agreement:.2%}  int8 "
            f"{row.int8_share:.2%} of MACs"
        )
        if row.islands:
            first = ", ".join(name for island in row.islands[:_ISLANDS_SHOWN] for name in island)
            more = f" and {len(row.islands) - _ISLANDS_SHOWN} more" if len(row.islands) > _ISLANDS_SHOWN else ""
            click.echo(f"{'':<21} float between int8: {first}{more}")


@main.command()
@_shared
def steps(backends: str, strides: str, rounds: int, as_json: bool, **ground: Any) -> None:
    """What each step to our graph brings, by undoing it."""
    rows: list[StepRow] = []
    numbers = int8_networks.parse_strides(strides)
    with tempfile.TemporaryDirectory() as temporary:
        found = _ground(strides=numbers, temporary=Path(temporary), **ground)
        for backend in backends.split(","):
            with progress(numbers, backend) as bar:
                for stride in bar:
                    rows += _undo(backend, stride, found, rounds)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return
    for row in rows:
        click.echo(
            f"{row.backend:<8} stride {row.output_stride:>2}  {row.step:<58} {row.ms_with:7.2f} ms, without "
            f"{row.ms_without:7.2f} ms, without / with {row.gain!s:<18}  masks equal {row.agreement:.2%}"
        )


def _ground(
    weights: Path | None,
    bundle_path: Path | None,
    folder: Path,
    split: str | None,
    count: int,
    size: Size,
    strides: tuple[int, ...],
    temporary: Path,
) -> _Ground:
    if bundle_path is not None:
        bundle = Bundle.open(bundle_path)
    elif weights is not None:
        network = read_checkpoint(weights)
        bundle = int8_networks.export(network, temporary / "float.edgeseg", size, strides)
    else:
        raise InputError("nothing to measure: give --weights or --bundle")
    images = int8_networks.draw(bundle, folder, split, count)
    frames = int8_networks.frames_of(bundle, images)
    return _Ground(int8_networks.int8_bundle(bundle, images, strides, temporary), frames, temporary)


def _contenders(ground: _Ground, stride: int, nncf: Path | None) -> dict[str, Model]:
    """The plain graph is given the advantage that pixels are not quantized before they are normalised."""
    bundle, frames = ground.bundle, ground.frames
    fp32, ours = bundle.model(bundle.variant(stride, "fp32")), bundle.model(bundle.variant(stride, "int8", "cpu"))
    found = {"fp32": fp32, "ours": ours}
    for name, keep in (("plain", normalisation(fp32)), ("plain, as it is", ())):
        path = ground.folder / f"{name}-os{stride}.onnx"
        found[name] = contender(quantize_plainly(fp32, path, frames, keep), fp32)
    if nncf is not None:
        path = ground.folder / f"nncf-os{stride}.xml"
        found["nncf"] = contender(quantize_by_nncf(fp32, path, frames, nncf), fp32)
    return found


def _race(backend: str, stride: int, contenders: dict[str, Model], frames: Sequence[Image], rounds: int) -> list[Row]:
    readable = {name: model for name, model in contenders.items() if backend == "openvino" or name != "nncf"}
    found = race(backend, readable, frames[:_TIMED_FRAMES], rounds)
    rows = []
    for name, model in readable.items():
        ran = executed(backend, model)
        row = Row(
            backend=backend,
            output_stride=stride,
            name=name,
            ms=found.ms(name),
            faster_than_fp32=found.ratio("fp32", name),
            of_plain=found.ratio(name, "plain"),
            agreement=found.agreement[name],
            int8_share=round(ran.int8_share, 6),
            islands=tuple(island.names for island in ran.islands),
        )
        rows.append(row)
    return rows


def _undo(backend: str, stride: int, ground: _Ground, rounds: int) -> list[StepRow]:
    encoded = read_encoded(ground.bundle, stride)
    ours = ground.bundle.model(ground.bundle.variant(stride, "int8", "cpu"))
    contenders = {"ours": ours}
    for number, (step, undo) in enumerate(STEPS.items()):
        contenders[step] = ground.write(undo(encoded).graph, f"step{number}-os{stride}", ours)
    found = race(backend, contenders, ground.frames[:_TIMED_FRAMES], rounds)
    return [
        StepRow(
            backend=backend,
            output_stride=stride,
            step=step,
            ms_with=found.ms("ours"),
            ms_without=found.ms(step),
            gain=found.ratio(step, "ours"),
            agreement=found.agreement[step],
        )
        for step in STEPS
    ]


main.add_command(hard_case.command)


if __name__ == "__main__":
    raise SystemExit(exit_code(main, "int8"))
