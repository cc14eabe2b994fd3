"""mIoU of a torch network at every output stride, with torch's own upsampling."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import click
import numpy as np
import torch
from torch import nn

from edgeseg._terminal import progress
from edgeseg.benchmarks.reference_data import CLASSES, Pair
from edgeseg.benchmarks.reference_training import normalised
from edgeseg.palette import CAMVID
from edgeseg.scoring import confusion, score


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One output stride's score in percent; `iou` by class, None where it does not occur."""

    output_stride: int
    images: int
    miou: float
    pixel_accuracy: float
    iou: dict[str, float | None]


@torch.inference_mode()
def scores(
    model: nn.Module, photos: Sequence[Pair], shares: Sequence[tuple[int, float]], device: str = "cpu"
) -> list[Row]:
    """In eval mode and float32, photos at their own size."""
    model.eval()
    names = [info.name for info in CAMVID]
    rows = []
    for stride in sorted(stride for stride, _ in shares):
        if stride > 1:
            model.set_output_stride(stride)  # type: ignore[operator]
        counts = np.zeros((CLASSES, CLASSES + 1), np.int64)
        with progress(photos, f"stride {stride}") as bar:
            for image, label in bar:
                logits = model(normalised(image[None], device))
                full = nn.functional.interpolate(logits, label.shape, mode="bilinear", align_corners=False)
                counts += confusion(full.argmax(1)[0].to(torch.uint8).cpu().numpy(), label, CLASSES)
        result = score(counts)
        iou = dict(zip(names, (None if np.isnan(value) else round(value, 2) for value in result.iou), strict=True))
        rows.append(Row(stride, len(photos), round(result.miou, 2), round(result.pixel_accuracy, 2), iou))
    return rows


def show(rows: Sequence[Row], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return
    for row in rows:
        click.echo(
            f"output stride {row.output_stride:>2}  mIoU {row.miou:.2f}  pixel accuracy {row.pixel_accuracy:.2f}  "
            f"({row.images} images)"
        )
