"""Progress on long work: a bar on a terminal, nothing anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import click

T = TypeVar("T")


@contextmanager
def progress(items: Sequence[T], label: str = "") -> Generator[Sequence[T], None, None]:
    """Iterate over `items` with a bar on stderr; without one where stderr is no terminal or there is only one item."""
    if len(items) < 2 or not sys.stderr.isatty():
        yield items
        return
    with click.progressbar(items, label=label, file=sys.stderr) as bar:
        yield bar  # type: ignore[misc]
