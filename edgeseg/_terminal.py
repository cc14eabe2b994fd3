"""What every command line here shares: how texts become values, and progress on long work."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from edgeseg.types import Size

T = TypeVar("T")


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


class Finite(click.FloatRange):
    """A number in a range; "nan" is in every range for click."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        number: float = super().convert(value, param, context)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, context)
        return number


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


def tell(step: str) -> None:
    """One step of long work, on stderr if that is a terminal."""
    if sys.stderr.isatty():
        click.echo(step, err=True)


@contextmanager
def status() -> Generator[Callable[[str], None], None, None]:
    """Tell steps by the hundred: one line on stderr that each writes over, if that is a terminal, gone in the end."""
    if not sys.stderr.isatty():
        yield lambda step: None
        return
    room = shutil.get_terminal_size().columns - 1
    try:
        yield lambda step: click.echo(f"\r{step[:room]:<{room}}", err=True, nl=False)
    finally:
        click.echo("\r" + " " * room + "\r", err=True, nl=False)


@contextmanager
def progress(items: Sequence[T], label: str = "", *, hidden: bool = False) -> Generator[Sequence[T], None, None]:
    """Iterate over `items` with a bar on stderr; without one where stderr is no terminal or there is only one item."""
    if hidden or len(items) < 2 or not sys.stderr.isatty():
        yield items
        return
    with click.progressbar(items, label=label, file=sys.stderr) as bar:
        yield bar  # type: ignore[misc]


def swatch(color: str | None) -> str:
    """Two blanks on the colour "#rrggbb"; `click.echo` takes the colour away where the output is no terminal."""
    if color is None:
        return "  "
    red, green, blue = bytes.fromhex(color[1:])
    return click.style("  ", bg=(red, green, blue))
