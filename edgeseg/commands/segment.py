"""`edgeseg segment`: images in, overlays, class maps and areas out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from edgeseg import images, loading, rasters
from edgeseg._terminal import Finite, progress, swatch
from edgeseg.commands import segment_files
from edgeseg.commands.options import runtime_options
from edgeseg.commands.segment_files import Job
from edgeseg.errors import EdgesegError, InputError
from edgeseg.manifest import ClassInfo
from edgeseg.result import Segmentation
from edgeseg.scene import street_scene
from edgeseg.segmenter import Segmenter
from edgeseg.tiling import SCALES
from edgeseg.types import Image, Size, StageTimes

_OUTPUT = "a file for one image, a folder for several; NAME/ is a folder."


@click.command(epilog="\b\nExample: edgeseg segment photo.jpg -o overlay.png --class-map mask.png")
@click.argument("sources", nargs=-1, metavar="[IMAGE|FOLDER|GLOB]...")
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    help=f"Overlay to write: {_OUTPUT} NAME.tif of a GeoTIFF has its coordinates too (needs rasterio).",
)
@click.option("--class-map", metavar="PATH", help=f"Class map to write (indexed PNG): {_OUTPUT}")
@click.option(
    "--tile",
    is_flag=True,
    help="Segment at the image's own resolution, in tiles of the network's input size; "
    "a --class-map NAME.tif is then a GeoTIFF, and its image read by windows (needs rasterio).",
)
@click.option(
    "--overlap",
    type=click.IntRange(0),
    metavar="PX",
    help="With --tile: by how much neighbours lie over each other, at least; half a tile if left out.",
)
@click.option(
    "--scale",
    type=Finite(*SCALES),
    metavar="X",
    help="With --tile: resize the image for the network; 0.5 halves it, for objects twice as large as in training.",
)
@click.option("--classes", metavar="NAME,NAME", help="Keep only these classes.")
@click.option("--alpha", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Opacity of the overlay.")
@click.option("--seed", type=click.IntRange(0), help="Which scene to draw where no image is named; 0 if left out.")
@click.option("--json", "as_json", is_flag=True, help="Print the areas as JSON instead of a table.")
@runtime_options  # fmt: skip
def command(
    sources: tuple[str, ...],
    output: str | None,
    class_map: str | None,
    tile: bool,
    overlap: int | None,
    scale: float | None,
    classes: str | None,
    alpha: float,
    seed: int | None,
    as_json: bool,
    **runtime: Any,
) -> int:
    """Segment images: write overlays and class maps, print each class's colour and area.

    Without an image a street scene is drawn; without --bundle the embedded street network runs. Several images keep
    their paths below the folder they share, as PNG: x.jpg becomes x.png, or x.jpg.png where another x is beside it.
    """
    if classes is not None and not classes.strip():
        raise InputError("--classes is empty: name at least one class, or leave it out")
    if overlap is not None and not tile:
        raise InputError("--overlap is between tiles: add --tile, or leave it out")
    if scale is not None and not tile:
        raise InputError("--scale is of tiles, a frame is resized to the network's input: add --tile, or leave it out")
    chosen = [name.strip() for name in classes.split(",")] if classes else None
    if seed is not None and sources:
        raise InputError("--seed draws a scene: leave out the images, or --seed")
    paths, failed = segment_files.expand(sources)
    if sources and not paths:
        return 1  # each has been told
    many = len(paths) + failed > 1 or any(os.path.isdir(source) for source in sources)
    jobs = segment_files.plan(paths, output, class_map, many, tile)
    reports: list[dict[str, Any]] = []
    with loading.load(classes=chosen, **runtime) as segmenter:
        segment_files.prepare(jobs)
        if not as_json:
            click.echo(segmenter.choice, err=True)
        try:
            # tables on a terminal are progress enough, and a bar would be torn by them
            with progress(jobs, "segmenting", hidden=not as_json and sys.stdout.isatty()) as bar:
                for job in bar:
                    try:
                        if tile:
                            spread = {"overlap": overlap, "scale": scale or 1.0}
                            report = _segment_tiles(job, segmenter, alpha, seed or 0, chosen, spread, many)
                        else:
                            report = _segment(job, segmenter, alpha, seed or 0, chosen)
                    except EdgesegError as error:
                        if not many:
                            raise
                        failed += 1
                        click.echo(f"edgeseg: {error}", err=True)
                        continue
                    reports.append(report)
                    if not as_json:
                        _print(report, every=chosen is not None)
        except KeyboardInterrupt:  # what is done is not lost
            if as_json:
                _print_json(segmenter, reports)
            raise
    if as_json:
        _print_json(segmenter, reports)
    return 1 if failed else 0


def _segment(job: Job, segmenter: Segmenter, alpha: float, seed: int, chosen: list[str] | None) -> dict[str, Any]:
    image = _image(job, seed)
    return _written(job, image, segmenter(image, counts=True), alpha, seed, chosen)


def _segment_tiles(
    job: Job,
    segmenter: Segmenter,
    alpha: float,
    seed: int,
    chosen: list[str] | None,
    spread: dict[str, Any],
    many: bool,
) -> dict[str, Any]:
    """`spread` is how tiles are laid out: `overlap` and `scale`, as `Segmenter.tiled` takes them."""

    def track(tiles: Sequence[int]) -> Iterator[int]:
        with progress(tiles, "tiling", hidden=many) as bar:
            yield from bar

    if job.raster:
        assert job.source is not None
        assert job.class_map is not None
        done = rasters.segment_file(segmenter, job.source, job.class_map, track=track, **spread)
        return _report(job, seed, done.size, done.pixel_counts, done.times, segmenter.classes, chosen)
    image = _image(job, seed)
    return _written(job, image, segmenter.tiled(image, counts=True, track=track, **spread), alpha, seed, chosen)


def _image(job: Job, seed: int) -> Image:
    return images.read(job.source) if job.source else street_scene(seed)[0]


def _written(
    job: Job, image: Image, result: Segmentation, alpha: float, seed: int, chosen: list[str] | None
) -> dict[str, Any]:
    if job.overlay:
        _write_overlay(job.source, job.overlay, result.overlay(image, alpha))
    if job.class_map:
        result.save(job.class_map)
    size = (image.shape[0], image.shape[1])
    return _report(job, seed, size, result.pixel_counts or {}, result.times, result.classes, chosen)


def _write_overlay(source: Path | None, target: Path, pixels: Image) -> None:
    """With the coordinates of the image, where both are TIFF and the image has any."""
    if source and source.suffix.lower() in rasters.SUFFIXES and target.suffix.lower() in rasters.SUFFIXES:
        try:
            if rasters.write_placed(target, pixels, source):
                return
        except InputError as error:
            click.echo(f"note: {target} has no coordinates, should {source} have any: {error}", err=True)
    images.write(target, pixels)


def _report(
    job: Job,
    seed: int,
    size: Size,
    pixels: dict[str, int],
    times: StageTimes,
    classes: tuple[ClassInfo, ...],
    chosen: list[str] | None,
) -> dict[str, Any]:
    total = sum(pixels.values())
    colors = {info.name: "#" + bytes(info.color).hex() for info in classes}
    areas = {
        name: {"pixels": count, "share": round(count / total, 6), "color": colors.get(name)}
        for name, count in pixels.items()
        if chosen is None or name in chosen or name not in colors  # not a class: the unlabelled rest
    }
    stages = ("preprocess_ns", "network_ns", "decode_ns", "total_ns")
    return {
        "image": str(job.source) if job.source else f"drawn scene {seed}",
        "height": size[0],
        "width": size[1],
        "areas": areas,
        "times": {stage.removesuffix("_ns") + "_ms": round(getattr(times, stage) / 1e6, 3) for stage in stages},
        "overlay": job.overlay and str(job.overlay),
        "class_map": job.class_map and str(job.class_map),
    }


def _print_json(segmenter: Segmenter, reports: list[dict[str, Any]]) -> None:
    click.echo(json.dumps({"ran": segmenter.choice, "images": reports}, indent=2))


def _print(report: dict[str, Any], *, every: bool) -> None:
    """The times, and a row per class: those with pixels, or `every` one."""
    times = report["times"]
    click.echo(
        f"{report['image']}: {report['height']}x{report['width']}, {times['total_ms']:.1f} ms (preprocess "
        f"{times['preprocess_ms']:.1f}, network {times['network_ms']:.1f}, decode {times['decode_ms']:.1f})"
    )
    for name, area in sorted(report["areas"].items(), key=lambda item: -item[1]["pixels"]):
        if area["pixels"] or every:
            row = f"{name:<12} {area['pixels']:>10} px {area['share']:>7.1%}  {area['color'] or ''}".rstrip()
            click.echo(f"{swatch(area['color'])} {row}")
