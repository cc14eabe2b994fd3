"""Image files: reading them as frames, writing overlays and indexed class maps."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np

from edgeseg._files import write_atomic
from edgeseg.errors import ImageError
from edgeseg.manifest import Rgb
from edgeseg.types import IGNORE, ClassMap, Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
"""What `segment` takes from a folder."""
_WRITABLE = SUFFIXES - {".pgm"}  # grey only


def read(path: str | Path) -> Image:
    """Read an image file as uint8 (H, W, 3) RGB.

    EXIF orientation is applied (a WebP's by OpenCV 5 only), grey becomes three equal channels, alpha is dropped (a
    TIFF's is multiplied in), full-range 16-bit is scaled to 8. Raises ImageError for a missing, damaged or cut-off
    file, float pixels, or 16-bit pixels of at most 12 bits (a 10- or 12-bit sensor's, which would come out black).
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if content.startswith(b"\xff\xd8\xff") and not _jpeg_ends(content):
        raise ImageError(f"{path} is cut off, its JPEG data has no end: copy it again")
    data = np.frombuffer(content, np.uint8)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH) if data.size else None
    except cv2.error as error:
        raise ImageError(f"cannot read {path}: {error.err}") from error
    if image is None:
        raise ImageError(f"{path} is not an image OpenCV can read: give a JPEG, PNG, BMP, TIFF or WebP")
    if image.dtype == np.uint16:
        if image.max() < 1 << 12:
            raise ImageError(f"{path} uses only {int(image.max()).bit_length()} of 16 bits: scale it to 8 bits first")
        image = np.right_shift(image, 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ImageError(f"{path} has {image.dtype} pixels: scale it to 8 bits first")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def write(path: str | Path, image: Image) -> None:
    """Write uint8 (H, W, 3) RGB in the format of the path's suffix, whole or not at all; raises ImageError."""
    path = Path(path)
    check_suffix(path)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ImageError(f"cannot write {path}: it is {image.dtype} {image.shape}, give uint8 (height, width, 3)")
    try:
        good, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        good = False
    if not good:
        raise ImageError(f"cannot write {path}: {path.suffix} cannot hold {image.shape[0]}x{image.shape[1]}, use .png")
    write_atomic(path, data.tobytes(), ImageError)


def check_suffix(path: Path, *, class_map: bool = False) -> None:
    """Raise ImageError where `write` (or `write_class_map`) could not write a file of this name."""
    if class_map and path.suffix.lower() != ".png":
        raise ImageError(f"cannot write {path}: a class map is an indexed PNG, use the suffix .png")
    if path.suffix.lower() not in _WRITABLE or not cv2.haveImageWriter(f"x{path.suffix}"):
        raise ImageError(f"cannot write {path}: no image format {path.suffix!r}, use .png or .jpg")


def write_class_map(path: str | Path, class_map: ClassMap, palette: tuple[Rgb, ...]) -> None:
    """Write uint8 (H, W) as an indexed PNG: pixel values are class indices, colours the palette's, 255 black.

    OpenCV cannot write palettes; the format is small enough to write here (PNG specification, 2003, sections 5 and 11).
    Raises ImageError where the file cannot be written.
    """
    path = Path(path)
    check_suffix(path, class_map=True)
    if class_map.dtype != np.uint8 or class_map.ndim != 2 or class_map.size == 0:
        raise ImageError(f"cannot write {path}: it is {class_map.dtype} {class_map.shape}, give uint8 (height, width)")
    height, width = class_map.shape
    colors = bytearray(3 * 256)
    for index, color in enumerate(palette[:IGNORE]):
        colors[3 * index : 3 * index + 3] = bytes(color)
    rows = np.zeros((height, width + 1), np.uint8)  # each row begins with its filter type, 0: none
    rows[:, 1:] = class_map
    parts = [
        b"\x89PNG\r\n\x1a\n",
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        _chunk(b"PLTE", bytes(colors)),
        _chunk(b"IDAT", zlib.compress(rows.tobytes(), 6)),
        _chunk(b"IEND", b""),
    ]
    write_atomic(path, b"".join(parts), ImageError)


def _jpeg_ends(content: bytes) -> bool:
    """Whether the pixel data is closed by the end marker; OpenCV 4 fills what is missing with grey, without a word."""
    at = 2
    # over the segments, one of which may hold a thumbnail with an end of its own, to where the pixels start
    while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] != b"\xda":
        fill = content[at + 1 : at + 2] == b"\xff"
        at += 1 if fill else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return content.find(b"\xff\xd9", at) >= 0


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
