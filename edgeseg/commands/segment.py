"""`edgeseg segment`: images in, overlays, class maps and areas out."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any

import click

from edgeseg import images, loading
from edgeseg._terminal import progress
from edgeseg.commands.options import runtime_options
from edgeseg.errors import EdgesegError, InputError
from edgeseg.result import Segmentation
from edgeseg.scene import street_scene
from edgeseg.segmenter import Segmenter
from edgeseg.types import Image

_DRAWN = "drawn scene"


@click.command()
@click.argument("sources", nargs=-1, metavar="[IMAGE|FOLDER|GLOB]...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Overlay to write: a file for one image, a folder for several.",
)
@click.option(
    "--class-map",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Class map to write (indexed PNG): a file for one image, a folder for several.",
)
@click.option("--classes", metavar="NAME,NAME", help="Keep only these classes.")
@click.option("--alpha", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Opacity of the overlay.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Which scene to draw when no image is named."
)
@click.option("--json", "as_json", is_flag=True, help="Print the areas as JSON instead of a table.")
@runtime_options  # fmt: skip
def command(
    sources: tuple[str, ...],
    output: Path | None,
    class_map: Path | None,
    classes: str | None,
    alpha: float,
    seed: int,
    as_json: bool,
    **runtime: Any,
) -> int:
    """Segment images: write overlays and class maps, print each class's area.

    Without an image a street scene is drawn; without --bundle the embedded street network runs.

    \b
    Example: edgeseg segment photo.jpg -o overlay.png --class-map mask.png
    """
    paths = _expand(sources)
    names = _output_names(paths)
    many = len(paths) > 1 or any(Path(source).is_dir() for source in sources)
    _check_outputs(paths, output, class_map, many)
    chosen = [name.strip() for name in classes.split(",")] if classes else None
    reports: list[dict[str, Any]] = []
    failed = 0
    with loading.load(classes=chosen, **runtime) as segmenter:
        if not as_json:
            click.echo(segmenter.choice, err=True)
        work: list[Path | None] = [*paths] or [None]
        with progress(work, "segmenting") as bar:
            for path in bar:
                name = str(path) if path else f"{_DRAWN} {seed}"
                try:
                    image = images.read(path) if path else street_scene(seed)[0]
                    result = segmenter(image, counts=True)
                    _write(image, result, alpha, output, class_map, names[path] if many and path else None)
                except EdgesegError as error:
                    if not many:
                        raise
                    failed += 1
                    click.echo(f"edgeseg: {error}", err=True)
                    continue
                reports.append(_report(name, result))
    _print(reports, segmenter, as_json)
    return 1 if failed else 0


def _expand(sources: tuple[str, ...]) -> list[Path]:
    """Files as they are, folders to the images in them, globs to what they match, each once, in order."""
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside = sorted(item for item in path.iterdir() if item.suffix.lower() in images.SUFFIXES)
            if not inside:
                raise InputError(f"no images in {path}: it holds none of {', '.join(sorted(images.SUFFIXES))}")
            found.update(dict.fromkeys(inside))
        elif path.exists() or not glob.has_magic(source):
            found[path] = None
        else:
            matches = sorted(glob.glob(source, recursive=True))
            if not matches:
                raise InputError(f"nothing matches {source!r}: check the pattern")
            found.update(dict.fromkeys(Path(match) for match in matches if Path(match).is_file()))
    return list(found)


def _output_names(paths: list[Path]) -> dict[Path, str]:
    """A PNG name per image: its stem, or its whole name where two images share the stem."""
    stems = [path.stem for path in paths]
    return {path: f"{path.stem if stems.count(path.stem) == 1 else path.name}.png" for path in paths}


def _check_outputs(paths: list[Path], output: Path | None, class_map: Path | None, many: bool) -> None:
    """Refuse, before any work, what could only fail after it or would destroy the images."""
    inputs = {path.resolve() for path in paths}
    for option, target in (("-o", output), ("--class-map", class_map)):
        if target is None:
            continue
        if target.resolve() in inputs or (many and target.resolve() in {path.parent for path in inputs}):
            raise InputError(f"{option} {target} would overwrite the images themselves: choose another path")
        if many and target.exists() and not target.is_dir():
            raise InputError(f"{option} {target} is a file: for several images give a folder")
        if not many and not target.is_dir():
            images.check_suffix(target, class_map=target is class_map)
    if output is not None and class_map is not None and output.resolve() == class_map.resolve():
        raise InputError(f"-o and --class-map are both {output}: choose two paths")


def _write(
    image: Image, result: Segmentation, alpha: float, output: Path | None, class_map: Path | None, name: str | None
) -> None:
    for target, write in (
        (output, lambda path: images.write(path, result.overlay(image, alpha))),
        (class_map, result.save),
    ):
        if target is None:
            continue
        folder = target if name or target.is_dir() else target.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error
        write(folder / (name or "scene.png") if folder == target else target)


def _report(name: str, result: Segmentation) -> dict[str, Any]:
    pixels = result.pixel_counts or {}
    total = sum(pixels.values())
    areas = {key: {"pixels": count, "share": round(count / total, 6)} for key, count in pixels.items()}
    milliseconds = {
        stage.removesuffix("_ns") + "_ms": round(getattr(result.times, stage) / 1e6, 3)
        for stage in ("preprocess_ns", "network_ns", "decode_ns", "total_ns")
    }
    height, width = result.class_map.shape
    return {"image": name, "height": height, "width": width, "areas": areas, "times": milliseconds}


def _print(reports: list[dict[str, Any]], segmenter: Segmenter, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"ran": segmenter.choice, "images": reports}, indent=2))
        return
    for report in reports:
        times = report["times"]
        click.echo(
            f"{report['image']}: {report['height']}x{report['width']}, {times['total_ms']:.1f} ms (preprocess "
            f"{times['preprocess_ms']:.1f}, network {times['network_ms']:.1f}, decode {times['decode_ms']:.1f})"
        )
        for key, area in sorted(report["areas"].items(), key=lambda item: -item[1]["pixels"]):
            if area["pixels"]:
                click.echo(f"  {key:<12} {area['pixels']:>10} px {area['share']:>7.1%}")
