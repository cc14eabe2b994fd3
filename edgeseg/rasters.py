"""Georeferenced images of any size through rasterio: read by windows, the class map written with their coordinates."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeseg.errors import ImageError, InputError, one_line
from edgeseg.labels import Labels
from edgeseg.segmenter import Segmenter
from edgeseg.tiling import Track
from edgeseg.types import IGNORE, ClassMap, Image, Size, StageTimes

SUFFIXES = frozenset({".tif", ".tiff"})
"""Of the class maps written here."""
_BLOCK = 256
_CACHE_MB = 64  # GDAL's own default is 5 % of the machine's memory


@dataclass(frozen=True, slots=True)
class SegmentedFile:
    """What `segment_file` did: the raster's size, pixels by class name ("unlabelled" for 255), and the time."""

    size: Size
    pixel_counts: dict[str, int]
    times: StageTimes


def segment_file(
    segmenter: Segmenter,
    source: str | Path,
    target: str | Path,
    *,
    overlap: int | None = None,
    scale: float = 1.0,
    track: Track = iter,
) -> SegmentedFile:
    """Segment a raster that GDAL reads (GeoTIFF, JPEG 2000, VRT) in tiles, into a GeoTIFF; see `Segmenter.tiled`.

    Neither is ever in memory whole. The first three bands are taken for RGB, a single one for grey. The class map has
    one uint8 band with the classes' colour table, and the source's coordinates (CRS and transform, or control points);
    255, its "no data", stands where the source has none. Written whole or not at all. Raises ImageError for what
    cannot be read or written, InputError as `tiled` does, or where rasterio is not installed.
    """
    rasterio = require()
    source, target = Path(source), Path(target)
    if target.suffix.lower() not in SUFFIXES:
        raise ImageError(f"cannot write {target}: a raster's class map is a GeoTIFF, use the suffix .tif")
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError(f"{target} is the image itself: choose another path for its class map")
    temporary = target.parent / f".{secrets.token_hex(8)}.tif"
    try:
        with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=_CACHE_MB):
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with _told(rasterio, f"cannot read {source}"):
                opened = rasterio.open(source)
            with opened as image:
                rows = _Rows(rasterio, image, source)
                with _told(rasterio, f"cannot write {target}"):
                    made = _create(rasterio, image, temporary, {"count": 1, "nodata": IGNORE})
                    with made as written:
                        colors = {index: (*info.color, 255) for index, info in enumerate(segmenter.classes)}
                        written.write_colormap(1, dict.fromkeys(range(256), (0, 0, 0, 255)) | colors)
                        out = _Out(rasterio, written, rows)
                        times = segmenter.tiled(rows, overlap=overlap, scale=scale, out=out, track=track).times
            with _told(rasterio, f"cannot write {target}"):
                os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return SegmentedFile(out.shape, Labels(segmenter.classes).named(out.counts), times)


def write_placed(target: Path, pixels: Image, source: Path) -> bool:
    """Write uint8 (H, W, 3) RGB of `source` as a GeoTIFF with its coordinates, whole or not at all.

    False, and nothing is written, where it has none. Raises ImageError where `target` cannot be written, InputError
    where rasterio is not installed.
    """
    rasterio = require()
    temporary = target.parent / f".{secrets.token_hex(8)}.tif"
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=_CACHE_MB):
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        try:
            opened = rasterio.open(source)
        except rasterio.errors.RasterioError:  # of what OpenCV alone reads nothing is lost
            return False
        with opened as image:
            placed = image.crs is not None or not image.transform.is_identity or image.gcps[0]
            # a size of its own: what is read there is turned upright
            if not placed or (image.height, image.width) != pixels.shape[:2]:
                return False
            try:
                with _told(rasterio, f"cannot write {target}"):
                    with _create(rasterio, image, temporary, {"count": 3, "photometric": "RGB"}) as written:
                        written.write(pixels.transpose(2, 0, 1))
                    os.replace(temporary, target)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()
    return True


