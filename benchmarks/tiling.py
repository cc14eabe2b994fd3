"""Tiles against the whole image: agreement by overlap, at tile borders and inside; memory and time of a large image.

python -m edgeseg.benchmarks.tiling --weights weights/deeplabv3_mobilenet_v2.safetensors

Agreement: the same weights exported at the tile's size and at the frame's own, both on one backend in fp32. Frames are
parts of drawn scenes, cut out at random, so that no tile border always meets the horizon. The border is what lies
within 8 pixels of where a tile ends, or where two weigh the same; inside is the rest between the outermost of these
lines (beyond them tiles end where the frame does, which makes agreement easier). `changes` are the neighbouring pixels
of two classes across such a line, tiled as a share of untiled: a seam would bring more.

Memory: an image of --large, mirrored from a drawn scene and written to a file, is segmented with the embedded network
in a process of its own, read as a memory-mapped array and, where rasterio is installed, as a GeoTIFF.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

import edgeseg
from edgeseg._edge import exit_code
from edgeseg._terminal import SizeType, progress
from edgeseg.benchmarks.checkpoints import read_checkpoint
from edgeseg.benchmarks.peak import peak_bytes
from edgeseg.errors import EdgesegError
from edgeseg.manifest import Manifest, Variant
from edgeseg.palette import CAMVID
from edgeseg.scene import street_scene
from edgeseg.segmenter import Segmenter
from edgeseg.tiling import Network, Tiles, lay
from edgeseg.types import ClassMap, Image, Size

_OVERLAPS = {"0": 0.0, "1/8": 1 / 8, "1/4": 1 / 4, "1/2": 1 / 2}
_NEAR = 8
_FIRST = 100
"""The network was trained on scenes 0 to 63, and the blending chosen on 0 to 9."""


@dataclasses.dataclass(frozen=True, slots=True)
class Agreement:
    """Shares in percent, of all frames' pixels: equal to the untiled mask; different from it at borders and inside.

    `pixels` is the overlap asked for in rows, `overlaps` what rows and columns got, on average. `interval` is the 95 %
    bootstrap interval over frames of at_border - inside. `changes` is 1 where tiles bring no more edges than there are.
    """

    overlap: str
    pixels: int
    overlaps: tuple[float, float]
    tiles: int
    agreement: float
    at_border: float
    inside: float
    interval: tuple[float, float]
    changes: float


@dataclasses.dataclass(frozen=True, slots=True)
class Large:
    """One large image: how it was read, peak resident memory of the whole process, and seconds."""

    read: str
    size: Size
    peak_bytes: int
    before_bytes: int
    seconds: float


@click.command()
@click.option("--weights", type=click.Path(path_type=Path), help="Checkpoint for the agreement; left out: only memory.")
@click.option("--tile", type=SizeType(), default="360x480", show_default=True, help="Network input of the tiles.")
@click.option("--frame", type=SizeType(), default="1416x1920", show_default=True, help="Frames, and the untiled input.")
@click.option("--frames", type=click.IntRange(2), default=16, show_default=True)
@click.option("--output-stride", type=int, default=16, show_default=True)
@click.option("--backend", default="openvino", show_default=True)
@click.option("--large", type=SizeType(), default="10000x10000", show_default=True)
@click.option("--no-large", is_flag=True, help="Leave out the large image.")
@click.option("--json", "as_json", is_flag=True)
@click.option("--child", nargs=2, hidden=True)
def main(
    weights: Path | None,
    tile: Size,
    frame: Size,
    frames: int,
    output_stride: int,
    backend: str,
    large: Size,
    no_large: bool,
    as_json: bool,
    child: tuple[str, str] | None,
) -> None:
    if child:
        click.echo(json.dumps(_segment_large(child[0], Path(child[1]), large, backend)))
        return
    rows = [] if weights is None else measure(weights, tile, frame, frames, output_stride, backend)
    runs = [] if no_large else measure_large(large, backend)
    if as_json:
        click.echo(
            json.dumps({"agreement": list(map(dataclasses.asdict, rows)), "large": list(map(dataclasses.asdict, runs))})
        )
        return
    for row in rows:
        click.echo(
            f"overlap {row.overlap:>3} ({row.pixels:>3} px, got {row.overlaps[0]:.0f} x {row.overlaps[1]:.0f})  "
            f"{row.tiles:>3} tiles  agreement {row.agreement:.3f} %  differs at borders {row.at_border:.3f} %, inside "
            f"{row.inside:.3f} % (difference {row.interval[0]:+.3f} to {row.interval[1]:+.3f})  "
            f"changes across borders x {row.changes:.3f}"
        )
    for run in runs:
        click.echo(
            f"{run.size[0]}x{run.size[1]} as {run.read}: peak {run.peak_bytes / 1e6:.0f} MB resident "
            f"({run.before_bytes / 1e6:.0f} MB once loaded), {run.seconds:.1f} s"
        )


def measure(weights: Path, tile: Size, frame: Size, frames: int, output_stride: int, backend: str) -> list[Agreement]:
    """Agreement with the untiled network, a row per overlap."""
    pictures = list(_parts(frames, frame))
    with tempfile.TemporaryDirectory() as folder:
        whole, tiled = (_open(weights, size, output_stride, backend, Path(folder)) for size in (frame, tile))
        with whole, tiled:
            wanted = [whole(picture).class_map for picture in pictures]
            found: list[Agreement] = []
            with progress(list(_OVERLAPS.items()), "overlaps") as bar:
                for name, share in bar:
                    found.append(_agreement(name, round(share * tile[0]), tiled, folder, pictures, wanted))
    return found


def _open(weights: Path, size: Size, output_stride: int, backend: str, folder: Path) -> Segmenter:
    half, path = (0.5, 0.5, 0.5), folder / f"{size[0]}x{size[1]}.edgeseg"
    strides = (output_stride,)
    edgeseg.export(
        read_checkpoint(weights), path, input_size=size, classes=CAMVID, mean=half, std=half, output_strides=strides
    )
    return edgeseg.load(path, backend=backend, precision="fp32", cache=None)


def _parts(count: int, size: Size) -> Iterator[Image]:
    rng = np.random.default_rng(_FIRST)
    for seed in range(_FIRST, _FIRST + count):
        scene = street_scene(seed, (size[0] * 4 // 3, size[1] * 4 // 3))[0]
        top, left = (int(rng.integers(0, whole - part + 1)) for whole, part in zip(scene.shape, size, strict=False))
        yield np.ascontiguousarray(scene[top : top + size[0], left : left + size[1]])


def _agreement(
    name: str, pixels: int, segmenter: Segmenter, folder: str, pictures: list[Image], wanted: list[ClassMap]
) -> Agreement:
    manifest, variant = _described(segmenter, Path(folder))
    height, width = wanted[0].shape
    network = Network(manifest, variant, lambda batch: batch)  # type: ignore[arg-type,return-value]
    rows, cols = lay(height, 0, network, pixels, 1.0), lay(width, 1, network, pixels, 1.0)
    near = _near(rows)[:, None] | _near(cols)[None]
    inner = _between(rows)[:, None] & _between(cols)[None]
    border, inside, equal, changes = [], [], [], np.zeros(2)
    for picture, untiled in zip(pictures, wanted, strict=True):
        tiled = segmenter.tiled(picture, overlap=pixels).class_map
        differs = tiled != untiled
        equal.append(1 - differs.mean())
        border.append(differs[near & inner].mean())
        inside.append(differs[~near & inner].mean())
        changes += [_changes(one, rows, cols) for one in (tiled, untiled)]
    gaps = np.subtract(border, inside)
    picks = np.random.default_rng(0).integers(0, len(gaps), (2000, len(gaps)))
    low, high = np.percentile(gaps[picks].mean(axis=1), (2.5, 97.5))
    return Agreement(
        overlap=name,
        pixels=pixels,
        overlaps=(_overlap(rows), _overlap(cols)),
        tiles=len(rows.starts) * len(cols.starts),
        agreement=100 * float(np.mean(equal)),
        at_border=100 * float(np.mean(border)),
        inside=100 * float(np.mean(inside)),
        interval=(100 * float(low), 100 * float(high)),
        changes=float(changes[0] / changes[1]),
    )


def _described(segmenter: Segmenter, folder: Path) -> tuple[Manifest, Variant]:
    height, width = segmenter.input_size
    manifest = edgeseg.Bundle.open(folder / f"{height}x{width}.edgeseg", verify=False).manifest
    return manifest, segmenter.variant


def _lines(tiles: Tiles) -> list[int]:
    """Where tiles end, and the middle between, where two weigh the same."""
    starts = [start * tiles.cell for start in tiles.starts[1:]]
    ends = [(start + tiles.cells) * tiles.cell for start in tiles.starts[:-1]]
    return sorted({*starts, *ends, *((a + b) // 2 for a, b in zip(starts, ends, strict=True))})


def _near(tiles: Tiles) -> npt.NDArray[np.bool_]:
    near = np.zeros(tiles.length, bool)
    for line in _lines(tiles):
        near[max(0, line - _NEAR) : line + _NEAR] = True
    return near


def _between(tiles: Tiles) -> npt.NDArray[np.bool_]:
    lines, between = _lines(tiles), np.zeros(tiles.length, bool)
    if lines:
        between[max(0, lines[0] - _NEAR) : lines[-1] + _NEAR] = True
    return between


def _changes(mask: ClassMap, rows: Tiles, cols: Tiles) -> int:
    """Neighbouring pixels of different classes on the two sides of a line."""
    across = [np.count_nonzero(mask[line] != mask[line - 1]) for line in _lines(rows)]
    across += [np.count_nonzero(mask[:, line] != mask[:, line - 1]) for line in _lines(cols)]
    return int(sum(across))


def _overlap(tiles: Tiles) -> float:
    return tiles.window - float(np.mean(np.diff(tiles.starts))) * tiles.cell if len(tiles.starts) > 1 else 0.0


def measure_large(size: Size, backend: str) -> list[Large]:
    """One run per way to read the image, each in a child process."""
    kinds = ["memmap"] + ["geotiff"] * (importlib.util.find_spec("rasterio") is not None)
    runs = []
    with tempfile.TemporaryDirectory() as folder, progress(kinds, "large image") as bar:
        for kind in bar:
            path = Path(folder) / kind
            _write_large(kind, path, size)
            text = f"{size[0]}x{size[1]}"
            command = [sys.executable, "-m", "edgeseg.benchmarks.tiling", "--large", text, "--backend", backend]
            done = subprocess.run([*command, "--child", kind, str(path)], check=False, capture_output=True, text=True)
            if done.returncode:
                raise EdgesegError(f"the run on a {kind} failed: {done.stderr.strip()[-300:]}")
            runs.append(Large(kind, size, **json.loads(done.stdout.splitlines()[-1])))
    return runs


def _write_large(kind: str, path: Path, size: Size) -> None:
    """A drawn scene and its mirror images, repeated: rows at a time."""
    scene = street_scene(0, (1000, 1250))[0]
    block = np.concatenate([scene, scene[::-1]])
    wide = np.concatenate([block, block[:, ::-1]], axis=1)
    wide = np.tile(wide, (1, -(-size[1] // wide.shape[1]), 1))[:, : size[1]]
    if kind == "memmap":
        with path.open("wb") as file:
            for top in range(0, size[0], len(wide)):
                file.write(wide[: size[0] - top].tobytes())
        return
    import rasterio  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from rasterio.transform import from_origin  # type: ignore[import-not-found,import-untyped,unused-ignore]

    place = {"crs": "EPSG:25832", "transform": from_origin(600000, 5700000, 0.2, 0.2)}
    layout = {"driver": "GTiff", "count": 3, "dtype": "uint8", "tiled": True, "compress": "deflate"}
    with rasterio.open(path, "w", height=size[0], width=size[1], **layout, **place) as raster:
        for top in range(0, size[0], len(wide)):
            rows = wide[: size[0] - top]
            raster.write(rows.transpose(2, 0, 1), window=rasterio.windows.Window(0, top, size[1], len(rows)))


def _segment_large(kind: str, path: Path, size: Size, backend: str) -> dict[str, float]:
    """In the child: what is measured is the whole process, the runtime and the image included."""
    with edgeseg.load(backend=backend) as segmenter:
        before, begin = peak_bytes(), time.perf_counter()
        if kind == "memmap":
            image: Image = np.memmap(path, np.uint8, "r", shape=(*size, 3))
            segmenter.tiled(image, out=np.memmap(path.with_suffix(".mask"), np.uint8, "w+", shape=size))
        else:
            from edgeseg.rasters import segment_file

            segment_file(segmenter, path, path.with_suffix(".tif"))
        return {"peak_bytes": peak_bytes(), "before_bytes": before, "seconds": time.perf_counter() - begin}


if __name__ == "__main__":
    raise SystemExit(exit_code(main, "tiling"))
