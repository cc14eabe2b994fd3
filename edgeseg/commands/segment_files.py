"""Which files `edgeseg segment` reads and writes, decided and checked before any work."""

from __future__ import annotations

import glob
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click

from edgeseg import images, rasters
from edgeseg.errors import InputError


@dataclass(frozen=True, slots=True)
class Job:
    """One image (None: the drawn scene) and the files to write for it."""

    source: Path | None
    overlay: Path | None
    class_map: Path | None

    @property
    def raster(self) -> bool:
        """Whether the class map is a GeoTIFF."""
        return self.class_map is not None and self.class_map.suffix.lower() in rasters.SUFFIXES


def expand(sources: tuple[str, ...]) -> tuple[list[Path], int]:
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


def plan(paths: list[Path], output: str | None, class_map: str | None, many: bool, tile: bool) -> list[Job]:
    """What to write for which image; refuses, before any work, what would destroy an image or lose a result."""
    overlays = _targets("-o", output, paths, many, tile)
    masks = _targets("--class-map", class_map, paths, many, tile)
    sources: list[Path | None] = [*paths] or [None]
    jobs = [Job(*row) for row in zip(sources, overlays, masks, strict=True)]
    inputs = {os.path.realpath(path) for path in paths}
    taken: dict[str, tuple[str, Path | None]] = {}
    for job in jobs:
        if job.raster:
            _check_raster(job)
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


def _check_raster(job: Job) -> None:
    rasters.require()
    if job.source is None:
        raise InputError(f"--class-map {job.class_map} takes its coordinates from an image: name one, or use .png")
    if job.overlay is not None:
        raise InputError(f"-o needs the whole image, --class-map {job.class_map} is for larger ones: leave one out")


def _targets(option: str, text: str | None, paths: list[Path], many: bool, tile: bool) -> list[Path | None]:
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
            if not (tile and option == "--class-map" and target.suffix.lower() in rasters.SUFFIXES):
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


def prepare(jobs: list[Job]) -> None:
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
