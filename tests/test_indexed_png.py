"""Label files against Pillow: indices of every depth, filters and interlacing, grey levels, colours, damage."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
PIL = pytest.importorskip("PIL.Image")

from edgeseg import images
from edgeseg.calibration import indexed_png
from edgeseg.errors import ImageError, InputError
from edgeseg.manifest import ClassInfo
from edgeseg.palette import voc_palette

NOISE = np.random.default_rng(0).integers(0, 256, (19, 37), np.uint8)
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
"""First row, first column, and the steps of both (PNG specification, 2003, section 8.2)."""


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(header: tuple[int, ...], data: bytes, *others: bytes) -> bytes:
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", *header)), *others, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def filtered(rows: np.ndarray) -> bytes:
    """uint8 (H, W) as PNG's pixel data, the five filters in turn."""
    done, above = bytearray(), np.zeros(rows.shape[1] + 1, np.int64)
    for number, row in enumerate(rows.astype(np.int64)):
        here, kind = np.concatenate([[0], row]), number % 5
        left, up, corner = here[:-1], above[1:], above[:-1]
        p = left + up - corner
        distances = np.stack([abs(p - left), abs(p - up), abs(p - corner)])
        paeth = np.choose(distances.argmin(axis=0), [left, up, corner])
        guess = (0, left, up, (left + up) // 2, paeth)[kind]
        done += bytes([kind]) + ((row - guess) % 256).astype(np.uint8).tobytes()
        above = here
    return bytes(done)


def judged(path: Path) -> np.ndarray:
    with PIL.open(path) as image:
        assert image.mode == "P"
        return np.asarray(image)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_indices_of_every_depth(tmp_path: Path, bits: int) -> None:
    values = NOISE >> (8 - bits)
    image = PIL.fromarray(values)
    image.putpalette([level for color in voc_palette(1 << bits)[::-1] for level in color])
    path = tmp_path / "label.png"
    image.save(path, bits=bits, transparency=0)
    assert path.read_bytes()[24:26] == bytes([bits, 3])
    found = indexed_png.read(path)
    assert found.dtype == np.uint8
    assert np.array_equal(found, values)
    assert np.array_equal(judged(path), values)


def test_our_own_class_map(tmp_path: Path) -> None:
    images.write_class_map(tmp_path / "mask.png", NOISE, voc_palette(21))
    assert np.array_equal(indexed_png.read(tmp_path / "mask.png"), NOISE)


def test_every_filter_and_interlacing(tmp_path: Path) -> None:
    palette = chunk(b"PLTE", bytes(range(256)) * 3)
    path = tmp_path / "label.png"
    path.write_bytes(png((37, 19, 8, 3, 0, 0, 0), zlib.compress(filtered(NOISE)), palette))
    assert np.array_equal(judged(path), NOISE)
    assert np.array_equal(indexed_png.read(path), NOISE)
    passes = b"".join(filtered(NOISE[top::down, left::right]) for top, left, down, right in ADAM7)
    path.write_bytes(png((37, 19, 8, 3, 0, 0, 1), zlib.compress(passes), palette))
    assert np.array_equal(judged(path), NOISE)
    assert np.array_equal(indexed_png.read(path), NOISE)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_levels_are_values(tmp_path: Path, bits: int) -> None:
    values = NOISE[:16, :32] >> max(0, 8 - bits)
    if bits == 16:
        packed = values.astype(">u2").view(np.uint8)
    else:
        digits = np.unpackbits(values[..., None], axis=2)[..., 8 - bits :]
        packed = np.packbits(digits.reshape(16, -1), axis=1)
    rows = np.concatenate([np.zeros((16, 1), np.uint8), packed.reshape(16, -1)], axis=1)
    path = tmp_path / "label.png"
    see_through = chunk(b"tRNS", b"\0\1")
    path.write_bytes(png((32, 16, bits, 0, 0, 0, 0), zlib.compress(rows.tobytes()), see_through))
    assert np.array_equal(indexed_png.read(path), values)


def test_alpha_beside_grey_and_colours(tmp_path: Path) -> None:
    both = np.stack([NOISE, NOISE[::-1]], axis=2)
    PIL.fromarray(both, "LA").save(tmp_path / "grey.png")
    assert np.array_equal(indexed_png.read(tmp_path / "grey.png"), NOISE)
    rgb = np.stack([NOISE, NOISE[::-1], NOISE[:, ::-1], NOISE | 1], axis=2)
    PIL.fromarray(rgb).save(tmp_path / "colours.png")
    assert np.array_equal(indexed_png.read(tmp_path / "colours.png"), rgb[..., :3])


def test_what_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "label.png"
    whole = png((37, 19, 8, 0, 0, 0, 0), zlib.compress(filtered(NOISE)))
    cases = {
        b"": "is not a PNG",
        b"\xff\xd8\xff\xe0": "is not a PNG",
        whole[:-20]: "is cut off",
        whole[:60] + b"x" + whole[61:]: "IDAT checksum is wrong",
        whole[:18] + b"x" + whole[19:]: "IHDR checksum is wrong",
        whole[:8] + whole[33:]: "has no header",
        png((37, 19, 8, 0, 0, 0, 0), zlib.compress(filtered(NOISE[:9]))): "cannot be decoded",
        png((100000, 100000, 8, 0, 0, 0, 0), b""): "100000x100000",
        png((1, 1, 16, 0, 0, 0, 0), zlib.compress(b"\0\1\2")): "has the value 258",
    }
    for content, words in cases.items():
        path.write_bytes(content)
        with pytest.raises(ImageError, match=words) as caught:
            indexed_png.read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    for missing in (tmp_path / "no.png", tmp_path, Path("a\0b")):
        with pytest.raises(ImageError, match="cannot read"):
            indexed_png.read(missing)


def test_a_photo_is_no_coloured_label() -> None:
    classes = (ClassInfo("a", (1, 2, 3)), ClassInfo("b", (9, 9, 9)))
    photo = np.arange(4, 76, dtype=np.uint8).reshape(4, 6, 3)  # 24 colours
    photo[0, 0] = 9
    with pytest.raises(InputError, match=r"photo\.png has 23 colours that are no class's of the bundle: it is a photo"):
        indexed_png.classes_of_colors(photo, classes, Path("photo.png"))
    photo.reshape(-1, 3)[17:] = classes[0].color  # 16 are left
    wanted = [1, *[255] * 16, *[0] * 7]
    assert indexed_png.classes_of_colors(photo, classes, Path("label.png")).ravel().tolist() == wanted
