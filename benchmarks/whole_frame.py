"""Frame in, mask out, against the raw runtime's inference of the same graph: the cost of everything around the network.

python -m edgeseg.benchmarks.whole_frame --weights ../shared/models/NAME.safetensors

Method: one process; the raw request and the Segmenter take turns frame by frame (A B A B ...), so drift hits both; the
raw side is fed a prepared batch in a shared tensor and its output is not touched. Frames are real photos enlarged to
the frame size (--images), or drawn scenes. Reported: medians, and the median of the pairwise ratios.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import openvino

import edgeseg
from edgeseg import images
from edgeseg._edge import exit_code
from edgeseg._terminal import SizeType
from edgeseg.bundle import Bundle
from edgeseg.palette import CAMVID
from edgeseg.scene import street_scene
from edgeseg.types import Image, Size


@click.command()
@click.option("--weights", type=click.Path(path_type=Path), required=True, help="DeepLabV3-MobileNetV2 checkpoint.")
@click.option("--size", type=SizeType(), default="512x512", show_default=True, help="Network input.")
@click.option("--frame", type=SizeType(), default="1080x1920", show_default=True)
@click.option("--images", "folder", type=click.Path(path_type=Path), help="Folder of photos; drawn scenes if left out.")
@click.option("--output-stride", type=int, default=16, show_default=True)
@click.option("--rounds", type=int, default=200, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    weights: Path, size: Size, frame: Size, folder: Path | None, output_stride: int, rounds: int, as_json: bool
) -> None:
    frames = _frames(frame, folder)
    with tempfile.TemporaryDirectory() as temporary:
        bundle = _export(weights, size, output_stride, Path(temporary))
        report = measure(bundle, frames, rounds)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    for name, value in report.items():
        click.echo(f"{name:<24} {value}")


def measure(bundle: Bundle, frames: list[Image], rounds: int) -> dict[str, Any]:
    """Medians in milliseconds of the raw network, our whole frame and its stages; and the median pairwise ratio."""
    variant = bundle.manifest.variants[0]
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(bundle.path / variant.file, "CPU", config).create_infer_request()
    height, width = bundle.manifest.preprocess.input_size
    batches = [cv2.resize(frame, (width, height))[None].copy() for frame in frames]
    raw, whole, stages = [], [], []
    with edgeseg.load(bundle.path, backend="openvino", precision="fp32") as segmenter:
        for turn in range(-10, rounds):
            frame, batch = frames[turn % len(frames)], batches[turn % len(frames)]
            request.set_input_tensor(openvino.Tensor(batch, shared_memory=True))
            begin = time.perf_counter_ns()
            request.infer()
            middle = time.perf_counter_ns()
            result = segmenter(frame)
            end = time.perf_counter_ns()
            if turn >= 0:
                raw.append(middle - begin)
                whole.append(end - middle)
                stages.append(result.times)
        runtime = segmenter.info.runtime
    ratios = sorted(ours / theirs for ours, theirs in zip(whole, raw, strict=True))

    def median(values: list[int]) -> float:
        return round(statistics.median(values) / 1e6, 3)

    return {
        "runtime": f"{runtime}, CPU, fp32, output stride {variant.output_stride}, {height}x{width}",
        "frame": f"{frames[0].shape[0]}x{frames[0].shape[1]}, {len(frames)} frames, {rounds} rounds",
        "raw_network_ms": median(raw),
        "whole_frame_ms": median(whole),
        "preprocess_ms": median([times.preprocess_ns for times in stages]),
        "network_ms": median([times.network_ns for times in stages]),
        "decode_ms": median([times.decode_ns for times in stages]),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_quartiles": [round(ratios[len(ratios) // 4], 4), round(ratios[3 * len(ratios) // 4], 4)],
    }


def _frames(size: Size, folder: Path | None) -> list[Image]:
    if folder is None:
        return [street_scene(seed, size)[0] for seed in range(4)]
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in images.SUFFIXES)[::10][:8]
    return [np.asarray(cv2.resize(images.read(path), (size[1], size[0])), np.uint8) for path in paths]


def _export(weights: Path, size: Size, output_stride: int, folder: Path) -> Bundle:
    from edgeseg.benchmarks.checkpoints import read_checkpoint

    half = (0.5, 0.5, 0.5)
    return edgeseg.export(
        read_checkpoint(weights),
        folder / "bench.edgeseg",
        input_size=size,
        classes=CAMVID,
        mean=half,
        std=half,
        output_strides=(output_stride,),
    )


if __name__ == "__main__":
    raise SystemExit(exit_code(main, "whole_frame"))
