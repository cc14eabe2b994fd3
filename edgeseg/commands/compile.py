"""`edgeseg compile`: build a bundle's engines into the cache before anyone waits for them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

import click

from edgeseg._terminal import NumbersType, tell
from edgeseg.backends.base import BuildOptions
from edgeseg.compiling import Compiled, compile_bundle
from edgeseg.errors import InputError
from edgeseg.loading import EMBEDDED
from edgeseg.opening import cache_folder
from edgeseg.types import PRECISIONS, Precision

_MB = 1 << 20


@click.command(
    "compile",
    epilog="\b\nExample: edgeseg compile --backend tensorrt --device gpu --precision int8\n"
    "         edgeseg compile mine.edgeseg --backend tensorrt --for sm_86,sm_89 --cache engines",
)
@click.argument("bundle", type=click.Path(path_type=Path), default=EMBEDDED, metavar="[BUNDLE]")
@click.option("--backend", default="auto", show_default=True, help="tensorrt or openvino; auto as in `segment`.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, gpu, gpu.1, npu, dla.0.")
@click.option("--for", "targets", metavar="SM,...", help="GPUs by compute capability, not here: TensorRT for RTX.")
@click.option(
    "--precision",
    type=click.Choice(["auto", *PRECISIONS]),
    default="auto",
    show_default=True,
    help="Arithmetic to run in.",
)
@click.option("--output-stride", "strides", type=NumbersType(int), help="Some of the bundle's; all if left out.")
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Largest batch, for graphs exported with any batch size.",
)
@click.option("--workspace", type=click.IntRange(1), metavar="MB", help="Limit of the builder's scratch memory.")
@click.option("--optimization-level", type=click.IntRange(0, 5), help="0 builds quickest, 5 runs fastest.")
@click.option("--hardware-compatible", is_flag=True, help="Engines for every GPU from Ampere on; somewhat slower.")
@click.option("--version-compatible", is_flag=True, help="Engines for newer runtimes too; somewhat slower.")
@click.option("--cache", type=click.Path(path_type=Path), metavar="DIR", help="Where; the user's cache if left out.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def command(
    bundle: Path,
    backend: str,
    device: str,
    targets: str | None,
    precision: Precision | Literal["auto"],
    strides: tuple[int, ...] | None,
    max_batch: int,
    workspace: int | None,
    optimization_level: int | None,
    hardware_compatible: bool,
    version_compatible: bool,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Compile a bundle's networks into the cache, where every later load finds them.

    Without a BUNDLE the embedded one. On a device here, each network then runs a golden frame. With --for, TensorRT for
    RTX compiles for GPUs that need not be here: copy the cache directory there, or share it.
    """
    wanted = tuple(dict.fromkeys(map(_target, targets.split(",")))) if targets is not None else ()
    if wanted and device not in ("auto", "gpu"):
        raise InputError(f"--for compiles for GPUs that are not here, and --device is {device}: leave one of them out")
    build = BuildOptions(
        max_batch=max_batch,
        workspace_bytes=workspace * _MB if workspace is not None else None,
        optimization_level=optimization_level,
        hardware_compatible=hardware_compatible,
        version_compatible=version_compatible,
        targets=wanted,
    )
    where = cache if cache is not None else "auto"
    made = compile_bundle(
        bundle,
        backend=backend,
        device=device,
        precision=precision,
        output_strides=strides,
        build=build,
        cache=where,
        progress=tell,
    )
    if as_json:
        click.echo(
            json.dumps({"cache": str(cache_folder(where)), "compiled": [_record(one) for one in made]}, indent=2)
        )
        return
    for one in made:
        click.echo(_line(one))
    click.echo(f"in {cache_folder(where)}")


def _target(text: str) -> str:
    """sm_86 of SM86, sm86, 8.6."""
    digits = text.strip().lower().removeprefix("sm").removeprefix("_").replace(".", "")
    if not digits.isdecimal():
        raise InputError(f"--for has {text.strip()!r}: give compute capabilities as sm_86,sm_89")
    return f"sm_{digits}"


def _line(one: Compiled) -> str:
    done = f"compiled in {one.elapsed_ns / 1e9:.1f} s" if one.built else "in the cache already"
    proof = "" if one.proven else ", not run"
    count = ""
    if one.layers:
        computing = [layer.precision for layer in one.layers if layer.macs]
        count = f", {computing.count('int8')} of {len(computing)} convolutions in int8" * (one.precision == "int8")
    return (
        f"{one.file}  {one.precision} on {one.backend} for {', '.join(one.places)}: {done}, "
        f"{one.bytes / 1e6:.1f} MB{count}{proof}"
    )


def _record(one: Compiled) -> dict[str, object]:
    return dataclasses.asdict(one) | {"places": list(one.places)}
