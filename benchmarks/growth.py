"""Cost as the work grows: frame sizes, classes, batch, threads; and which stage is then the bottleneck.

python -m edgeseg.benchmarks.growth                       # the embedded bundle
python -m edgeseg.benchmarks.growth --bundle BUNDLE --precision int8 --images DIR --json

Method: within each table all rows take turns round by round in one process; medians. More classes than the network has
are planes of its own logits of all frames, mirrored, at the level and spread that losing classes have at each pixel;
one in ten of them may win somewhere, the others are absent from the picture. Fewer are the largest of several. Batches
run on the bundle's fp32 graph, exported anew for any batch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

import edgeseg
from edgeseg import registry
from edgeseg._edge import exit_code
from edgeseg._terminal import status
from edgeseg.backends.base import Options
from edgeseg.benchmarks.extras import Decoding, Growth, Stages
from edgeseg.benchmarks.feed import frames_of
from edgeseg.benchmarks.growth_classes import Floats, decodings
from edgeseg.benchmarks.peers_graph import usual_graph
from edgeseg.bundle import Bundle
from edgeseg.calibration.datasets import Dataset, open_dataset
from edgeseg.preprocess import Preprocessor
from edgeseg.segmenter import Segmenter
from edgeseg.types import Image, Precision, Size

FRAMES: tuple[Size, ...] = ((480, 854), (720, 1280), (1080, 1920), (2160, 3840))
CLASSES = (2, 21, 150)
BATCHES = (1, 2, 4, 8, 16)
THREADS = (1, 2)
_DECODED: tuple[Size, ...] = ((1080, 1920), (2160, 3840))
_WARMUP = 3

Tell = Callable[[str], None]


@click.command()
@click.option("--bundle", "path", type=click.Path(path_type=Path), default=edgeseg.EMBEDDED, help="The embedded one.")
@click.option("--output-stride", type=int, default=16, show_default=True)
@click.option("--precision", type=click.Choice(["int8", "fp32"]), default="int8", show_default=True)
@click.option("--backend", default="openvino", show_default=True)
@click.option("--images", "folder", type=click.Path(path_type=Path), help="Folder of photos; drawn scenes if left out.")
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(as_json: bool, folder: Path | None, path: Path, **options: Any) -> None:
    classes = Bundle.open(path, verify=False).manifest.classes
    images = None if folder is None else open_dataset(folder, classes=classes)
    with status() as tell:
        found = grow(path=path, images=images, tell=tell, **options)
    click.echo(json.dumps(dataclasses.asdict(found), indent=2) if as_json else table(found))


def grow(
    *,
    path: Path,
    output_stride: int = 16,
    precision: Precision = "int8",
    backend: str = "openvino",
    images: Dataset | None = None,
    rounds: int = 30,
    frames: Sequence[Size] = FRAMES,
    classes: Sequence[int] = CLASSES,
    decoded: Sequence[Size] = _DECODED,
    batches: Sequence[int] = BATCHES,
    threads: Sequence[int] = THREADS,
    tell: Tell = lambda step: None,
) -> Growth:
    """Measure every table, batches and threads on frames of the first size of `decoded`: of `images`, or drawn scenes.

    Raises BundleError for a variant that is not there, BackendError, InputError.
    """
    bundle = Bundle.open(path)
    load = functools.partial(edgeseg.load, path, backend=backend, precision=precision, output_stride=output_stride)
    pictures = {size: frames_of(images, size)[0] for size in {*frames, decoded[0]}}
    usual, fed = frames_of(images, decoded[0])
    with ExitStack() as stack:
        segmenter = stack.enter_context(load())
        by_frame = _stages(
            {f"{h}x{w}": _one(segmenter, pictures[h, w]) for h, w in frames},
            rounds,
            lambda step: tell(f"frames {step}"),
        )
        logits = _logits(bundle, segmenter, usual)
        by_classes = decodings(logits, classes, decoded, rounds, tell)
        folder_ = stack.enter_context(tempfile.TemporaryDirectory())
        any_batch = _any_batch(bundle, output_stride, Path(folder_))
        batcher = stack.enter_context(edgeseg.load(any_batch, backend=backend, precision="fp32", cache=None))
        by_batch = _stages(
            {f"batch {n}": _batch(batcher, usual, n) for n in batches},
            max(2, rounds // 4),
            lambda step: tell(f"batches {step}"),
        )
        loaded = {n: stack.enter_context(load(threads=n)) for n in threads}
        by_threads = _stages(
            {f"threads {n}": _one(one, usual) for n, one in loaded.items()},
            rounds,
            lambda step: tell(f"threads {step}"),
        )
        h, w = segmenter.input_size
        network = (
            f"{bundle.manifest.name}, {segmenter.info.runtime}, output stride {output_stride}, {precision}, {h}x{w}"
        )
    return Growth(
        network=network,
        pictures=f"{fed.source}, {rounds} rounds",
        frames=by_frame,
        classes=by_classes,
        batches=by_batch,
        threads=by_threads,
        sentences=(*_frame_sentences(by_frame), *_class_sentences(by_classes, by_frame)),
    )


def table(found: Growth) -> str:
    """All tables in lines for a terminal."""
    lines = [f"{found.network}; {found.pictures}"]
    for title, rows in (
        ("frame", found.frames),
        ("batch (fp32), per image", found.batches),
        ("threads", found.threads),
    ):
        lines.append(f"{title:<26}{'total':>9}{'preprocess':>12}{'network':>9}{'decode':>8}   ms")
        for row in rows:
            stages = f"{row.preprocess_ms:>12.2f}{row.network_ms:>9.2f}{row.decode_ms:>8.2f}"
            lines.append(f"{row.name:<26}{row.total_ms:>9.2f}{stages}")
    lines.append(f"{'classes decoded':<26}{'plain':>9}{'confidence':>12}{'cv2.resize + argmax':>22}   ms")
    for one in found.classes:
        opencv = "too large" if one.opencv_ms is None else f"{one.opencv_ms:.1f}"
        name = f"{one.classes} to {one.frame[0]}x{one.frame[1]}"
        lines.append(f"{name:<26}{one.plain_ms:>9.2f}{one.confidence_ms:>12.2f}{opencv:>22}   "
                     f"{one.contested:.0%} of cells contested")  # fmt: skip
    return "\n".join([*lines, *found.sentences])


_Run = Callable[[int], tuple[int, int, int, int]]
"""One turn: nanoseconds in total, preprocess, network, decode."""


def _stages(runs: Mapping[str, _Run], rounds: int, tell: Tell) -> tuple[Stages, ...]:
    taken: dict[str, list[tuple[int, int, int, int]]] = {name: [] for name in runs}
    for turn in range(-_WARMUP, rounds):
        tell(f"round {turn + 1} of {rounds}")
        for name, run in runs.items():
            times = run(turn)
            if turn >= 0:
                taken[name].append(times)
    medians = {
        name: [statistics.median(part) / 1e6 for part in zip(*times, strict=True)] for name, times in taken.items()
    }
    return tuple(Stages(name, *parts) for name, parts in medians.items())


def _one(segmenter: Segmenter, frames: Sequence[Image]) -> _Run:
    def run(turn: int) -> tuple[int, int, int, int]:
        times = segmenter(frames[turn % len(frames)]).times
        return times.total_ns, times.preprocess_ns, times.network_ns, times.decode_ns

    return run


def _batch(segmenter: Segmenter, frames: Sequence[Image], count: int) -> _Run:
    def run(turn: int) -> tuple[int, int, int, int]:
        times = segmenter.batch([frames[(turn + at) % len(frames)] for at in range(count)])[0].times
        return times.total_ns // count, times.preprocess_ns, times.network_ns // count, times.decode_ns

    return run


def _logits(bundle: Bundle, segmenter: Segmenter, frames: Sequence[Image]) -> list[Floats]:
    model, preprocessor = bundle.model(segmenter.variant), Preprocessor(bundle.manifest.preprocess)
    info = segmenter.info
    with registry.get(info.backend).open(model, info.device, Options(model.precision), None) as session:
        return [session.run(preprocessor.prepare(frame))[0] for frame in frames]


def _any_batch(bundle: Bundle, output_stride: int, folder: Path) -> Path:
    manifest = bundle.manifest
    source = bundle.model(bundle.variant(output_stride, "fp32"))
    usual = usual_graph(source, manifest.preprocess, folder / "usual.onnx")
    made = edgeseg.export(
        usual.path,
        folder / "any.edgeseg",
        input_size=usual.size,
        classes=manifest.classes,
        mean=manifest.preprocess.mean,
        std=manifest.preprocess.std,
        dynamic_batch=True,
    )
    return made.path


def _frame_sentences(rows: Sequence[Stages]) -> list[str]:
    """What share each stage has at the smallest and the largest frame, and where the network is not the largest."""
    said = []
    for row in (rows[0], rows[-1]) if len(rows) > 1 else rows:
        parts = [part / row.total_ms for part in (row.preprocess_ms, row.network_ms, row.decode_ms)]
        said.append(
            f"{row.name}: preprocess {parts[0]:.0%}, network {parts[1]:.0%}, decode {parts[2]:.0%} of the frame."
        )
    beaten = [row for row in rows if max(row.preprocess_ms, row.decode_ms) > row.network_ms]
    for row in beaten:
        stage = "decode" if row.decode_ms > row.preprocess_ms else "preprocess"
        said.append(f"At {row.name} {stage} is the bottleneck, not the network.")
    return said if beaten else [*said, "The network is the bottleneck at every frame size."]


def _class_sentences(rows: Sequence[Decoding], frames: Sequence[Stages]) -> list[str]:
    """Where decoding takes more than half of what the network takes."""
    said = []
    networks = {row.name: row.network_ms for row in frames}
    for row in rows:
        network = networks.get(f"{row.frame[0]}x{row.frame[1]}")
        for kind, ms in (("", row.plain_ms), (" with confidence", row.confidence_ms)):
            if network is not None and ms > network / 2:
                where = f"{row.classes} classes to {row.frame[0]}x{row.frame[1]}"
                said.append(f"Decoding {where}{kind} takes {ms / network:.1f} times as long as the network.")
    return said or ["Decoding takes less than half of the network's time with any number of classes."]


if __name__ == "__main__":
    raise SystemExit(exit_code(main, "growth"))
