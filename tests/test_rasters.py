"""Georeferenced images: what is written of them lies where they lie, and what cannot be read is told."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import edgeseg
from edgeseg import images
from edgeseg.cli import main
from edgeseg.errors import ImageError, InputError
from edgeseg.testing import TINY, street_scene

SCENE = street_scene(1, (240, 400))[0]


def test_without_rasterio_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    source = tmp_path / "a.tif"
    images.write(source, SCENE)
    assert main(["segment", str(source), "--tile", "--class-map", str(tmp_path / "mask.tif")]) == 1
    assert capsys.readouterr().err.rstrip().endswith("pip install rasterio")


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    """An aerial image of four bands, the last of them alpha, in a projected CRS, with a corner of no data."""
    rasterio = pytest.importorskip("rasterio", reason="georeferenced images: pip install rasterio")
    height, width = 300, 520
    image = street_scene(2, (height, width))[0].transpose(2, 0, 1)
    alpha = np.full((1, height, width), 255, np.uint8)
    alpha[:, :70, :90] = 0
    layout = {"driver": "GTiff", "count": 4, "dtype": "uint8", "photometric": "RGB", "alpha": "yes"}
    place = {"crs": "EPSG:25832", "transform": rasterio.transform.from_origin(600000, 5700000, 0.2, 0.2)}
    with rasterio.open(tmp_path / "aerial.tif", "w", height=height, width=width, **layout, **place) as written:
        written.write(np.concatenate([image, alpha]))
    return tmp_path / "aerial.tif"


def test_a_raster_keeps_its_place(raster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rasterio = pytest.importorskip("rasterio")
    target = raster.with_name("mask.tif")
    arguments = ["segment", raster, "--bundle", TINY, "--tile", "--class-map", target, "--json"]
    assert main([str(one) for one in [*arguments, "--scale", 2]]) == 0
    with edgeseg.load(TINY) as one:
        edgeseg.segment_file(one, raster, raster.with_name("doubled.tif"), scale=2)
    assert target.read_bytes() == raster.with_name("doubled.tif").read_bytes()
    raster.with_name("doubled.tif").unlink()
    capsys.readouterr()
    assert main([str(one) for one in arguments]) == 0
    (report,) = json.loads(capsys.readouterr().out)["images"]
    with rasterio.open(raster) as image, rasterio.open(target) as mask, edgeseg.load(TINY) as one:
        pixels = np.ascontiguousarray(image.read([1, 2, 3]).transpose(1, 2, 0))
        wanted = one.tiled(pixels).class_map
        wanted[:70, :90] = 255
        np.testing.assert_array_equal(mask.read(1), wanted)
        assert (mask.crs, mask.transform, mask.nodata) == (image.crs, image.transform, 255)
        assert (mask.count, mask.dtypes, mask.compression.name) == (1, ("uint8",), "deflate")
        assert mask.block_shapes == [(256, 256)]
        assert [mask.colormap(1)[index][:3] for index in range(5)] == [info.color for info in one.classes]
        assert not mask.dataset_mask()[:70, :90].any()
    assert {name: area["pixels"] for name, area in report["areas"].items()} == {
        **{info.name: int((wanted == index).sum()) for index, info in enumerate(one.classes)},
        "unlabelled": 70 * 90,
    }
    assert sorted(path.name for path in raster.parent.iterdir()) == ["aerial.tif", "mask.tif"]


def test_rasters_that_cannot_be_segmented(raster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rasterio = pytest.importorskip("rasterio")
    segment_file = edgeseg.segment_file
    deep = raster.with_name("deep.tif")
    place = {"crs": "EPSG:25832", "transform": rasterio.transform.from_origin(0, 900, 2, 2)}
    with rasterio.open(deep, "w", driver="GTiff", height=9, width=9, count=3, dtype="uint16", **place) as written:
        written.write(np.zeros((3, 9, 9), np.uint16))
    (raster.parent / "text.tif").write_text("no image")
    target = raster.with_name("mask.tif")
    with edgeseg.load(TINY) as one:
        for source, message in [(deep, "deep.tif has uint16 pixels"), (raster.with_name("text.tif"), "cannot read")]:
            with pytest.raises(ImageError, match=message):
                segment_file(one, source, target)
        with pytest.raises(InputError, match="is the image itself"):
            segment_file(one, raster, raster)
        with pytest.raises(ImageError, match=r"use the suffix \.tif"):
            segment_file(one, raster, raster.with_name("mask.png"))
        with pytest.raises(InputError, match="overlap is 70"):
            segment_file(one, raster, target, overlap=70)
    assert main(["segment", "--tile", "--class-map", str(target)]) == 1
    assert "takes its coordinates from an image" in capsys.readouterr().err
    assert sorted(path.name for path in raster.parent.iterdir()) == ["aerial.tif", "deep.tif", "text.tif"]


def test_a_raster_that_is_cut_short_is_told(raster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut, target = raster.with_name("cut.tif"), raster.with_name("out.tif")
    content = raster.read_bytes()
    cut.write_bytes(content[: len(content) // 3])
    arguments = ["segment", cut, "--bundle", TINY, "--tile"]
    for option, told in (("--class-map", "copy it again"), ("-o", "is cut off, damaged, or a kind of TIFF")):
        assert main([str(one) for one in [*arguments, option, target]]) == 1
        told_lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("edgeseg: ")]
        assert len(told_lines) == 1
        assert told in told_lines[0]
        assert "previous exception" not in told_lines[0]
        if option == "--class-map":
            assert re.search(r"cut\.tif: .*Read error.* expected \d+; where it is damaged", told_lines[0])
    assert sorted(path.name for path in raster.parent.iterdir()) == ["aerial.tif", "cut.tif"]


@pytest.mark.parametrize("tile", [["--tile"], []])
def test_an_overlay_of_a_raster_keeps_its_place(raster: Path, tile: list[str]) -> None:
    rasterio = pytest.importorskip("rasterio")
    target, flat = raster.with_name("overlay.tif"), raster.with_name("overlay.png")
    for path in (target, flat):
        assert main(["segment", str(raster), "--bundle", str(TINY), *tile, "-o", str(path)]) == 0
    with rasterio.open(raster) as image, rasterio.open(target) as overlay:
        assert (overlay.crs, overlay.transform, overlay.count) == (image.crs, image.transform, 3)
        assert (overlay.nodata, [one.name for one in overlay.colorinterp]) == (None, ["red", "green", "blue"])
        np.testing.assert_array_equal(overlay.read().transpose(1, 2, 0), images.read(flat))
    np.testing.assert_array_equal(images.read(target), images.read(flat))
    assert sorted(path.name for path in raster.parent.iterdir()) == ["aerial.tif", "overlay.png", "overlay.tif"]


def test_an_overlay_without_coordinates_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "a.tif", tmp_path / "b.tif"
    images.write(source, SCENE)
    command = ["segment", str(source), "--bundle", str(TINY), "-o", str(target)]
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert main(command) == 0
    note = f"note: {target} has no coordinates, should {source} have any: "
    assert re.search(f"^{re.escape(note)}.*pip install rasterio$", capsys.readouterr().err, re.MULTILINE)
    written = target.read_bytes()
    monkeypatch.undo()
    pytest.importorskip("rasterio")
    assert main(command) == 0
    assert "note" not in capsys.readouterr().err
    assert target.read_bytes() == written
