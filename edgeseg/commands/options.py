"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgeseg.loading import EMBEDDED
from edgeseg.types import Size

F = TypeVar("F", bound=Callable[..., Any])


class SizeType(click.ParamType):  # type: ignore[type-arg]
    """HxW, height first: 360x480."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Size:
        if isinstance(value, tuple):
            return value
        parts = str(value).lower().split("x")
        if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a size: give height x width, as 360x480", param, context)
        return int(parts[0]), int(parts[1])


class NumbersType(click.ParamType):  # type: ignore[type-arg]
    """Numbers separated by commas."""

    name = "N,N,..."

    def __init__(self, kind: type[int] | type[float], count: int | None = None) -> None:
        self._kind, self._count = kind, count

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self._kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers: separate them by commas", param, context)
        if self._count is not None and len(numbers) != self._count:
            self.fail(f"{value!r} has {len(numbers)} numbers: give {self._count}", param, context)
        return numbers


def runtime_options(command: F) -> F:
    """--bundle, --backend, --device, --precision, --output-stride, --threads: what `edgeseg.load` takes."""
    options = (
        click.option("--bundle", "bundle_path", type=click.Path(path_type=Path), default=EMBEDDED, metavar="DIR",
                     help="Bundle to run; the embedded street network if left out."),
        click.option("--backend", default="auto", show_default=True, 
                     help="auto, openvino, ort, reference or a plug-in."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, gpu, npu."),
        click.option("--precision", type=click.Choice(["auto", "fp32", "fp16", "int8"]), default="auto",
                     show_default=True, help="Arithmetic to run in."),
        click.option("--output-stride", type=int, help="One of the bundle's; finer is more accurate and slower."),
        click.option("--threads", type=int, default=0, metavar="N", 
                     help="CPU threads of the network; 0: the runtime's choice."),
    )  # fmt: skip
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)
