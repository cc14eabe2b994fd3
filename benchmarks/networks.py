"""Every network of `edgeseg.models` at every output stride: exported, run on each CPU backend, compared with torch.

python -m edgeseg.benchmarks.networks --images ../shared/data/camvid/images/val

Weights are reproducible noise of a calm scale (no checkpoints of these networks can be had here), photos are resized to
the network's input, and torch's side is its own: float normalisation, F.interpolate, argmax.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn

import edgeseg
from edgeseg import images
from edgeseg._edge import exit_code
from edgeseg._terminal import SizeType, progress
from edgeseg.models import deeplabv3, set_output_stride, torchvision_deeplabv3, unet
from edgeseg.preprocess import Preprocessor
from edgeseg.scene import street_scene
from edgeseg.types import Image, Preprocess, Size

_CLASSES = 21
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "torchvision deeplabv3_resnet50": (lambda: torchvision_deeplabv3("deeplabv3_resnet50"), (8, 16, 32)),
    "torchvision deeplabv3_resnet101": (lambda: torchvision_deeplabv3("deeplabv3_resnet101"), (8, 16, 32)),
    "torchvision deeplabv3_mobilenet_v3_large": (
        lambda: torchvision_deeplabv3("deeplabv3_mobilenet_v3_large"),
        (8, 16, 32),
    ),
    "deeplabv3 mobilenet_v2": (lambda: deeplabv3("mobilenet_v2", num_classes=_CLASSES), (8, 16, 32)),
    "deeplabv3+ mobilenet_v2": (lambda: deeplabv3("mobilenet_v2", num_classes=_CLASSES, decoder="plus"), (8, 16, 32)),
    "deeplabv3 mobilenet_v2, subpixel": (
        lambda: deeplabv3("mobilenet_v2", num_classes=_CLASSES, decoder="subpixel"),
        (8, 16, 32),
    ),
    "deeplabv3 resnet50, multi-grid": (
        lambda: deeplabv3("resnet50", num_classes=_CLASSES, multi_grid=(1, 2, 4)),
        (8, 16, 32),
    ),
    "Unet-8": (lambda: unet(num_classes=_CLASSES, bottleneck_stride=8), (1,)),
    "Unet-16": (lambda: unet(num_classes=_CLASSES, bottleneck_stride=16), (1,)),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """`agreement` is the share of mask pixels equal to torch's on each backend; `error` the export's, on logits."""

    network: str
    output_stride: int
    error: float
    agreement: dict[str, float]


@click.command()
@click.option("--images", "folder", type=click.Path(path_type=Path), help="Folder of photos; drawn scenes if left out.")
@click.option("--size", type=SizeType(), default="192x256", show_default=True, help="Network input.")
@click.option("--only", default="", help="Only networks whose name contains this.")
@click.option("--json", "as_json", is_flag=True)
def main(folder: Path | None, size: Size, only: str, as_json: bool) -> None:
    frames = _frames(folder, size)
    work = [(name, stride) for name, (_, strides) in NETWORKS.items() if only in name for stride in strides]
    rows = []
    with progress(work, "networks") as bar:
        for name, stride in bar:
            rows.append(_row(name, stride, frames, size))
            if not as_json:
                row = rows[-1]
                shares = "  ".join(f"{backend} {share:.4%}" for backend, share in row.agreement.items())
                click.echo(f"{name:<42} stride {stride:>2}  logits within {row.error:.1e}  {shares}")
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))


def _row(name: str, stride: int, frames: list[Image], size: Size) -> Row:
    model = NETWORKS[name][0]().eval()
    calm(model)
    if stride > 1:
        set_output_stride(model, stride)
    names = [f"class{index}" for index in range(_CLASSES)]
    wanted = [_torch(model, frame) for frame in frames]
    agreement = {}
    with tempfile.TemporaryDirectory() as temporary:
        bundle = edgeseg.export(
            model, Path(temporary) / "n.edgeseg", input_size=size, classes=names, mean=_MEAN, std=_STD
        )
        for backend in ("ort", "openvino"):
            with edgeseg.load(bundle.path, backend=backend, cache=None) as segmenter:
                equal = [
                    np.mean(segmenter(frame).class_map == mask) for frame, mask in zip(frames, wanted, strict=True)
                ]
            agreement[backend] = float(np.mean(equal))
    parity = bundle.manifest.variants[0].parity
    return Row(name, stride, parity.max_abs_logit_error if parity else math.nan, agreement)


def calm(model: nn.Module) -> None:
    """Fill in reproducible noise that keeps activations in range, whatever the depth: He et al. 2015 for kernels."""
    state = {}
    for name, value in model.state_dict().items():
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        state[name] = _entry(name, value, noise)
    model.load_state_dict(state)


def _entry(name: str, value: Tensor, noise: Tensor) -> Tensor:
    if not value.is_floating_point():
        return torch.zeros_like(value)
    if value.ndim == 4:
        return noise * math.sqrt(2 / math.prod(value.shape[1:]))
    if name.endswith("running_var"):
        return 1 + 0.1 * noise.abs()
    # The last norm of a residual branch is damped, so that sums over many blocks do not grow.
    gain = 0.25 if name.endswith(("bn3.weight", "conv.3.weight")) else 1.0
    return gain * (1 + 0.1 * noise) if name.endswith(".weight") else 0.1 * noise


@torch.inference_mode()
def _torch(model: nn.Module, frame: Image) -> Image:
    x = (frame / np.float32(255) - np.array(_MEAN, np.float32)) / np.array(_STD, np.float32)
    logits = model(torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32)))
    upsampled = nn.functional.interpolate(logits, frame.shape[:2], mode="bilinear", align_corners=False)
    return np.asarray(upsampled.argmax(1)[0].numpy(), np.uint8)


def _frames(folder: Path | None, size: Size) -> list[Image]:
    if folder is None:
        return [street_scene(seed, size)[0] for seed in range(4)]
    preprocessor = Preprocessor(Preprocess(size, _MEAN, _STD))
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in images.SUFFIXES)[::25]
    return [preprocessor.prepare(images.read(path))[0].copy() for path in paths]


if __name__ == "__main__":
    raise SystemExit(exit_code(main, "networks"))
