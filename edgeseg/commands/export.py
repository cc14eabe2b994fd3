"""`edgeseg export`: a PyTorch network to a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

import edgeseg
from edgeseg import factories
from edgeseg._terminal import NumbersType, SizeType
from edgeseg.errors import InputError
from edgeseg.manifest import ClassInfo
from edgeseg.palette import CAMVID
from edgeseg.types import Size


@click.command()
@click.argument("factory", metavar="PACKAGE.MODULE:FACTORY")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="NAME.edgeseg", help="Bundle to write."
)
@click.option(
    "--weights", type=click.Path(path_type=Path), metavar="FILE", help="Checkpoint: .safetensors, .pt or .pth."
)
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Argument for the factory; may be repeated."
)
@click.option("--size", type=SizeType(), required=True, help="Network input size, height first.")
@click.option(
    "--classes",
    required=True,
    metavar="NAME,NAME,...|@FILE|camvid",
    help="Class names in channel order; @FILE has one per line.",
)
@click.option(
    "--mean",
    type=NumbersType(float, 3),
    default="0.485,0.456,0.406",
    show_default=True,
    help="Per RGB channel, for pixels in 0..1.",
)
@click.option(
    "--std",
    type=NumbersType(float, 3),
    default="0.229,0.224,0.225",
    show_default=True,
    help="Per RGB channel, for pixels in 0..1.",
)
@click.option("--output-stride", type=NumbersType(int), default="16", show_default=True, help="One graph for each.")
@click.option(
    "--fit",
    type=click.Choice(["stretch", "letterbox"]),
    default="stretch",
    show_default=True,
    help="How frames of another shape fit the input.",
)
@click.option(
    "--interpolation",
    type=click.Choice(["bilinear", "area"]),
    default="bilinear",
    show_default=True,
    help="How frames are resized.",
)
@click.option("--overwrite", is_flag=True, help="Replace the bundle if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON instead of a table.")  # fmt: skip
def command(
    factory: str,
    output: Path,
    weights: Path | None,
    settings: tuple[str, ...],
    size: Size,
    classes: str,
    output_stride: tuple[int, ...],
    overwrite: bool,
    as_json: bool,
    **preprocess: Any,
) -> None:
    """Export a PyTorch network as a bundle, every graph checked against torch.

    FACTORY is called with the --set arguments and returns the module: normalised float (N, 3, h, w) to logits.

    \b
    Example: edgeseg export edgeseg.models:deeplabv3 --set backbone=mobilenet_v2 --weights street.safetensors
             --size 360x480 --classes camvid --output-stride 8,16,32 -o street.edgeseg
    """
    names = _classes(classes)
    factories.split(factory)  # before torch is looked for, so that a typing error is told first
    export = edgeseg.export
    model = factories.make(factory, settings, len(names))
    if weights is not None:
        from edgeseg.models import load_weights

        load_weights(model, weights)
    bundle = export(
        model,
        output,
        input_size=size,
        classes=names,
        output_strides=output_stride,
        overwrite=overwrite,
        progress=lambda step: click.echo(step, err=True),
        **preprocess,
    )
    figures = [
        {
            "output_stride": variant.output_stride,
            "file": variant.file,
            "max_abs_logit_error": variant.parity.max_abs_logit_error,
            "mask_agreement": variant.parity.mask_agreement,
        }
        for variant in bundle.manifest.variants
        if variant.parity
    ]
    if as_json:
        click.echo(json.dumps({"bundle": str(output), "variants": figures}, indent=2))
        return
    click.echo(f"{output}: {sum(info.bytes for info in bundle.manifest.files.values()) / 1e6:.1f} MB")
    for row in figures:
        click.echo(
            f"  output stride {row['output_stride']:>2}: logits within {row['max_abs_logit_error']:.1e} of torch, "
            f"{row['mask_agreement']:.4%} of mask pixels equal"
        )


def _classes(text: str) -> list[str | ClassInfo]:
    if text == "camvid":
        return list(CAMVID)
    if not text.startswith("@"):
        return [name.strip() for name in text.split(",")]
    try:
        lines = Path(text[1:]).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read class names from {text[1:]}: {error}") from error
    return [line.strip() for line in lines if line.strip()]
