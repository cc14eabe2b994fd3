"""mIoU of a bundle on labelled images, per output stride and backend, beside torch's own from the checkpoint.

python -m edgeseg.benchmarks.accuracy --data ../shared/data/camvid --weights ../shared/models/NAME.safetensors
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click
import cv2
import numpy as np

import edgeseg
from edgeseg import images
from edgeseg._edge import exit_code
from edgeseg._terminal import progress
from edgeseg.benchmarks.quality import Predict, torch_masks
from edgeseg.bundle import Bundle
from edgeseg.errors import InputError
from edgeseg.scoring import confusion, score
from edgeseg.types import ClassMap, Precision


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One configuration's result; `agreement` is the share of all pixels equal to torch's mask (None: no torch)."""

    backend: str
    output_stride: int
    images: int
    miou: float
    pixel_accuracy: float
    agreement: float | None
    iou: dict[str, float]


@click.command()
@click.option("--bundle", "bundle_path", type=click.Path(path_type=Path), default=edgeseg.EMBEDDED)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Holds images/SPLIT and labels/SPLIT.")
@click.option("--split", default="val", show_default=True)
@click.option("--backend", "backends", default="openvino,ort", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "int8"]), default="fp32", show_default=True)
@click.option("--weights", type=click.Path(path_type=Path), help="The bundle's checkpoint: adds torch as the oracle.")
@click.option("--json", "as_json", is_flag=True)
def main(
    bundle_path: Path,
    data: Path,
    split: str,
    backends: str,
    precision: Precision,
    weights: Path | None,
    as_json: bool,
) -> None:
    bundle = Bundle.open(bundle_path)
    pairs = labelled_pairs(data, split)
    rows: list[Row] = []
    for stride in bundle.output_strides:
        oracle = None
        if weights is not None:
            row, oracle = _evaluate("torch", torch_masks(bundle, weights, stride), bundle, stride, pairs, None)
            rows.append(row)
        for backend in backends.split(","):
            with edgeseg.load(bundle_path, backend=backend, precision=precision, output_stride=stride) as segmenter:
                rows.append(_evaluate(backend, lambda x: segmenter(x).class_map, bundle, stride, pairs, oracle)[0])
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return
    for row in rows:
        agreement = "" if row.agreement is None else f"   {row.agreement:.4%} of pixels as torch"
        click.echo(
            f"output stride {row.output_stride:>2}  {row.backend:<9} mIoU {row.miou:.2f}  pixel accuracy "
            f"{row.pixel_accuracy:.2f}  ({row.images} images){agreement}"
        )


def labelled_pairs(data: Path, split: str) -> list[tuple[Path, Path]]:
    labels = {path.stem: path for path in sorted((data / "labels" / split).glob("*.png"))}
    found = sorted(path for path in (data / "images" / split).glob("*") if path.stem in labels)
    if not found:
        raise InputError(f"no labelled images in {data}: it needs images/{split} and labels/{split}")
    return [(path, labels[path.stem]) for path in found]


def _evaluate(
    name: str,
    predict: Predict,
    bundle: Bundle,
    stride: int,
    pairs: list[tuple[Path, Path]],
    oracle: list[ClassMap] | None,
) -> tuple[Row, list[ClassMap]]:
    names = [info.name for info in bundle.manifest.classes]
    counts = np.zeros((len(names), len(names) + 1), np.int64)
    masks = []
    with progress(pairs, f"{name}, stride {stride}") as bar:
        for photo, label_path in bar:
            label = cv2.imread(str(label_path), cv2.IMREAD_UNCHANGED)
            masks.append(predict(images.read(photo)))
            counts += confusion(masks[-1], np.asarray(label, np.uint8), len(names))
    result = score(counts)
    agreement = None
    if oracle is not None:
        agreement = float(np.mean([np.mean(ours == theirs) for ours, theirs in zip(masks, oracle, strict=True)]))
    iou = dict(zip(names, (round(value, 2) for value in result.iou), strict=True))
    return Row(name, stride, len(pairs), result.miou, result.pixel_accuracy, agreement, iou), masks


if __name__ == "__main__":
    raise SystemExit(exit_code(main, "accuracy"))
