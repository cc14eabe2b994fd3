"""`edgeseg segment`: images in, overlays, class maps and areas out."""

from __future__ import annotations

import glob
import json
import os
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edgeseg import images, loading
from edgeseg._terminal import progress, swatch
from edgeseg.commands.options import runtime_options
from edgeseg.errors import EdgesegError, InputError
from edgeseg.result import Segmentation
from edgeseg.scene import street_scene
from edgeseg.segmenter import Segmenter

_OUTPUT = "a file for one image, a folder for several; NAME/ is a folder."


@dataclass(frozen=True, slots=True)
class _Job:
    """One image (None: the drawn scene) and the files to write for it."""

    source: Path | None
    overlay: Path | None
    class_map: Path | None


@click.command(epilog="\b\nExample: edgeseg segment photo.jpg -o overlay.png --class-map mask.png")
@click.argument("sources", nargs=-1, metavar="[IMAGE|FOLDER|GLOB]...")
@click.option("-o", "--output", metavar="PATH", help=f"Overlay to write: {_OUTPUT}")
@click.option("--class-map", metavar="PATH", help=f"Class map to write (indexed PNG): {_OUTPUT}")
@click.option("--classes", metavar="NAME,NAME", help="Keep only these classes.")
@click.option("--alpha", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Opacity of the overlay.")
@click.option("--seed", type=click.IntRange(0), help="Which scene to draw where no image is named; 0 if left out.")
@click.option("--json", "as_json", is_flag=True, help="Print the areas as JSON instead of a table.")
@runtime_options  # fmt: skip
def command(
    sources: tuple[str, ...],
    output: str | None,
    class_map: str | None,
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
    chosen = [name.strip() for name in classes.split(",")] if classes else None
    if seed is not None and sources:
        raise InputError("--seed draws a scene: leave out the images, or --seed")
    paths, failed = _expand(sources)
    if sources and not paths:
        return 1  # each has been told
    many = len(paths) + failed > 1 or any(os.path.isdir(source) for source in sources)
    jobs = _plan(paths, output, class_map, many)
    reports: list[dict[str, Any]] = []
    with loading.load(classes=chosen, **runtime) as segmenter:
        _prepare(jobs)
        if not as_json:
            click.echo(segmenter.choice, err=True)
        try:
            # tables on a terminal are progress enough, and a bar would be torn by them
            with progress(jobs, "segmenting", hidden=not as_json and sys.stdout.isatty()) as bar:
                for job in bar:
                    try:
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


def _expand(sources: tuple[str, ...]) -> tuple[list[Path], int]:
    """Files as they are, folders to the images in them, globs to what they match, each once, in order.

    And how many of several named files cannot be read, which are told here: a FIFO would be waited for.
    """
    found: dict[str, Path] = {}
    failed = 0
    for source in sources:
        path = Path(source)
        if not source:
            raise InputError("the name of an image is empty: is a variable of the shell not set?")
        if os.path.isdir(path):
            try:
                inside = _regular(item for item in path.iterdir() if item.suffix.lower() in images.SUFFIXES)
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror}") from error
            if not inside:
                raise InputError(f"no images in {path}: it holds none of {', '.join(sorted(images.SUFFIXES))}")
        elif os.path.lexists(path) or not glob.has_magic(source):
            inside = [path]
            if problem := _problem(path):
                if len(sources) == 1:
                    raise InputError(f"cannot read {path}: {problem}")
                click.echo(f"edgeseg: cannot read {path}: {problem}", err=True)
                inside = []
                failed += 1
        else:
            inside = _regular(Path(match) for match in glob.glob(source, recursive=True))
            if not inside:
                raise InputError(f"nothing matches {source!r}: check the pattern")
        for item in inside:
            found.setdefault(os.path.abspath(item), item)
    return list(found.values()), failed


def _regular(items: Iterable[Path]) -> list[Path]:
    """The regular files, sorted; whatever else has an image's name is told."""
    kept = []
    for path in sorted(items):
        problem = _problem(path)
        if problem is None:
            kept.append(path)
        elif path.suffix.lower() in images.SUFFIXES:
            click.echo(f"edgeseg: skipped {path}: {problem}", err=True)
    return kept


def _problem(path: Path) -> str | None:
    """Why there is no file to read at `path`; None where it can be tried."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    if not stat.S_ISREG(mode):
        return "it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file"
    return None if os.access(path, os.R_OK) else "permission denied"


def _plan(paths: list[Path], output: str | None, class_map: str | None, many: bool) -> list[_Job]:
    """What to write for which image; refuses, before any work, what would destroy an image or lose a result."""
    overlays = _targets("-o", output, paths, many)
    masks = _targets("--class-map", class_map, paths, many)
    sources: list[Path | None] = [*paths] or [None]
    jobs = [_Job(*row) for row in zip(sources, overlays, masks, strict=True)]
    inputs = {os.path.realpath(path) for path in paths}
    taken: dict[str, tuple[str, Path | None]] = {}
    for job in jobs:
        for option, target in (("-o", job.overlay), ("--class-map", job.class_map)):
            if target is None:
                continue
            real = os.path.realpath(target)
            if real in inputs:
                raise InputError(f"{option} would overwrite the image {target}: choose another path")
            other, source = taken.setdefault(real, (option, job.source))
            if other != option:
                raise InputError(f"{other} and {option} would both write {target}: choose two paths")
            if source != job.source:
                raise InputError(f"{source} and {job.source} would both become {target}: rename one of them")
    return jobs


def _targets(option: str, text: str | None, paths: list[Path], many: bool) -> list[Path | None]:
    """The file that `option` means for each image."""
    names = _output_names(paths)
    if text is None:
        return [None] * len(names)
    target = Path(text)
    if not text:
        raise InputError(f"{option} is empty: name a file or a folder")
    slashed = text.endswith(("/", os.sep))
    if not os.path.isdir(target):
        if not many and not slashed:
            images.check_suffix(target, class_map=option == "--class-map")
            return [target]
        if os.path.lexists(target):
            raise InputError(f"{option} {target} is a file: {'for several images ' * many}give a folder")
        if not slashed and target.suffix.lower() in images.SUFFIXES:
            raise InputError(f"{option} {target} is a single file's name: for several images give a folder")
    elif many and os.path.realpath(target) in {os.path.dirname(os.path.realpath(path)) for path in paths}:
        # even where no name is the same, the next run would take the overlays for images
        raise InputError(f"{option} {target} holds the images themselves: choose another folder")
    return [target / name for name in names]


def _output_names(paths: list[Path]) -> list[Path]:
    """A PNG name per image, below the folder they share: its stem, or its whole name where two share the stem."""
    if not paths:
        return [Path("scene.png")]
    absolute = [os.path.abspath(path) for path in paths]
    try:
        top = os.path.commonpath([os.path.dirname(path) for path in absolute])
    except ValueError as error:  # Windows' drives
        raise InputError("the images share no folder: segment each drive's by themselves") from error
    below = [Path(os.path.relpath(path, top)) for path in absolute]
    stems = Counter((path.parent, path.stem) for path in below)
    return [path.parent / f"{path.stem if stems[path.parent, path.stem] == 1 else path.name}.png" for path in below]


def _prepare(jobs: list[_Job]) -> None:
    """Make the folders and see that they take files, so that it is told once and before the images are segmented."""
    targets = [target for job in jobs for target in (job.overlay, job.class_map) if target is not None]
    for folder in dict.fromkeys(target.parent for target in targets):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error
    for target in targets:
        try:
            if stat.S_ISDIR(os.stat(target).st_mode):
                raise InputError(f"cannot write {target}: it is a folder")
        except FileNotFoundError:
            continue
        except OSError as error:  # a name that is too long
            raise InputError(f"cannot write {target}: {error.strerror or error}") from error


def _segment(job: _Job, segmenter: Segmenter, alpha: float, seed: int, chosen: list[str] | None) -> dict[str, Any]:
    image = images.read(job.source) if job.source else street_scene(seed)[0]
    result = segmenter(image, counts=True)
    if job.overlay:
        images.write(job.overlay, result.overlay(image, alpha))
    if job.class_map:
        result.save(job.class_map)
    return {
        "image": str(job.source) if job.source else f"drawn scene {seed}",
        **_report(result, chosen),
        "overlay": job.overlay and str(job.overlay),
        "class_map": job.class_map and str(job.class_map),
    }


def _report(result: Segmentation, chosen: list[str] | None) -> dict[str, Any]:
    pixels = result.pixel_counts or {}
    total = sum(pixels.values())
    colors = {info.name: "#" + bytes(info.color).hex() for info in result.classes}
    areas = {
        name: {"pixels": count, "share": round(count / total, 6), "color": colors.get(name)}
        for name, count in pixels.items()
        if chosen is None or name in chosen or name not in colors  # not a class: the unlabelled rest
    }
    milliseconds = {
        stage.removesuffix("_ns") + "_ms": round(getattr(result.times, stage) / 1e6, 3)
        for stage in ("preprocess_ns", "network_ns", "decode_ns", "total_ns")
    }
    height, width = result.class_map.shape
    return {"height": height, "width": width, "areas": areas, "times": milliseconds}


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
