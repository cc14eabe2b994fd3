"""An image of any size at its own resolution: the network's window slides over it, and its logits are blended.

All tiles share one grid of logits: a tile starts at a whole number of cells, and of the network's strides, so that
neighbours compute the same cells from the same pixels and differ only by what they see of the surroundings. Blending is
a weighted mean of a cell's logits, decoding is exact, and only the rows of cells under one row of tiles are in memory.

Where the window is no whole number of strides, its logits hold a cell that lies partly outside, and a frame by itself
is decoded with all cells squeezed into it. A convolution has no such squeeze: cell i looks at pixel i times the stride.
So here a cell is always one stride wide and the partial one is left out, as it would be in a network of larger input.
"""

from __future__ import annotations

import itertools
import math
import numbers
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import cv2
import numpy as np
import numpy.typing as npt

from edgeseg.decode import Decoded, Grid, Wants, decode
from edgeseg.errors import InputError
from edgeseg.manifest import Manifest, Variant
from edgeseg.preprocess import Preprocessor, check_frame
from edgeseg.types import Batch, ClassMap, Color, Image, Logits, Region, Size, StageTimes

_HALVINGS = 32
"""What networks halve their input by at most; an output stride does not tell, as decoders enlarge again (U-Net: 1)."""
_DECODED_BYTES = 32 << 20
SCALES = (0.05, 20)
"""From which `scale` to which; at 20 a cell of output stride 16 is a single pixel already."""


class Rows(Protocol):
    """An image by its rows: uint8 (H, W, 3), read as `image[top:bottom]`. A numpy array, memmap, zarr, h5py."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, rows: slice, /) -> Any: ...


class RowsOut(Protocol):
    """Where a class map goes: uint8 (H, W), written once from top to bottom as `out[top:bottom] = rows`."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __setitem__(self, rows: slice, values: Any, /) -> None: ...


Track = Callable[[Sequence[int]], Iterable[int]]
"""Iterates over the tiles' numbers and shows how far it is: tqdm, for one."""


@dataclass(frozen=True, slots=True)
class Network:
    """What runs on a tile: a variant of a bundle, and `run`, which turns a batch into (1, C, h, w)."""

    manifest: Manifest
    variant: Variant
    run: Callable[[Batch], Logits]


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """The tiles along one axis of an image of `length` pixels.

    A cell of the logits is `cell` pixels, a tile reads `window` pixels and gives `cells` cells, the first of which is
    number `starts[tile]`. `weights` float32 (tiles, cells): those of all tiles at one cell add up to one.
    """

    length: int
    cell: int
    window: int
    cells: int
    starts: tuple[int, ...]
    weights: npt.NDArray[np.float32]

    @property
    def total(self) -> int:
        """Cells under all tiles."""
        return self.starts[-1] + self.cells

    @property
    def covered(self) -> int:
        """Pixels under all tiles; from `length` on they are reflected."""
        return self.starts[-1] * self.cell + self.window

    def pixels_to(self, cell: int, align_corners: bool) -> int:
        """How many pixels lie up to the centre of this cell; all where it is the last."""
        if cell == self.total - 1:
            return self.length
        to = cell * self.cell + 1 if align_corners else ((2 * cell + 1) * self.cell + 1) // 2
        return min(self.length, to)


