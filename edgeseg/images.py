"""Image files: reading them as frames, writing overlays and indexed class maps."""

from __future__ import annotations

import contextlib
import struct
import threading
import zlib
from collections.abc import Iterator
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
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MOST_PIXELS = 1 << 30  # OpenCV's own limits, libpng's for the side
_MOST_SIDE = 1_000_000


def read(path: str | Path) -> Image:
    """Read an image file as uint8 (H, W, 3) RGB.

    EXIF orientation is applied (a WebP's by OpenCV 5 only), grey becomes three equal channels, alpha is dropped (a
    TIFF's is multiplied in), full-range 16-bit is scaled to 8. Raises ImageError for a missing, damaged, cut-off or
    too large file, float pixels, or 16-bit pixels of at most 12 bits (a 10- or 12-bit sensor's, which would come out
    black; one that is all 0 is black).
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if content.startswith(b"\xff\xd8\xff") and not _jpeg_ends(content):
        raise ImageError(f"{path} is cut off, its JPEG data has no end: copy it again")
    if content.startswith(_PNG):
        _check_png(path, content)
    data = np.frombuffer(content, np.uint8)
    try:
        with _quiet_opencv():
            image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH) if data.size else None
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in error.err:
            raise ImageError(f"{path} is too large: at most {_MOST_PIXELS} pixels, {_MOST_SIDE} on a side") from error
        raise ImageError(f"cannot read {path}: {error.err}") from error
    if image is None and content.startswith(_TIFF):
        raise ImageError(f"{path} is cut off, damaged, or a kind of TIFF OpenCV cannot read: copy it again, or use PNG")
    if image is None:
        raise ImageError(f"{path} is not an image OpenCV can read: give a JPEG, PNG, BMP, TIFF or WebP")
    if image.dtype == np.uint16:
        if 0 < image.max() < 1 << 12:
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
        with _quiet_opencv():
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
        _PNG,
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


def _check_png(path: Path, content: bytes) -> None:
    """Refuse what libpng would, which writes its own lines to stderr where nothing can catch them."""
    view, at, kind = memoryview(content), len(_PNG), b""
    if len(content) > 16 and content[12:16] != b"IHDR":
        raise ImageError(f"{path} is damaged, its PNG data has no header: copy it again")
    while kind != b"IEND":
        length, kind = int.from_bytes(view[at : at + 4], "big"), bytes(view[at + 4 : at + 8])
        end = at + 12 + length
        if end > len(content):
            raise ImageError(f"{path} is cut off, its PNG data has no end: copy it again")
        critical = not kind[0] & 0x20  # a capital; the others may be passed over
        if critical and zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise ImageError(f"{path} is damaged, its {kind.decode('latin-1')} checksum is wrong: copy it again")
        at = end
    width, height = struct.unpack(">II", content[16:24])
    if width * height > _MOST_PIXELS or max(width, height) > _MOST_SIDE:
        raise ImageError(
            f"{path} is too large: {width}x{height} (width x height), at most {_MOST_PIXELS} pixels, "
            f"{_MOST_SIDE} on a side"
        )


class _Quiet:
    lock, users, level = threading.Lock(), 0, 0


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Keep OpenCV's log lines off stderr, the error raised says it; users are counted: the level is one for all."""
    logging = getattr(cv2.utils, "logging", None)  # OpenCV 4.5 has none
    if logging is None:
        yield
        return
    with _Quiet.lock:
        _Quiet.users += 1
        if _Quiet.users == 1:
            _Quiet.level = logging.setLogLevel(0)
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.users -= 1
            if _Quiet.users == 0:
                logging.setLogLevel(_Quiet.level)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
