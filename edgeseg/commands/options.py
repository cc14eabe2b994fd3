"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgeseg.loading import EMBEDDED
from edgeseg.types import PRECISIONS

F = TypeVar("F", bound=Callable[..., Any])


def runtime_options(command: F) -> F:
    """--bundle, --backend, --device, --precision, --output-stride, --threads: what `edgeseg.load` takes."""
    options = (
        click.option("--bundle", "bundle_path", type=click.Path(path_type=Path), default=EMBEDDED, metavar="DIR",
                     help="Bundle to run; the embedded street network if left out."),
        click.option("--backend", default="auto", show_default=True, 
                     help="auto, openvino, ort, tensorrt, simulate, reference or a plug-in."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, gpu, gpu.1, npu, dla.0."),
        click.option("--precision", type=click.Choice(["auto", *PRECISIONS]), default="auto",
                     show_default=True, help="Arithmetic to run in."),
        click.option("--output-stride", type=int, help="One of the bundle's; finer is more accurate and slower."),
        click.option("--threads", type=int, default=0, metavar="N", 
                     help="CPU threads of the network; 0: the runtime's choice."),
    )  # fmt: skip
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)
