"""What a calibration found, in words and in JSON: methods tried, layers and what they cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from edgeseg.calibration.recipe import Calibrated
from edgeseg.calibration.search import LayerCost, Outcome, Trial

_LAYERS_SHOWN = 5
_VARIANTS = ("stride", "encoding", "method", "layers in float", "mIoU gained", "pixels as fp32")
_TRIED = ("stride", "encoding", "tried", "layers in float", "images", "mIoU gained", "pixels as fp32", "ms beside fp32")


def as_json(found: Calibrated) -> dict[str, Any]:
    """Everything, by the records' own field names."""
    return {
        "bundle": str(found.bundle.path),
        "seconds": found.seconds,
        "variants": [dataclasses.asdict(outcome) for outcome in found.outcomes],
    }


def lines(found: Calibrated) -> list[str]:
    """A table of the variants, one of the methods tried, and the layers that cost most."""
    told = [f"{found.bundle.path}: " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found.seconds.items())]
    told += ["", *_aligned([_VARIANTS, *map(_variant_row, found.outcomes)])]
    tried = [_trial_row(outcome, trial) for outcome in found.outcomes for trial in outcome.trials]
    if tried:
        told += ["", *_aligned([_TRIED, *tried])]
    for outcome in found.outcomes:
        told += _layer_lines(outcome)
        told += [f"output stride {outcome.output_stride}, {outcome.encoding}: {note}" for note in outcome.notes]
    return told


def _variant_row(outcome: Outcome) -> tuple[str, ...]:
    measured = outcome.measured
    return (
        str(outcome.output_stride),
        outcome.encoding,
        outcome.method,
        ", ".join(outcome.float_layers) or "none",
        _points(measured.difference) if measured else "not measured",
        f"{measured.agreement:.3%}" if measured else "",
    )


def _trial_row(outcome: Outcome, trial: Trial) -> tuple[str, ...]:
    return (
        str(outcome.output_stride),
        outcome.encoding,
        trial.method,
        str(len(trial.float_layers)),
        str(trial.measured.images),
        _points(trial.measured.difference),
        f"{trial.measured.agreement:.3%}",
        _milliseconds(trial.milliseconds),
    )


def _layer_lines(outcome: Outcome) -> list[str]:
    """The layers whose 8 bits cost most pixels."""
    if not outcome.layers:
        return []
    ranked = sorted(outcome.layers, key=lambda cost: -cost.agreement)[:_LAYERS_SHOWN]
    rows = [("layer", "pixels", "mIoU", "ms", "MACs"), *(_layer_row(outcome, cost) for cost in ranked)]
    title = f"output stride {outcome.output_stride}, {outcome.encoding}"
    return ["", f"{title}: what the costliest of {len(outcome.layers)} layers gain in float", *_aligned(rows)]


def _layer_row(outcome: Outcome, cost: LayerCost) -> tuple[str, ...]:
    return (
        cost.layer + " (in float)" * (cost.layer in outcome.float_layers),
        f"{cost.agreement:+.3f}%",
        _points(cost.miou),
        _milliseconds(cost.milliseconds),
        f"{cost.macs:.1%}",
    )


def _points(value: float | None) -> str:
    return "no labels" if value is None else f"{round(value, 2) + 0.0:+.2f}"  # no -0.00


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
