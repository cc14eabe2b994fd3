"""`edgeseg inspect --runtime`: what runtimes really execute of a bundle, in which arithmetic, and what it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import click

from edgeseg import loading, registry
from edgeseg.backends.base import ExecutedLayer, SessionInfo
from edgeseg.backends.execution import Execution, total_ns
from edgeseg.bundle import Bundle
from edgeseg.errors import BackendError, InputError
from edgeseg.types import Precision

Asked = Precision | Literal["auto"]
_JUDGES = ("simulate", "reference")
"""Backends that no device runs: only by name."""
_NAMED = 6


def refuse(what: str | None, others: dict[str, Any]) -> None:
    """Raise InputError for what only the convolutions' report takes: another source, `others` of its options."""
    for option, value in others.items():
        if value:
            raise InputError(
                f"{option} does not go with --runtime, which runs a bundle as it is: leave one of them out"
            )
    if what is not None and not Path(what).exists() and ":" in what:
        raise InputError(f"--runtime runs bundles, {what} is a factory: export it first (edgeseg export)")
    if what is not None and Path(what).suffix.lower() == ".onnx":
        raise InputError(f"--runtime runs bundles, {what} is an ONNX file: export it first (edgeseg export)")


def show(
    path: Path,
    backend: str | None,
    device: str,
    precision: Asked,
    output_stride: int | None,
    every: bool,
    as_json: bool,
) -> None:
    """Print the report of `backend`, or None: of every runtime that is here; `every` lists every layer."""
    Bundle.open(path, verify=False)  # a bundle that cannot be opened is no backend's fault
    found, skipped = [], {}
    for name in [backend] if backend else registry.names():
        if name in _JUDGES and not backend:
            continue
        try:
            if not backend and (reason := registry.status(name).reason):
                raise BackendError(reason)
            with loading.load(
                path,
                backend=name,
                device=device,
                precision=precision,
                output_stride=output_stride,
                cache=None,
                self_test=False,
            ) as segmenter:
                found.append((segmenter.choice, segmenter.info, segmenter.execution()))
        except BackendError as error:
            if backend:
                raise
            skipped[name] = str(error)
    if not found:
        raise BackendError("; ".join(skipped.values()))
    if as_json:
        runs = [_as_json(*run, every) for run in found]
        click.echo(json.dumps({"source": str(path), "runtimes": runs, "skipped": skipped}, indent=2))
        return
    for name, reason in skipped.items():
        click.echo(f"edgeseg: skipped {name}: {reason}", err=True)
    click.echo("\n\n".join("\n".join(_lines(*run, every)) for run in found))


def _lines(choice: str, info: SessionInfo, execution: Execution, every: bool) -> list[str]:
    """What was run, the sums, the islands, the conversions, and if asked for every layer."""
    lines = [f"{info.runtime}, {choice.partition(' (')[0]}"]
    if not execution.layers:
        return [*lines, "does not say what it executes"]
    lines += [
        f"int8: {execution.int8_share:.2%} of {execution.macs / 1e9:.3f} G multiply-accumulates"
        + (f", in float: {_few(floats)}" if (floats := _float_layers(execution)) and execution.int8_macs else ""),
        f"time: {_milliseconds(execution.elapsed_ns)} in {len(execution.layers)} layers, by its own profile",
        f"float islands between int8 layers: {len(execution.islands) or 'none'}",
    ]
    lines += [f"  {_milliseconds(island.elapsed_ns):>10}  {', '.join(island.names)}" for island in execution.islands]
    conversions = execution.conversions
    lines.append(f"conversions: {_milliseconds(total_ns(conversions))} in {len(conversions)} layers")
    return lines + _table(execution.layers if every else conversions)


def _float_layers(execution: Execution) -> list[str]:
    """Names of the layers with multiply-accumulates that are not int8."""
    return [layer.name for layer in execution.layers if layer.macs and layer.precision != "int8"]


def _few(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + f" and {more} more" * (more > 0)


def _table(layers: tuple[ExecutedLayer, ...]) -> list[str]:
    rows = [
        (
            layer.name,
            layer.kind,
            layer.precision if layer.precision == layer.writes else f"{layer.precision} -> {layer.writes}",
            f"{layer.macs / 1e6:.2f} M" if layer.macs else "-",
            _milliseconds(layer.elapsed_ns),
        )
        for layer in layers
    ]
    table = [("layer", "kind", "type", "MACs", "time"), *rows] if rows else []
    widths = [max(len(row[column]) for row in table) for column in range(5)] if table else []
    return [
        "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row[:3], widths, strict=False))
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[3:], widths[3:], strict=True))
        for row in table
    ]  # fmt: skip


def _milliseconds(elapsed_ns: int | None) -> str:
    return "unknown" if elapsed_ns is None else f"{elapsed_ns / 1e6:.2f} ms"


def _as_json(choice: str, info: SessionInfo, execution: Execution, every: bool) -> dict[str, Any]:
    """Layers are left out unless `every`; times are in milliseconds, null where the runtime does not say."""
    report = {
        "backend": info.backend,
        "runtime": info.runtime,
        "device": info.device,
        "ran": choice,
        "macs": execution.macs,
        "int8_macs": execution.int8_macs,
        "int8_share": execution.int8_share,
        "float_layers": _float_layers(execution),
        "elapsed_ms": _number(execution.elapsed_ns),
        "islands": [
            {
                "layers": island.names,
                "elapsed_ms": _number(island.elapsed_ns),
                "executed": [_layer(layer) for layer in island.layers],
            }
            for island in execution.islands
        ],
        "conversions": {
            "elapsed_ms": _number(total_ns(execution.conversions)),
            "executed": [_layer(layer) for layer in execution.conversions],
        },
    }
    return {**report, "layers": [_layer(layer) for layer in execution.layers]} if every else report


def _layer(layer: ExecutedLayer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "precision": layer.precision,
        "writes": layer.writes,
        "macs": layer.macs,
        "elapsed_ms": _number(layer.elapsed_ns),
    }


def _number(elapsed_ns: int | None) -> float | None:
    return None if elapsed_ns is None else elapsed_ns / 1e6