def lay(length: int, axis: int, network: Network, overlap: int | None, scale: float) -> Tiles:
    """Spread as few tiles as `overlap` pixels (None: half a tile) allow evenly over an axis (0: rows).

    The last one reaches up to 32 pixels, or a stride, past the end. Raises InputError for an overlap or scale that
    leaves nothing, or logits of which the stride cannot be told.
    """
    if overlap is not None and (not isinstance(overlap, int) or isinstance(overlap, bool) or overlap < 0):
        raise InputError(f"overlap is {overlap!r}: give a whole number of pixels, 0 or more")
    low, high = SCALES
    if not isinstance(scale, numbers.Real) or isinstance(scale, bool) or not low <= scale <= high:
        raise InputError(f"scale is {scale!r}: give a number from {low:g} to {high:g}; 0.5 halves the image")
    align, stride = network.manifest.align_corners, network.variant.output_stride
    size, logits = network.manifest.preprocess.input_size[axis], network.variant.logits_shape[axis + 1]
    pitch = _pitch(size, logits, stride, align)
    cell = max(1, round(pitch / scale))
    window = max(1, round(size * cell / pitch))
    cells = logits if align else min(logits, size // pitch)
    wanted = cells // 2 if overlap is None else -(-overlap // cell)
    unit, coarse = (math.lcm(pitch, stride, least) // pitch for least in (1, _HALVINGS))
    unit = coarse if coarse <= cells - wanted else unit
    needed = -(-(length - align) // cell) + align
    if needed <= cells:
        return Tiles(length, cell, window, cells, (0,), np.ones((1, cells), np.float32))
    if unit > cells - wanted:
        most = max(0, cells - unit) * cell
        raise InputError(f"overlap is {overlap}: a tile is {window} pixels, give at most {most}")
    units = -(-(needed - cells) // unit)
    steps = -(-units // ((cells - wanted) // unit))
    starts = tuple(units * tile // steps * unit for tile in range(steps + 1))
    return Tiles(length, cell, window, cells, starts, _weights(starts, cells))


def _pitch(size: int, cells: int, stride: int, align_corners: bool) -> int:
    """Pixels of the network's input from one logit to the next."""
    fitting = (stride, -(-size // cells), (size - 1) // max(1, cells - 1) if align_corners else stride)
    for pitch in fitting:
        if stride % pitch == 0 and cells in (size // pitch, -(-size // pitch)):
            return pitch
    raise InputError(
        f"{cells} logits over {size} pixels do not lie a whole part of the output stride {stride} apart: "
        "for tiles, export the network at an input size that is a multiple of its stride"
    )


def _weights(starts: tuple[int, ...], cells: int) -> npt.NDArray[np.float32]:
    """Half a cosine wave over the middle quarter of each overlap; what lies further out is left to the neighbour.

    So what a tile's own border spoils (padding instead of the surroundings) counts nothing up to 3/8 of the overlap
    from it, and a network whose receptive field is 3/4 of the overlap gives the untiled mask. A wider wave averages
    more: for networks that see past any tile a little better, for the others worse (`benchmarks.tiling`).
    """
    weights = np.ones((len(starts), cells))
    depth = np.arange(cells) + 0.5
    for tile, (start, following) in enumerate(itertools.pairwise(starts)):
        shared = min(start + cells - following, cells // 2)
        if shared:
            rise = 0.5 - 0.5 * np.cos(np.pi * np.clip(4 * depth / shared - 1.5, 0, 1))
            weights[tile] *= rise[::-1]
            weights[tile + 1] *= rise
    total = np.zeros(starts[-1] + cells)
    for start, row in zip(starts, weights, strict=True):
        total[start : start + cells] += row
    shares = [row / total[start : start + cells] for start, row in zip(starts, weights, strict=True)]
    return np.array(shares, np.float32)


class _Clock:
    """Nanoseconds per stage, each lap counted to the stage that it ends."""

    def __init__(self) -> None:
        self._begin = self._last = time.perf_counter_ns()
        self._spent = {"preprocess_ns": 0, "network_ns": 0, "decode_ns": 0}

    def lap(self, stage: str) -> None:
        now = time.perf_counter_ns()
        self._spent[f"{stage}_ns"] += now - self._last
        self._last = now

    def times(self) -> StageTimes:
        return StageTimes(**self._spent, total_ns=time.perf_counter_ns() - self._begin)


def segment_tiles(
    network: Network,
    image: Rows,
    out: RowsOut | None,
    *,
    color: Color,
    overlap: int | None,
    scale: float,
    wants: Wants,
    threads: int,
    track: Track,
) -> tuple[Decoded, StageTimes]:
    """The class map is `out`, filled, or where that is None a new array. Raises InputError for what cannot be used."""
    height, width = _checked_size(image)
    if out is None:
        out = np.empty((height, width), np.uint8)
    elif tuple(out.shape) != (height, width):
        raise InputError(f"out has shape {out.shape}, the image is {height}x{width}: give one of its size")
    rows, cols = (lay(length, axis, network, overlap, scale) for axis, length in enumerate((height, width)))
    confidence = np.empty((height, width), np.float32) if wants.confidence else None
    counts = np.zeros(256, np.int64) if wants.counts else None
    clock, top = _Clock(), 0
    for blended, first in _blended(network, image, rows, cols, color, clock, track):
        for piece in _decoded(blended, first, top, rows, cols, network.manifest.align_corners, wants, threads):
            bottom = top + len(piece.class_map)
            out[top:bottom] = piece.class_map
            if confidence is not None:
                confidence[top:bottom] = piece.confidence
            if counts is not None and piece.counts is not None:
                counts += piece.counts
            top = bottom
        clock.lap("decode")
    return Decoded(cast(ClassMap, out), confidence, counts), clock.times()


def _checked_size(image: Rows) -> Size:
    shape = tuple(getattr(image, "shape", ()))
    if isinstance(image, np.ndarray):
        check_frame(image)
    elif len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise InputError(f"image has shape {shape}: give a numpy array or other rows of uint8 (height, width, 3)")
    return shape[0], shape[1]


def _blended(
    network: Network, image: Rows, rows: Tiles, cols: Tiles, color: Color, clock: _Clock, track: Track
) -> Iterator[tuple[Logits, int]]:
    """Finished rows of cells (C, n, all columns) and the first one's number, which is the last one's of those before.

    They are valid until the next are asked for.
    """
    ring = np.zeros((network.variant.logits_shape[0], rows.cells + 1, cols.total), np.float32)
    preprocessor = Preprocessor(replace(network.manifest.preprocess, fit="stretch"))  # a tile has the input's own shape
    first = 0
    for number in track(range(len(rows.starts) * len(cols.starts))):
        tile, column = divmod(number, len(cols.starts))
        if column == 0:
            band = _band(image, rows, tile, cols.covered, color)
        left = cols.starts[column] * cols.cell
        batch = preprocessor.prepare(band[:, left : left + cols.window], color)
        clock.lap("preprocess")
        logits = network.run(batch)[0]
        clock.lap("network")
        at, here = rows.starts[tile] - first, cols.starts[column]
        share = rows.weights[tile][:, None] * cols.weights[column]
        ring[:, at : at + rows.cells, here : here + cols.cells] += share * logits[:, : rows.cells, : cols.cells]
        clock.lap("decode")
        if column == len(cols.starts) - 1:
            last = tile == len(rows.starts) - 1
            done = (rows.total if last else rows.starts[tile + 1]) - first
            yield ring[:, :done], first
            kept = ring[:, done - 1 :].copy()
            ring[:, : kept.shape[1]], ring[:, kept.shape[1] :] = kept, 0
            first += done - 1


def _band(image: Rows, rows: Tiles, tile: int, width: int, color: Color) -> Image:
    """The image's rows under a row of tiles, reflected where the tiles reach past its right and lower ends."""
    top = rows.starts[tile] * rows.cell
    band = np.asarray(image[top : min(top + rows.window, rows.length)])
    check_frame(band, color)
    below, beside = rows.window - band.shape[0], width - band.shape[1]
    if below <= 0 and beside <= 0:
        return band
    return np.asarray(cv2.copyMakeBorder(band, 0, max(0, below), 0, max(0, beside), cv2.BORDER_REFLECT_101), np.uint8)


def _decoded(
    blended: Logits,
    first: int,
    top: int,
    rows: Tiles,
    cols: Tiles,
    align_corners: bool,
    wants: Wants,
    threads: int,
) -> Iterator[Decoded]:
    """The pixels from row `top` to the last of these rows of cells, in pieces that bound the memory."""
    classes, count, width = blended.shape
    at_once = max(1, _DECODED_BYTES // (4 * classes * width))
    for upper in range(0, max(1, count - 1), at_once):
        lower = min(upper + at_once, count - 1)
        bottom = rows.pixels_to(first + lower, align_corners)
        if bottom > top:
            # the piece as a whole network input, in which its pixels lie where they lie on the grid of all tiles
            spans = ((lower - upper, rows.cell), (width - 1, cols.cell))
            height, across = (n * cell + 1 if align_corners else (n + 1) * cell for n, cell in spans)
            region = Region(top - (first + upper) * rows.cell, 0, bottom - top, cols.length, (height, across))
            piece, size = blended[:, upper : lower + 1], (bottom - top, cols.length)
            yield decode(piece, size, grid=Grid(align_corners, region), wants=wants, threads=threads)
            top = bottom
