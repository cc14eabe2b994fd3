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


def read(path: str | Path) -> Image:
    """Read an image file as uint8 (H, W, 3) RGB.

    EXIF orientation is applied, grey becomes three equal channels, alpha is dropped, full-range 16-bit is scaled to
    8. Raises ImageError for a missing or damaged file, float pixels, or 16-bit pixels that use fewer than 16 bits
    (a 10- or 12-bit sensor's, which would come out black).
    """
    path = Path(path)
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH) if data.size else None
    except cv2.error as error:
        raise ImageError(f"cannot read {path}: {error.err}") from error
    if image is None:
        raise ImageError(f"{path} is not an image OpenCV can read: give a JPEG, PNG, BMP, TIFF or WebP")
    if image.dtype == np.uint16:
        if image.max() < 1 << 12:
            raise ImageError(f"{path} uses only {int(image.max()).bit_length()} of 16 bits: scale it to 8 bits first")
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ImageError(f"{path} has {image.dtype} pixels: scale it to 8 bits first")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def write(path: str | Path, image: Image) -> None:
    """Write uint8 (H, W, 3) RGB in the format of the path's suffix, whole or not at all; raises ImageError."""
    path = Path(path)
    try:
        good, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        good, reason = False, error
        raise ImageError(f"cannot write {path}: no image format {path.suffix!r}, use .png or .jpg") from reason
    if not good:
        raise ImageError(f"cannot write {path}: OpenCV could not encode it")
    write_atomic(path, data.tobytes(), ImageError)


def write_class_map(path: str | Path, class_map: ClassMap, palette: tuple[Rgb, ...]) -> None:
    """Write uint8 (H, W) as an indexed PNG: pixel values are class indices, colours the palette's, 255 black.

    OpenCV cannot write palettes; the format is small enough to write here (PNG specification, 2003, sections 5 and 11).
    Raises ImageError where the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ImageError(f"cannot write {path}: a class map is an indexed PNG, use the suffix .png")
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


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
