"""The loss of training runs against the step, by output stride, as one picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg._canvas import BLUE, GREEN, INK, MARK, ORANGE, PALE, Canvas
from edgeseg.benchmarks.reference_journal import LOG, RUN
from edgeseg.benchmarks.reference_training import Schedule
from edgeseg.errors import InputError
from edgeseg.types import Image

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 300, 52, 16, 52, 40
_COLORS = {1: INK, 8: BLUE, 16: GREEN, 32: ORANGE}
_MEAN_OVER = 40
"""Steps of one output stride: a single batch says little."""


def draw_curves(folders: Sequence[Path]) -> Image:
    """uint8 (H, W, 3) RGB: one panel per run. Raises InputError for a folder that holds none."""
    canvas = Canvas((_HEIGHT, _WIDTH * len(folders)))
    for number, folder in enumerate(folders):
        _panel(canvas, _WIDTH * number, *_read(folder))
    return canvas.finished()


def _read(folder: Path) -> tuple[str, Schedule, dict[int, float]]:
    try:
        about = json.loads((folder / RUN).read_text())
        entries: list[dict[str, Any]] = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
        known = {field.name for field in dataclasses.fields(Schedule)}
        schedule = Schedule(**{name: value for name, value in about.items() if name in known})
        return about["network"], schedule, {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder} holds no training run: give the folder that `train` wrote ({error})") from error


def _panel(canvas: Canvas, left: float, network: str, schedule: Schedule, losses: dict[int, float]) -> None:
    by_stride: dict[int, list[tuple[int, float]]] = {}
    for step, loss in losses.items():
        by_stride.setdefault(schedule.output_stride(step - 1), []).append((step, loss))
    curves = {stride: _smooth(points) for stride, points in sorted(by_stride.items())}
    top = np.ceil(max((loss for points in curves.values() for _, loss in points), default=1) * 2) / 2
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    zero = (left + _LEFT, _HEIGHT - _BOTTOM)
    canvas.text(f"{network}: loss by step, mean over {_MEAN_OVER} steps", left + 12, 22, color=MARK)
    for loss in np.arange(0, top + 0.01, 0.5):
        y = zero[1] - loss / top * height
        canvas.line([(zero[0], y), (zero[0] + width, y)], PALE, 1)
        canvas.text(f"{loss:.1f}", zero[0] - 8, y + 4, align=1)
    for share in (0, 0.25, 0.5, 0.75, 1):
        canvas.text(f"{share * schedule.steps:.0f}", zero[0] + share * width, zero[1] + 20, align=share)
    for place, (stride, points) in enumerate(curves.items()):
        line = [(zero[0] + step / schedule.steps * width, zero[1] - loss / top * height) for step, loss in points]
        canvas.line(line, _COLORS[stride], 1.6)
        if stride > 1:
            canvas.text(f"output stride {stride}", zero[0] + 60 + 130 * place, 42, color=_COLORS[stride])


def _smooth(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    window = min(_MEAN_OVER, len(points))
    means = np.lib.stride_tricks.sliding_window_view(np.array(points, np.float64), window, axis=0).mean(axis=2)
    return [(float(step), float(loss)) for step, loss in means]
