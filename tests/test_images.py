"""Image files against Pillow: orientation, depth, palettes, damage, and writing all or nothing."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageOps

from edgeseg import images
from edgeseg.errors import ImageError
from edgeseg.manifest import Rgb
from edgeseg.palette import CAMVID, voc_palette

NOISE = np.random.default_rng(0).integers(0, 256, (47, 61, 3), np.uint8)
SMOOTH = np.asarray(cv2.resize(NOISE[:6, :9], (61, 47)), np.uint8)


def encoded(form: str, image: np.ndarray = SMOOTH, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return buffer.getvalue()


def refusal(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        images.read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


# reading


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / f"turned.{form.lower()}"
    path.write_bytes(encoded(form, exif=exif))
    with Image.open(path) as image:
        assert image.getexif()[0x112] == orientation
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    found = images.read(path)
    assert found.shape == ((47, 61, 3) if orientation < 5 else (61, 47, 3))
    assert np.abs(found.astype(int) - expected).max() <= (3 if form == "JPEG" else 0)


GREY = NOISE[..., 0]
PILLOW: dict[str, Image.Image] = {
    "grey.png": Image.fromarray(GREY),
    "grey.tiff": Image.fromarray(GREY),
    "grey.bmp": Image.fromarray(GREY),
    "bits.png": Image.fromarray(GREY).convert("1"),
    "grey-alpha.png": Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(NOISE[..., 1])]),
    "alpha.png": Image.fromarray(np.dstack([NOISE, GREY])),
    "palette.png": Image.fromarray(NOISE).quantize(32),
    "palette.bmp": Image.fromarray(NOISE).quantize(32),
    "plain.ppm": Image.fromarray(NOISE),
    "plain.webp": Image.fromarray(NOISE),
    "cmyk.tiff": Image.fromarray(NOISE).convert("CMYK"),
    "one.png": Image.fromarray(NOISE[:1, :1]),
}


@pytest.mark.parametrize("name", PILLOW)
def test_every_kind_of_pixel_becomes_rgb(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    PILLOW[name].save(path, **({"lossless": True} if name.endswith("webp") else {}))
    with Image.open(path) as image:
        # Pillow lays alpha over nothing: convert drops it, as read does
        expected = np.asarray(image.convert("RGB"))
    found = images.read(str(path))
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_full_range_16_bit_is_scaled(tmp_path: Path, suffix: str, channels: int) -> None:
    if (suffix, channels) == (".tiff", 4):
        pytest.skip("libtiff multiplies alpha in, as the docstring says")
    deep = np.random.default_rng(1).integers(0, 1 << 16, (5, 7, channels), np.uint16)
    deep[0, 0] = 65535
    path = tmp_path / f"deep{suffix}"
    assert cv2.imwrite(str(path), deep)
    expected = np.repeat(deep, 3, 2) if channels == 1 else deep[..., 2::-1]
    np.testing.assert_array_equal(images.read(path), expected // 256)


@pytest.mark.parametrize(("largest", "bits"), [(1023, 10), (4095, 12), (255, 8), (1, 1)])
def test_16_bit_files_of_fewer_bits_are_refused(tmp_path: Path, largest: int, bits: int) -> None:
    path = tmp_path / "sensor.png"
    cv2.imwrite(str(path), np.linspace(0, largest, 35).astype(np.uint16).reshape(5, 7))
    assert f"only {bits} of 16 bits" in refusal(path)
    cv2.imwrite(str(path), np.full((5, 7), 4096, np.uint16))
    assert (images.read(path) == 16).all()


def test_a_black_16_bit_file_is_black(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((5, 7), np.uint16))
    assert not images.read(tmp_path / "black.png").any()


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_that_are_not_8_or_16_bit_are_refused(tmp_path: Path, kind: Any, channels: int) -> None:
    path = tmp_path / "float.tiff"
    assert cv2.imwrite(str(path), np.zeros((5, 7, channels), kind))
    refusal(path)


BIG = np.asarray(cv2.resize(NOISE, (640, 480)), np.uint8)
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("JPEG", {"comment": encoded("JPEG")}),
    ("JPEG", {"subsampling": 0, "restart_marker_rows": 1}),
    ("PNG", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("WEBP", {}),
    ("PPM", {}),
]


@pytest.mark.parametrize(("form", "options"), FORMS, ids=[f"{form}{','.join(options)}" for form, options in FORMS])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, form: str, options: dict[str, Any]) -> None:
    """Half a picture would be a mask that is wrong without a word: OpenCV 4 reads a cut JPEG so."""
    data = encoded(form, BIG, **options)
    path = tmp_path / f"cut.{form.lower()}"
    path.write_bytes(data)
    with Image.open(path) as image:
        assert np.abs(images.read(path).astype(int) - np.asarray(image)).max() <= (4 if form in ("JPEG", "WEBP") else 0)
    for kept in (1, 2, 3, 4, 20, len(data) // 2, len(data) * 9 // 10, len(data) - 20, len(data) - 2, len(data) - 1):
        path.write_bytes(data[:kept])
        refusal(path)


def test_what_follows_a_jpeg_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "moving.jpg"
    path.write_bytes(encoded("JPEG") + b"a film, or padding" * 99)
    assert images.read(path).shape == (47, 61, 3)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_gives_an_image_or_one_error(tmp_path: Path, form: str, data: st.DataObject) -> None:
    content = bytearray(encoded(form))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(content)
    try:
        found = images.read(path)
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert found.ndim == 3
        assert found.shape[2] == 3
        assert found.dtype == np.uint8


def test_a_png_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    data = bytearray(encoded("PNG", BIG))
    data[len(data) // 2] ^= 4
    path = tmp_path / "flipped.png"
    path.write_bytes(data)
    refusal(path)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(form: str, width: int, height: int) -> bytes:
    """A few bytes that promise a huge picture."""
    if form == "ppm":
        return b"P6\n%d %d\n255\n" % (width, height) + bytes(99)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def test_a_bomb_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    for width, height in ((100_000, 100_000), (1_000_001, 2)):
        path.write_bytes(bomb("png", width, height))
        assert f"is too large: {width}x{height} (width x height), at most" in refusal(path)
    path.write_bytes(bomb("ppm", 100_000, 100_000))
    assert "is too large: at most" in refusal(path)


def test_refusals_are_all_that_stderr_sees(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """OpenCV's log and libpng's own lines go past Python, straight to the file descriptor."""
    png, tiff = encoded("PNG", BIG), encoded("TIFF", BIG)
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 4
    contents = {
        "cut.png": (png[: len(png) // 2], "is cut off"),
        "end.png": (png[:-1], "is cut off"),
        "flipped.png": (bytes(flipped), "is damaged, its IDAT checksum"),
        "headless.png": (png[:8] + chunk(b"IEND", b""), "has no header"),
        "cut.tiff": (tiff[: len(tiff) // 2], "is cut off, damaged, or a kind of TIFF OpenCV cannot read"),
        "bomb.png": (bomb("png", 100_000, 100_000), "is too large"),
        "bomb.ppm": (bomb("ppm", 100_000, 100_000), "is too large"),
    }
    for name, (content, told) in contents.items():
        (tmp_path / name).write_bytes(content)
        assert told in refusal(tmp_path / name)
    write_refusal(tmp_path / "x.webp", np.zeros((2, 17000, 3), np.uint8))
    assert capfd.readouterr() == ("", "")


def test_opencv_is_as_talkative_afterwards_as_before(tmp_path: Path) -> None:
    logging = cv2.utils.logging
    images.write(tmp_path / "x.png", BIG)
    before = logging.setLogLevel(4)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(images.read, [tmp_path / "x.png"] * 40))
        assert logging.getLogLevel() == 4
    finally:
        logging.setLogLevel(before)


def test_what_is_no_image_file(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing.png")
    assert "directory" in refusal(tmp_path)
    assert "cannot read" in refusal(tmp_path / "nul\0.png")
    for name, content in (("empty.png", b""), ("text.png", b"hello\n" * 99), ("zeros.jpg", bytes(4096))):
        (tmp_path / name).write_bytes(content)
        assert "not an image" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["straße 道路.png", "café.png", " .png", "a'b\"c.png", "🚗.png"])
def test_any_file_name(tmp_path: Path, name: str) -> None:
    images.write(tmp_path / name, NOISE)
    np.testing.assert_array_equal(images.read(tmp_path / name), NOISE)


# writing


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tif", ".tiff", ".ppm"])
@pytest.mark.parametrize("size", [(47, 61), (1, 1), (1, 7), (5, 1)])
def test_lossless_round_trip(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    path = tmp_path / f"image{suffix}"
    image = NOISE[: size[0], : size[1]]
    images.write(str(path), image)
    np.testing.assert_array_equal(images.read(path), image)
    with Image.open(path) as theirs:
        np.testing.assert_array_equal(np.asarray(theirs.convert("RGB")), image)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_lossy_round_trip(tmp_path: Path, suffix: str) -> None:
    images.write(tmp_path / f"image{suffix}", BIG)
    with Image.open(tmp_path / f"image{suffix}") as theirs:
        assert np.abs(np.asarray(theirs).astype(int) - images.read(tmp_path / f"image{suffix}")).max() <= 4
    assert np.abs(images.read(tmp_path / f"image{suffix}").astype(int) - BIG).mean() < 10


def write_refusal(path: Path, image: np.ndarray = NOISE) -> str:
    before = sorted(path.parent.iterdir()) if path.parent.is_dir() else None
    with pytest.raises(ImageError) as caught:
        images.write(path, image)
    assert "\n" not in str(caught.value)
    assert before is None or sorted(path.parent.iterdir()) == before
    return str(caught.value)


@pytest.mark.parametrize("name", ["x", "x.xyz", "x.pgm", "x.hdr", "x.exr", ".png", "x.png."])
def test_suffixes_that_cannot_hold_colour_pixels(tmp_path: Path, name: str) -> None:
    assert "no image format" in write_refusal(tmp_path / name)


@pytest.mark.parametrize(
    "image",
    [GREY, NOISE.astype(np.float32), np.dstack([NOISE, GREY]), NOISE[:0], NOISE[..., :1], NOISE.astype(bool)],
    ids=["grey", "float", "alpha", "empty", "one", "bool"],
)
def test_images_that_cannot_be_written(tmp_path: Path, image: np.ndarray) -> None:
    message = write_refusal(tmp_path / "x.png", image)
    assert f"{image.dtype} {image.shape}" in message


def test_an_image_too_large_for_its_format(tmp_path: Path) -> None:
    assert ".webp cannot hold 2x17000" in write_refusal(tmp_path / "x.webp", np.zeros((2, 17000, 3), np.uint8))


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.png").mkdir()
    for path in (
        tmp_path / "file" / "x.png",
        tmp_path / "none" / "x.png",
        tmp_path / "folder.png",
        tmp_path / ("x" * 300 + ".png"),
        tmp_path / "nul\0.png",
    ):
        assert f"cannot write {path}" in write_refusal(path)
        with pytest.raises(ImageError, match="cannot write"):
            images.write_class_map(path, GREY, ())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.png"]


def test_the_longest_name_a_file_system_takes(tmp_path: Path) -> None:
    images.write(tmp_path / ("x" * 250 + ".png"), NOISE)
    assert len(list(tmp_path.iterdir())) == 1


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """The operating system refuses to let any file grow past `size` bytes: what a full disk does, for real."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    images.write(path, SMOOTH)
    before = path.read_bytes()
    with no_file_beyond(1000):
        assert f"cannot write {path}" in write_refusal(path, BIG)
        with pytest.raises(ImageError, match="cannot write"):
            images.write_class_map(path, BIG[..., 0], ())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# class maps