def require() -> Any:
    """The package rasterio; raises InputError, with the command that installs it, where it is missing."""
    try:
        rasterio = importlib.import_module("rasterio")
        importlib.import_module("rasterio.windows")
    except ImportError as error:
        raise InputError(f"georeferenced images need rasterio ({error}): pip install rasterio") from error
    return rasterio


@contextlib.contextmanager
def _told(rasterio: Any, what: str, remedy: str = "") -> Iterator[None]:
    try:
        yield
    except (rasterio.errors.RasterioError, OSError) as error:
        raise ImageError(f"{what}: {getattr(error, 'strerror', None) or _cause(error)}{remedy}") from error


def _cause(error: BaseException) -> str:
    """The first of a chain of errors, in one line: rasterio's own may say no more than that there are others."""
    while (before := error.__cause__) is not None:
        error = before
    return one_line(str(error))


def _create(rasterio: Any, image: Any, path: Path, bands: dict[str, Any]) -> Any:
    """A GeoTIFF to write, of the size and the coordinates of `image`."""
    points, crs = image.gcps
    layout = {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate", "bigtiff": "if_safer"}
    made = rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=image.width,
        height=image.height,
        dtype="uint8",
        crs=image.crs,
        transform=None if points else image.transform,
        **layout,
        **bands,
    )
    if points:
        made.gcps = (points, crs)
    return made


def _across(rasterio: Any, rows: slice, width: int) -> Any:
    return rasterio.windows.Window(0, rows.start, width, rows.stop - rows.start)


class _Rows:
    """Rows of a raster as RGB."""

    def __init__(self, rasterio: Any, image: Any, path: Path) -> None:
        if image.dtypes[0] != "uint8":
            raise ImageError(f"{path} has {image.dtypes[0]} pixels: scale it to 8 bits first (gdal_translate -scale)")
        if image.colorinterp[0].name == "palette":
            raise ImageError(f"{path} has a colour table: write it as RGB first (gdal_translate -expand rgb)")
        self._rasterio, self._image, self._path = rasterio, image, path
        self._bands = [1, 2, 3] if image.count >= 3 else [1, 1, 1]
        valid = rasterio.enums.MaskFlags.all_valid
        self._all_valid = all(valid in flags for flags in image.mask_flag_enums)
        self.shape = (image.height, image.width, 3)

    def __getitem__(self, rows: slice) -> Image:
        with self._read():
            bands = self._image.read(self._bands, window=_across(self._rasterio, rows, self.shape[1]))
        return np.ascontiguousarray(bands.transpose(1, 2, 0))

    def _read(self) -> contextlib.AbstractContextManager[None]:
        remedy = "; where it is damaged or cut short, copy it again"
        return _told(self._rasterio, f"cannot read {self._path}", remedy)

    def without_data(self, rows: slice) -> npt.NDArray[np.bool_] | None:
        """Where the raster has no data; None where it has data everywhere."""
        if self._all_valid:
            return None
        with self._read():
            mask = self._image.dataset_mask(window=_across(self._rasterio, rows, self.shape[1]))
        return np.asarray(mask == 0)


class _Out:
    """Takes rows of a class map; writes whole blocks, as a compressed block written again would take more room."""

    def __init__(self, rasterio: Any, written: Any, rows: _Rows) -> None:
        self._rasterio, self._written, self._rows = rasterio, written, rows
        self.shape: Size = (written.height, written.width)
        self.counts = np.zeros(256, np.int64)
        self._waiting: ClassMap = np.empty((0, written.width), np.uint8)

    def __setitem__(self, rows: slice, values: ClassMap) -> None:
        if (missing := self._rows.without_data(rows)) is not None:
            values[missing] = IGNORE
        self.counts += np.bincount(values.ravel(), minlength=256)
        first = rows.start - len(self._waiting)
        self._waiting = np.concatenate([self._waiting, values])
        ready = len(self._waiting) if rows.stop == self.shape[0] else len(self._waiting) // _BLOCK * _BLOCK
        if ready:
            window = _across(self._rasterio, slice(first, first + ready), self.shape[1])
            self._written.write(self._waiting[:ready], 1, window=window)
            self._waiting = self._waiting[ready:].copy()
