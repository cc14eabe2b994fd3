"""What a calibration found, in words and in JSON: methods tried, layers and what they cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from edgeseg.calibration.recipe import Calibrated
from edgeseg.calibration.search import LayerCost, Outcome, Trial

_LAYERS_SHOWN = 5
_VARIANTS = ("stride", "encoding", "method", "layers in float", "mIoU", "pixels as fp32")
_TRIED = ("stride", "encoding", "tried", "layers in float", "images", "mIoU", "pixels as fp32", "time", "")
_LAYERS = ("layer", "pixels gained", "mIoU gained", "ms", "MACs")
_CHOICE = "<- chosen"


def as_json(found: Calibrated) -> dict[str, Any]:
    """Everything, by the records' own field names."""
    return {
        "bundle": str(found.bundle.path),
        "seconds": found.seconds,
        "notes": list(found.notes),
        "variants": [dataclasses.asdict(outcome) for outcome in found.outcomes],
    }


def lines(found: Calibrated) -> list[str]:
    """A table of the variants, one of the methods tried, and the layers that cost most; mIoU is int8 minus fp32."""
    told = [f"{found.bundle.path}: " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found.seconds.items())]
    told += ["", *_aligned([_VARIANTS, *map(_variant_row, found.outcomes)])]
    tried = [_trial_row(outcome, trial) for outcome in found.outcomes for trial in outcome.trials]
    if tried:
        told += ["", *_aligned([_TRIED, *tried])]
        told.append(f"{_CHOICE}: of the rules within the limit, the one whose masks agree best with fp32")
        if any(outcome.measured and outcome.measured.difference is None for outcome in found.outcomes):
            told.append("no labels: the guard counts the pixels whose class changes, not mIoU")
    for outcome in found.outcomes:
        told += _layer_lines(outcome)
        told += [f"output stride {outcome.output_stride}, {outcome.encoding}: {note}" for note in outcome.notes]
    return [*told, *([""] if found.notes else []), *found.notes]


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
        _times(trial),
        _CHOICE if outcome.is_choice(trial) else "",
    )


def _layer_lines(outcome: Outcome) -> list[str]:
    """The layers whose 8 bits cost most pixels."""
    if not outcome.layers:
        return []
    ranked = sorted(outcome.layers, key=lambda cost: -cost.agreement_gain)[:_LAYERS_SHOWN]
    rows = [_LAYERS, *(_layer_row(outcome, cost) for cost in ranked)]
    title = f"output stride {outcome.output_stride}, {outcome.encoding}"
    return ["", f"{title}: what the costliest of {len(outcome.layers)} layers gain in float", *_aligned(rows)]


def _layer_row(outcome: Outcome, cost: LayerCost) -> tuple[str, ...]:
    return (
        cost.layer + " (in float)" * (cost.layer in outcome.float_layers),
        f"{cost.agreement_gain:+.3f}%",
        _points(cost.miou_gain),
        "" if cost.milliseconds is None else f"{cost.milliseconds:+.2f}",
        f"{cost.macs:.1%}",
    )


def _points(value: float | None) -> str:
    return "" if value is None else f"{round(value, 2) + 0.0:+.2f}"  # no -0.00


def _times(trial: Trial) -> str:
    if trial.milliseconds is None or trial.milliseconds_fp32 is None:
        return ""
    digits = 0 if trial.milliseconds >= 10 else 2
    return f"{trial.milliseconds:.{digits}f} ms (fp32 {trial.milliseconds_fp32:.{digits}f})"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns as wide as their widest cell; none without a cell below its head."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    ]
