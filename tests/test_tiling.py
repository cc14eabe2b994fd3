"""Tiles: where they lie, that blending them is what it says, that no seam and no memory comes with them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeseg
from edgeseg import images
from edgeseg.bundle import Bundle
from edgeseg.cli import main
from edgeseg.decode import Wants, class_map
from edgeseg.errors import InputError
from edgeseg.testing import TINY, street_scene
from edgeseg.tiling import Network, Tiles, lay, segment_tiles

BUNDLE = Bundle.open(TINY)
SCENE = street_scene(4, (240, 400))[0]


def network(run: Callable | None = None, size=(64, 96), logits=(5, 8, 12), stride=8, align=False) -> Network:
    preprocess = dataclasses.replace(BUNDLE.manifest.preprocess, input_size=size)
    manifest = dataclasses.replace(BUNDLE.manifest, preprocess=preprocess, align_corners=align)
    variant = dataclasses.replace(BUNDLE.manifest.variants[0], output_stride=stride, logits_shape=logits)
    return Network(manifest, variant, run)


def tiled(of: Network, image, overlap=None, scale=1.0, wants=Wants(), out=None):  # noqa: B008 (frozen)
    settings = {"color": "rgb", "overlap": overlap, "scale": scale, "wants": wants, "threads": 1, "track": iter}
    return segment_tiles(of, image, out, **settings)[0]


def convolutions(strides: tuple[int, ...], classes: int = 5) -> Callable:
    """A network of 3x3 convolutions with zero padding, for images of any size, in float64."""
    rng = np.random.default_rng(7)
    widths = (3, *(6 for _ in strides[1:]), classes)
    kernels = [rng.normal(0, (2 / (9 * a)) ** 0.5, (3, 3, a, b)) for a, b in itertools.pairwise(widths)]

    def run(batch: np.ndarray) -> np.ndarray:
        x = batch[0] / 127.5 - 1
        for number, (kernel, stride) in enumerate(zip(kernels, strides, strict=True)):
            padded = np.pad(x if number == 0 else np.maximum(x, 0), ((1, 1), (1, 1), (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1))[::stride, ::stride]
            x = np.einsum("hwcij,ijcd->hwd", windows, kernel, optimize=True)
        return x.transpose(2, 0, 1)[None].astype(np.float32)

    return run


def upsampled(logits: np.ndarray, cell: int, size: tuple[int, int], align: bool) -> np.ndarray:
    """Bilinear, float64, a cell every `cell` pixels, edges clamped."""
    for axis, length in ((1, size[0]), (2, size[1])):
        at = np.arange(length) / cell if align else (np.arange(length) + 0.5) / cell - 0.5
        at = np.clip(at, 0, logits.shape[axis] - 1)
        low = np.minimum(at.astype(int), max(0, logits.shape[axis] - 2))
        share = np.expand_dims(at - low, [i for i in (0, 1, 2) if i != axis])
        high = np.minimum(low + 1, logits.shape[axis] - 1)
        logits = np.take(logits, low, axis) * (1 - share) + np.take(logits, high, axis) * share
    return logits


def window(tiles: Tiles, number: int) -> np.ndarray:
    """A tile's weight, not normalised: of two that share n cells, cosine from 3n/8 to 5n/8, n at most half a tile."""
    start, depth = tiles.starts[number], np.arange(tiles.cells) + 0.5
    weight = np.ones(tiles.cells)
    for other in (number - 1, number + 1):
        if 0 <= other < len(tiles.starts):
            shared = min(tiles.cells - abs(tiles.starts[other] - start), tiles.cells // 2)
            inward = depth if other < number else tiles.cells - depth
            ramp = [(1 - np.cos(np.pi * min(max(4 * d / max(1, shared) - 1.5, 0), 1))) / 2 for d in inward]
            weight *= ramp if shared else 1
    return weight


def blended(of: Network, image: np.ndarray, rows: Tiles, cols: Tiles) -> np.ndarray:
    """All tiles' logits added up and divided by their weights, float64."""
    padded = image
    for axis, tiles in ((0, rows), (1, cols)):
        order = np.pad(np.arange(image.shape[axis]), (0, max(0, tiles.covered - image.shape[axis])), "reflect")
        padded = np.take(padded, order, axis)
    total = np.zeros((of.variant.logits_shape[0], rows.total, cols.total))
    weights = np.zeros((rows.total, cols.total))
    for r, y in enumerate(rows.starts):
        for c, x in enumerate(cols.starts):
            tile = padded[y * rows.cell :, x * cols.cell :][: rows.window, : cols.window]
            weight = np.outer(window(rows, r), window(cols, c))
            place = np.s_[y : y + rows.cells, x : x + cols.cells]
            total[(slice(None), *place)] += weight * of.run(tile[None])[0, :, : rows.cells, : cols.cells]
            weights[place] += weight
    return total / weights


def agrees(found: np.ndarray, scores: np.ndarray) -> bool:
    """Equal wherever the two best scores differ by more than float32's rounding."""
    first, second = np.sort(scores, axis=0)[[-1, -2]]
    clear = first - second > 1e-5 * np.abs(scores).max()
    return bool(clear.mean() > 0.99 and np.array_equal(found[clear], scores.argmax(0)[clear]))


GRIDS = {
    "whole cells": {"size": (64, 96), "logits": (5, 8, 12), "stride": 8},
    "a partial cell at the end": {"size": (68, 100), "logits": (5, 9, 13), "stride": 8},
    "align_corners": {"size": (65, 97), "logits": (5, 9, 13), "stride": 8, "align": True},
}


@pytest.mark.parametrize("overlap", [0, 16, 24, 40])
@pytest.mark.parametrize("grid", GRIDS)
def test_blending_is_the_weighted_mean_of_all_tiles(grid: str, overlap: int) -> None:
    of = network(convolutions((2, 2, 2)), **GRIDS[grid])
    image = SCENE[:203, :301]
    rows, cols = (lay(length, axis, of, overlap, 1.0) for axis, length in enumerate(image.shape[:2]))
    assert min(len(rows.starts), len(cols.starts)) > 2
    found = tiled(of, image, overlap, wants=Wants(counts=True, confidence=True))
    scores = upsampled(blended(of, image, rows, cols), 8, image.shape[:2], grid == "align_corners")
    assert agrees(found.class_map, scores)
    np.testing.assert_array_equal(found.counts, np.bincount(found.class_map.ravel(), minlength=256))
    softmax = 1 / np.exp(scores - scores.max(0)).sum(0)
    np.testing.assert_allclose(found.confidence, softmax, atol=1e-4)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_network_that_sees_no_further_than_the_overlap_gives_the_untiled_mask(grid: str) -> None:
    """Receptive field 31 pixels, overlap 32: a cell spoilt by a tile's border weighs nothing, the others are equal."""
    of, align = network(convolutions((2, 2, 2, 1)), **GRIDS[grid]), grid == "align_corners"
    image = SCENE[: 224 + align, : 352 + align]
    # a window with a partial cell cannot end where the image does: both see the same reflected pixels there
    beyond = lay(len(image), 0, of, 32, 1.0).covered - len(image)
    assert beyond == (4 if grid == "a partial cell at the end" else 0)
    logits = of.run(np.pad(image, ((0, beyond), (0, beyond), (0, 0)), "reflect")[None])[0]
    whole = class_map(logits[:, : 28 + align, : 44 + align], image.shape[:2], align_corners=align)
    found = tiled(of, image, 32).class_map
    assert np.unique(whole).size >= 3
    assert np.mean(found == whole) >= 0.999
    assert np.mean(tiled(of, image, 0).class_map == whole) <= np.mean(found == whole)


def test_tiles_lie_on_the_strides_of_a_network_whose_logits_are_finer() -> None:
    """Strides of 16 in all, and logits every 8 pixels, as of a decoder: tiles in between would sample other pixels."""
    coarse = convolutions((2, 2, 2, 2))

    def run(batch: np.ndarray) -> np.ndarray:
        return coarse(batch).repeat(2, 2).repeat(2, 3)

    image = SCENE[:224, :320]
    whole = class_map(run(image[None])[0], image.shape[:2])
    found = tiled(network(run, (96, 128), (5, 12, 16), stride=16), image, 64).class_map
    assert np.mean(found == whole) >= 0.999


@pytest.mark.parametrize("stride", [1, 2, 8, 16])
def test_tiles_cover_everything_and_weigh_one(stride: int) -> None:
    of = network(None, (64, 96), (5, -(-64 // stride), -(-96 // stride)), stride)
    for length in [1, 63, 64, 65, 95, 96, 97, *range(100, 1100, 37), 4001]:
        for overlap in (0, 1, 8, 16, 31, None):
            for axis in (0, 1):
                tiles = lay(length, axis, of, overlap, 1.0)
                assert tiles.total * tiles.cell >= length
                steps = np.diff(tiles.starts)
                assert not np.any(steps * tiles.cell % stride)
                assert np.all(steps > 0)
                asked = tiles.cells // 2 * stride if overlap is None else overlap
                assert np.all(tiles.window - steps * tiles.cell >= asked)
                assert tiles.covered - length < 32 + stride or len(tiles.starts) == 1
                total = np.zeros(tiles.total)
                for start, row in zip(tiles.starts, tiles.weights, strict=True):
                    total[start : start + tiles.cells] += row
                np.testing.assert_allclose(total, 1, atol=1e-6)
                ends = tiles.pixels_to(tiles.total - 1, False), tiles.pixels_to(tiles.total - 1, True)
                assert ends == (length, length)


def test_where_the_stride_of_the_logits_cannot_be_told() -> None:
    with pytest.raises(InputError, match="11 logits over 64 pixels do not lie"):
        lay(300, 0, network(None, logits=(5, 11, 12)), None, 1.0)
    with pytest.raises(InputError, match="overlap is 60: a tile is 64 pixels, give at most 56"):
        lay(300, 0, network(None), 60, 1.0)


class _Drawn:
    """Rows of a picture that is nowhere; and a sink for its class map, which checks that it is written in order."""

    def __init__(self, height: int, width: int) -> None:
        self.shape: tuple[int, ...] = (height, width, 3)

    def __getitem__(self, rows: slice) -> np.ndarray:
        band = (np.arange(rows.start, rows.stop) % 251).astype(np.uint8)[:, None, None]
        return np.ascontiguousarray(np.broadcast_to(band, (len(band), *self.shape[1:])))


class _Sink:
    def __init__(self, height: int, width: int) -> None:
        self.shape, self.written = (height, width), 0

    def __setitem__(self, rows: slice, values: np.ndarray) -> None:
        assert (rows.start, values.shape[1]) == (self.written, self.shape[1])
        self.written = rows.stop


def test_memory_is_bounded_by_rows_and_not_by_the_image() -> None:
    of = network(lambda batch: np.zeros((1, 5, 8, 12), np.float32))
    peaks = []
    for height in (500, 6000):
        sink = _Sink(height, 500)
        tracemalloc.start()
        tiled(of, _Drawn(height, 500), out=sink)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert sink.written == height
    ring, band, decoded = 5 * 9 * 68 * 4, 64 * 544 * 3, 64 * 500
    assert peaks[1] < 2 * (2 * ring + 2 * band + decoded)
    assert peaks[1] < 1.2 * peaks[0] + 6000 * 20  # beside the axis tables and lists: a few numbers per tile
    assert peaks[1] < 6000 * 500 / 4


@pytest.fixture(scope="module", params=["ort", "openvino"])
def segmenter(request: pytest.FixtureRequest) -> edgeseg.Segmenter:
    pytest.importorskip({"ort": "onnxruntime", "openvino": "openvino"}[request.param])
    return edgeseg.load(TINY, backend=request.param)


def test_one_tile_is_one_frame(segmenter: edgeseg.Segmenter, tmp_path: Path) -> None:
    frame = SCENE[:64, :96]
    np.testing.assert_array_equal(segmenter.tiled(frame).class_map, segmenter(frame).class_map)
    height, width = 40, 1
    padded = np.pad(frame[:height, :width], ((0, 24), (0, 95), (0, 0)), "reflect")
    small = segmenter.tiled(frame[:height, :width]).class_map
    np.testing.assert_array_equal(small, segmenter(padded).class_map[:height, :width])


def test_options_are_those_of_one_frame(segmenter: edgeseg.Segmenter, tmp_path: Path) -> None:
    frames, seen = segmenter.timings.frames, []

    def track(tiles):
        for tile in tiles:
            seen.append(tile)
            yield tile

    result = segmenter.tiled(SCENE, confidence=True, counts=True, track=track)
    assert seen == list(range(len(seen)))
    assert len(seen) > 20
    assert segmenter.timings.frames == frames  # medians of frames
    assert result.times.total_ns >= result.times.preprocess_ns + result.times.network_ns + result.times.decode_ns > 0
    assert result.pixel_counts is not None
    assert sum(result.pixel_counts.values()) == result.class_map.size
    assert result.confidence is not None
    unknown = segmenter.tiled(SCENE, unknown_below=0.6).class_map
    np.testing.assert_array_equal(unknown == 255, result.confidence < np.float32(0.6))
    bgr = np.memmap(tmp_path / "bgr", np.uint8, "w+", shape=SCENE.shape)
    bgr[...] = SCENE[..., ::-1]
    out = np.memmap(tmp_path / "out", np.uint8, "w+", shape=SCENE.shape[:2])
    again = segmenter.tiled(bgr, color="bgr", out=out)
    assert again.class_map is out
    np.testing.assert_array_equal(out, result.class_map)
    assert again.overlay(np.asarray(bgr)).shape == SCENE.shape


def test_scale_is_a_resize_before_the_network() -> None:
    small = SCENE[:128, :192]
    doubled = small.repeat(2, 0).repeat(2, 1)  # halving it by interpolation gives `small` back
    of = network(convolutions((2, 2, 2)))
    tiles = [lay(length, axis, of, None, 1.0) for axis, length in enumerate(small.shape[:2])]
    scores = upsampled(blended(of, small, *tiles), 16, doubled.shape[:2], False)
    assert agrees(tiled(of, doubled, scale=0.5).class_map, scores)
    nearest = tiled(of, doubled, scale=0.52).class_map  # 15.4 pixels a cell: 15
    assert lay(256, 0, of, None, 0.52).cell == 15
    assert nearest.shape == doubled.shape[:2]


def test_what_cannot_be_tiled(segmenter: edgeseg.Segmenter) -> None:
    for image, message in [
        (SCENE[..., 0], "frame is grey"),
        (SCENE.astype(np.float32), "frame is float32"),
        ([[1]], r"image has shape \(\)"),
    ]:
        with pytest.raises(InputError, match=message):
            segmenter.tiled(image)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"out has shape \(2, 2\), the image is 240x400"):
        segmenter.tiled(SCENE, out=np.empty((2, 2), np.uint8))
    no_overlaps: tuple[Any, ...] = (-1, 1.5, True)
    for overlap in no_overlaps:
        with pytest.raises(InputError, match=f"overlap is {overlap}: give a whole number of pixels"):
            segmenter.tiled(SCENE, overlap=overlap)
    no_scales: tuple[Any, ...] = (0, float("nan"), 0.049, 100, True, "x", None)
    for scale in no_scales:
        with pytest.raises(InputError, match=f"scale is {scale!r}: give a number from 0.05 to 20; 0.5 halves"):
            segmenter.tiled(SCENE, scale=scale)
    scales: tuple[Any, ...] = (20, np.float32(0.5))
    for scale in scales:
        assert segmenter.tiled(SCENE[:24, :24], scale=scale).class_map.shape == (24, 24)
    with pytest.raises(InputError, match=r"overlap is 1000: a tile is 64 pixels, give at most 48$"):
        segmenter.tiled(SCENE, overlap=1000)
    assert segmenter.tiled(SCENE, overlap=48).class_map.shape == SCENE.shape[:2]


def test_the_command_tiles_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    source, mask, overlay = tmp_path / "a.png", tmp_path / "mask.png", tmp_path / "overlay.png"
    images.write(source, SCENE)
    arguments = ["segment", source, "--bundle", TINY, "--backend", "ort", "--tile", "--overlap", 24, "--json"]
    assert main([str(one) for one in [*arguments, "--class-map", mask, "-o", overlay]]) == 0
    (report,) = json.loads(capsys.readouterr().out)["images"]
    with edgeseg.load(TINY, backend="ort") as one:
        wanted = one.tiled(SCENE, overlap=24, counts=True)
        wanted.save(tmp_path / "wanted.png")
        np.testing.assert_array_equal(images.read(overlay), wanted.overlay(SCENE))
    assert mask.read_bytes() == (tmp_path / "wanted.png").read_bytes()
    assert {name: area["pixels"] for name, area in report["areas"].items()} == wanted.pixel_counts
    assert main([str(one) for one in [*arguments, "--scale", 0.5, "--class-map", mask]]) == 0
    with edgeseg.load(TINY, backend="ort") as one:
        one.tiled(SCENE, overlap=24, scale=0.5).save(tmp_path / "halved.png")
    assert mask.read_bytes() == (tmp_path / "halved.png").read_bytes() != (tmp_path / "wanted.png").read_bytes()
    for option, told in (("--overlap", "--overlap is between tiles"), ("--scale", "--scale is of tiles")):
        assert main(["segment", option, "3"]) == 1
        assert told in capsys.readouterr().err
    for wrong in ("0", "nan", "21"):
        assert main(["segment", "--tile", "--scale", wrong]) == 1
        assert "'--scale'" in capsys.readouterr().err
