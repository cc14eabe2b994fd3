"""`edgeseg export`: a PyTorch module or an ONNX file to a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import click

import edgeseg
from edgeseg import factories
from edgeseg._terminal import NumbersType, SizeType, tell
from edgeseg.errors import InputError
from edgeseg.manifest import ClassInfo
from edgeseg.palette import CAMVID
from edgeseg.sources.base import OnnxReading
from edgeseg.types import Color, Size

_EPILOG = """
\b
Example: edgeseg export edgeseg.models:deeplabv3 --set backbone=mobilenet_v2 --weights street.safetensors
         --size 360x480 --classes camvid --output-stride 8,16,32 -o street.edgeseg
         edgeseg export model.onnx --size 512x512 --classes @names.txt --mean 0,0,0 --std 1,1,1 -o m.edgeseg
"""


@click.command(epilog=_EPILOG)
@click.argument("what", metavar="PACKAGE.MODULE:FACTORY|FILE.onnx")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="NAME.edgeseg", help="Bundle to write."
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Checkpoint for the module: .safetensors, .pt or .pth.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Argument for the factory, JSON or Python literal; may be repeated.",
)
@click.option("--size", type=SizeType(), required=True, help="Network input size, height first.")
@click.option(
    "--classes",
    required=True,
    metavar="NAME,NAME,...|@FILE|camvid",
    help="Class names in channel order; @FILE has one per line, with a colour if you like: road #804080.",
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
    help="Per RGB channel, for pixels in 0..1. A network that takes 0..255: mean 0,0,0 and std 1/255 each.",
)
@click.option(
    "--output-stride",
    "output_strides",
    type=NumbersType(int),
    metavar="N,N,...",
    help="One graph for each; the network's own if left out.",
)
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
    help="How frames are resized; area averages where they shrink, at more cost: 1080p to 512x512 on two cores 6.6 ms "
    "instead of 1.1.",
)
@click.option("--dynamic-batch", is_flag=True, help="Make graphs that take any number of frames at once.")
@click.option(
    "--onnx-layout",
    "layout",
    type=click.Choice(["NCHW", "NHWC"]),
    help="How an ONNX file takes its pixels, where its shape does not tell.",
)
@click.option(
    "--onnx-color",
    "color",
    type=click.Choice(["rgb", "bgr"]),
    default="rgb",
    show_default=True,
    help="Channel order an ONNX file takes.",
)
@click.option("--onnx-output", "tensor", metavar="NAME", help="Which output of an ONNX file, if not the first.")
@click.option("--overwrite", is_flag=True, help="Replace the bundle if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON instead of a table.")  # fmt: skip
def command(
    what: str,
    output: Path,
    weights: Path | None,
    settings: tuple[str, ...],
    size: Size,
    classes: str,
    layout: Literal["NCHW", "NHWC"] | None,
    color: Color,
    tensor: str | None,
    as_json: bool,
    **choices: Any,
) -> None:
    """Export a PyTorch module or an ONNX file as a bundle, every graph checked against the original.

    FACTORY is called with the --set arguments and returns the module: normalised float (N, 3, h, w) to scores, as a
    tensor, in a dict, or first in a tuple. An upsampling, softmax or argmax at the end is recognised and cut off.
    """
    names = _classes(classes)
    if what.lower().endswith(".onnx"):
        if weights is not None or settings:
            raise InputError(f"--weights and --set are for PyTorch modules: leave them out for {what}")
        choices["reading"] = OnnxReading(layout, color, tensor)
        model: Any = Path(what)
    elif layout or tensor or color != "rgb":
        raise InputError(f"--onnx-layout, --onnx-color and --onnx-output are for ONNX files: leave them out for {what}")
    else:
        factories.split(what)  # before torch is looked for, so that a typing error is told first
        model = factories.make(what, settings, len(names))
    if weights is not None:
        from edgeseg.models import load_weights

        load_weights(model, weights)
    bundle = edgeseg.export(
        model,
        output,
        input_size=size,
        classes=names,
        progress=tell,
        **choices,
    )
    figures = [
        {
            "output_stride": variant.output_stride,
            "file": variant.file,
            "max_abs_logit_error": variant.parity.max_abs_logit_error,
            "mask_agreement": variant.parity.mask_agreement,
            "reference": variant.parity.reference,
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
            f"  output stride {row['output_stride']:>2}: logits within {row['max_abs_logit_error']:.1e} of "
            f"{row['reference']}, {row['mask_agreement']:.4%} of mask pixels equal"
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
    return [_class(line.strip()) for line in lines if line.strip()]


def _class(line: str) -> str | ClassInfo:
    name, mark, color = line.rpartition("#")
    if not mark or len(color) != 6 or not all(digit in "0123456789abcdefABCDEF" for digit in color):
        return line
    red, green, blue = bytes.fromhex(color)
    return ClassInfo(name.strip(), (red, green, blue))
