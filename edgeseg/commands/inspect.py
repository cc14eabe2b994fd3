"""`edgeseg inspect`: what every convolution of a network sees at an input size, and what it costs."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import click

from edgeseg import factories, images
from edgeseg._terminal import SizeType
from edgeseg.bundle import Bundle
from edgeseg.commands import inspect_runtime
from edgeseg.errors import InputError
from edgeseg.geometry import Graph
from edgeseg.inspection import graphs
from edgeseg.inspection.report import LayerReport, Report
from edgeseg.inspection.report import inspect as inspect_graph
from edgeseg.loading import EMBEDDED
from edgeseg.types import PRECISIONS, Size

_CLASSES = 21
"""What a factory's `num_classes` is unless set: PASCAL VOC's, as in the papers."""


_EPILOG = """
\b
Example: edgeseg inspect edgeseg.models:deeplabv3 --set backbone=mobilenet_v2 --size 513x513
         --output-stride 8 --plot rates.png
"""


@click.command(epilog=_EPILOG)
@click.argument("what", required=False, metavar="[BUNDLE|FILE.onnx|PACKAGE.MODULE:FACTORY]")
@click.option("--size", type=SizeType(), help="Input size, height first; the bundle's or file's own if left out.")
@click.option("--output-stride", type=click.IntRange(1), help="One of the bundle's, or one that the module can take.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Argument for the factory, JSON or Python literal; may be repeated.",
)
@click.option(
    "--all",
    "rows",
    flag_value="all",
    help="List every convolution, not only the atrous and strided ones; with --runtime, every layer.",
)
@click.option("--atrous-only", "rows", flag_value="atrous", help="List the atrous convolutions only.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw valid weights by rate.")
@click.option("--runtime", is_flag=True, help="Show instead what runtimes really execute of a bundle, and in int8.")
@click.option("--backend", help="With --runtime: only this one; every runtime that is here if left out.")
@click.option("--device", help="With --runtime: cpu (if left out), gpu, npu.")
@click.option("--precision", type=click.Choice(["auto", *PRECISIONS]), help="With --runtime: arithmetic to run in.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def command(
    what: str | None,
    size: Size | None,
    output_stride: int | None,
    settings: tuple[str, ...],
    rows: str | None,
    plot: Path | None,
    runtime: bool,
    backend: str | None,
    device: str | None,
    precision: inspect_runtime.Asked | None,
    as_json: bool,
) -> None:
    """Show what the convolutions of a network see at an input size: maps, rates, valid weights, costs.

    Without an argument the embedded street network is shown. A weight is valid where it meets the map and not its
    padding: a 3x3 kernel at rate 65 on a 65x65 map is a 1x1 kernel. No weights are loaded.

    With --runtime a bundle is compiled and profiled: which share of the multiply-accumulates each runtime executes in
    int8, float layers between int8 ones, and conversions.
    """
    if runtime:
        inspect_runtime.refuse(
            what, {"--size": size, "--set": settings, "--atrous-only": rows == "atrous", "--plot": plot}
        )
        inspect_runtime.show(
            Path(what or EMBEDDED),
            backend,
            device or "auto",
            precision or "auto",
            output_stride,
            rows == "all",
            as_json,
        )
        return
    for option, value in (("--backend", backend), ("--device", device), ("--precision", precision)):
        if value is not None:
            raise InputError(f"{option} says what to run, and nothing is run: add --runtime, or leave it out")
    if plot is not None:
        images.check_suffix(plot)
    report = inspect_graph(_graph(what or str(EMBEDDED), size, output_stride, settings))
    chosen = [row for row in report.layers if rows == "all" or (row.layer.is_atrous if rows else row.is_telling)]
    if plot is not None:
        from edgeseg.inspection import figure4

        images.write(plot, figure4.draw(report))
    if as_json:
        click.echo(json.dumps(_as_json(report, chosen), indent=2))
        return
    for line in _lines(report, chosen):
        click.echo(line)


def _graph(what: str, size: Size | None, output_stride: int | None, settings: tuple[str, ...]) -> Graph:
    path = Path(what)
    is_factory = ":" in what and not path.exists()
    if settings and not is_factory:
        raise InputError(f"--set is for factories, {what} is none: leave it out")
    if is_factory:
        return _module_graph(what, size, output_stride, settings)
    if path.suffix.lower() == ".onnx":
        if output_stride is not None:
            raise InputError(f"{what} has the output stride it was exported with: leave out --output-stride")
        return graphs.from_onnx(path, input_size=size)
    return graphs.from_bundle(Bundle.open(path, verify=False), output_stride=output_stride, input_size=size)


def _module_graph(what: str, size: Size | None, output_stride: int | None, settings: tuple[str, ...]) -> Graph:
    if size is None:
        raise InputError(f"{what} has no input size of its own: give one, as --size 513x513")
    model = factories.make(what, settings, _CLASSES)
    from edgeseg.inspection.module_graphs import from_module

    if output_stride is not None:
        from edgeseg.models import turn

        turn(model, output_stride)
    return from_module(model, input_size=size, source=what)


_HEADS = (
    *("layer", "op", "map", "stride", "kernel", "rate", "spans"),
    *("weights", "valid", "groups", "MACs", "params", "sees"),
)


def _lines(report: Report, chosen: list[LayerReport]) -> list[str]:
    """The table, the totals, the warnings."""
    stride = f" (stride {_strides(report.output_stride)})" if report.output_stride else ""
    lines = [f"{report.source}: {_size(report.input_size)} -> {_size(report.map_size)}{stride}"]
    if chosen:
        table = [_HEADS, *(_cells(row) for row in chosen)]
        widths = [max(len(line[column]) for line in table) for column in range(len(_HEADS))]
        for line in table:
            cells = [f"{cell:<{width}}" for cell, width in zip(line[:3], widths, strict=False)]
            cells += [f"{cell:>{width}}" for cell, width in zip(line[3:], widths[3:], strict=True)]
            lines.append("  ".join(cells).rstrip())
    shown = f"{len(chosen)} of {len(report.layers)} convolutions shown, --all lists the rest; " if chosen else ""
    if len(chosen) == len(report.layers):
        shown = f"{len(chosen)} convolution{'s' * (len(chosen) != 1)}; "
    share = report.padding_macs / report.macs if report.macs else 0
    lines.append(
        f"total: {shown}{_count(report.macs)} multiply-accumulates ({share:.0%} of them on padding), "
        f"{_count(report.parameters)} parameters"
    )
    lines.append(f"receptive field: {_field(report)}")
    return [*lines, *(f"warning: {warning}" for warning in report.warnings)]


def _cells(row: LayerReport) -> tuple[str, ...]:
    layer, valid = row.layer, row.valid
    maps = _size(layer.input_size)
    if layer.output_size != layer.input_size:
        maps += f" -> {_size(layer.output_size)}"
    own = _strides(layer.stride)
    return (
        layer.name,
        layer.op,
        maps,
        (f"1/{own}" if layer.kind == "transposed" else own) + (f" ({_strides(row.stride)})" if row.stride else ""),
        _size(layer.kernel),
        _strides(layer.dilation),
        _size(layer.effective_kernel),
        f"{valid.used}/{valid.weights}" if valid else "-",
        f"{valid.mean:.1%}" if valid else "-",
        str(layer.groups),
        _count(layer.macs),
        _count(layer.parameters),
        _size(row.receptive_field) if row.receptive_field else "all",
    )


def _field(report: Report) -> str:
    size = report.receptive_field
    if size is None:
        return "the whole image"
    beside = "; global pooling sees all of it" * report.whole_image
    return f"{_size(size)} pixels, the image has {_size(report.input_size)}{beside}"


def _size(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _strides(pair: tuple[int, int] | tuple[Fraction, Fraction]) -> str:
    """One number where both axes agree; fractions after upsampling to no whole ratio with two digits."""
    texts = [str(value) if value.denominator == 1 else f"{float(value):.2f}" for value in pair]
    return texts[0] if texts[0] == texts[1] else "x".join(texts)


def _count(number: int) -> str:
    """Three digits and a unit: 3.41 G, 590 k."""
    for unit, scale in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= 0.9995 * scale:
            value = number / scale
            return f"{value:.{max(0, 3 - len(str(int(value + 0.0005))))}f} {unit}"
    return str(number)


def _as_json(report: Report, chosen: list[LayerReport]) -> dict[str, Any]:
    """Field names are the records'; sizes are [height, width]."""
    return {
        "source": report.source,
        "input_size": report.input_size,
        "map_size": report.map_size,
        "output_stride": _numbers(report.output_stride),
        "convolutions": len(report.layers),
        "macs": report.macs,
        "padding_macs": report.padding_macs,
        "parameters": report.parameters,
        "receptive_field": report.receptive_field,
        "whole_image": report.whole_image,
        "warnings": report.warnings,
        "layers": [
            {
                "name": row.layer.name,
                "op": row.layer.op,
                "input_size": row.layer.input_size,
                "output_size": row.layer.output_size,
                "channels": row.layer.channels,
                "kernel": row.layer.kernel,
                "stride": row.layer.stride,
                "cumulative_stride": _numbers(row.stride),
                "dilation": row.layer.dilation,
                "padding": row.layer.padding,
                "effective_kernel": row.layer.effective_kernel,
                "groups": row.layer.groups,
                "macs": row.layer.macs,
                "parameters": row.layer.parameters,
                "receptive_field": row.receptive_field,
                "weights": row.valid and row.valid.weights,
                "used_weights": row.valid and row.valid.used,
                "mean_valid": row.valid and row.valid.mean,
                "valid_shares": row.valid and {str(count): share for count, share in row.valid.shares},
            }
            for row in chosen
        ],
    }


def _numbers(pair: tuple[Fraction, Fraction] | None) -> list[float] | None:
    return None if pair is None else [int(value) if value.denominator == 1 else float(value) for value in pair]