def check_class_map(path: Path, class_map: np.ndarray, palette: tuple[Rgb, ...]) -> None:
    images.write_class_map(path, class_map, palette)
    with Image.open(path) as image:
        image.load()
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), class_map)
        colors = np.zeros((256, 3), np.uint8)
        colors[: len(palette)] = np.array(palette, np.uint8).reshape(-1, 3)
        colors[255] = 0
        found = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        np.testing.assert_array_equal(found, colors)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colors[class_map])
    np.testing.assert_array_equal(images.read(path), colors[class_map])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40))), st.integers(0, 256))
def test_class_maps_are_indexed_png(tmp_path: Path, class_map: np.ndarray, count: int) -> None:
    check_class_map(tmp_path / "map.png", class_map, voc_palette(count))


def test_class_maps_of_any_layout(tmp_path: Path) -> None:
    camvid = tuple(info.color for info in CAMVID)
    for class_map in (GREY[:1, :1], GREY[::-1, ::2], GREY.T, np.full((3, 5), 255, np.uint8)):
        check_class_map(tmp_path / "map.PNG", class_map, camvid)
    check_class_map(tmp_path / "map.png", np.zeros((1080, 1920), np.uint8), camvid)


@pytest.mark.parametrize("class_map", [GREY.astype(np.int64), GREY[None], GREY[:0], NOISE, GREY.astype(bool)])
def test_what_is_no_class_map(tmp_path: Path, class_map: np.ndarray) -> None:
    with pytest.raises(ImageError, match="give uint8 \\(height, width\\)"):
        images.write_class_map(tmp_path / "x.png", class_map, ())
    assert list(tmp_path.iterdir()) == []


def test_a_class_map_is_a_png(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"use the suffix \.png"):
        images.write_class_map(tmp_path / "x.jpg", GREY, ())


def test_voc_palette_is_the_published_one() -> None:
    assert voc_palette(22)[:10] == (
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (0, 0, 128),
        (128, 0, 128),
        (0, 128, 128),
        (128, 128, 128),
        (64, 0, 0),
        (192, 0, 0),
    )
    assert voc_palette(21)[20] == (0, 64, 128)
    assert voc_palette(256)[255] == (224, 224, 192)
    assert len(set(voc_palette(256))) == 256
