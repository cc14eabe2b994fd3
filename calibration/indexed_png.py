"""Label files: the values of an indexed or grey PNG as they are stored, the colours of a coloured one."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from edgeseg import images
from edgeseg.errors import ImageError, InputError
from edgeseg.manifest import ClassInfo
from edgeseg.types import IGNORE, ClassMap, Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE, _GREY_ALPHA = 0, 3, 4
_FOREIGN_COLORS = 16
"""Colours of no class that one label may have: void and a few more classes; a photo has thousands."""


def read(path: Path) -> ClassMap | Image:
    """The stored values of a PNG of palette indices or grey levels (alpha is dropped) as uint8 (H, W).

    A coloured PNG gives uint8 (H, W, 3) RGB. Raises ImageError for a file that is missing, damaged or no PNG, and for
    values beyond 255.
    """
    header, data = _chunks(path)
    width, height, depth, kind, *methods = struct.unpack(">IIBBBBB", header)
    if kind not in (_GREY, _PALETTE, _GREY_ALPHA):
        return images.read(path)
    # OpenCV would give a palette's colours. Indices are packed and filtered just as grey levels are, so without its
    # palette the file is a grey one; nor can what else stands in it (transparency, a colour profile) change a value
    grey = struct.pack(">IIBBBBB", width, height, depth, _GREY if kind == _PALETTE else kind, *methods)
    plain = _SIGNATURE + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in ((b"IHDR", grey), (b"IDAT", data), (b"IEND", b""))
    )
    try:
        values = cv2.imdecode(np.frombuffer(plain, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"cannot read {path}, {width}x{height} (width x height) pixels: {error.err}") from error
    if values is None:
        raise ImageError(f"{path} is damaged, its PNG data cannot be decoded: copy it again")
    if values.ndim == 3:
        values = values[:, :, 0]
    if depth < 8:
        values = values // (255 // ((1 << depth) - 1))  # few bits of grey are spread over 0..255
    if values.max() > 255:
        raise ImageError(f"{path} has the value {values.max()}: class indices are at most 255, write them in 8 bits")
    return np.ascontiguousarray(values, np.uint8)


def classes_of_colors(label: Image, classes: Sequence[ClassInfo], path: Path) -> ClassMap:
    """uint8 (H, W): the class of each pixel's colour, 255 where no class has it; `path` is for messages.

    Raises InputError where two classes have one colour, where no pixel has a class's, and for a photo.
    """
    by_color: dict[int, int] = {}
    for index, info in enumerate(classes):
        other = by_color.setdefault(int.from_bytes(bytes(info.color), "big"), index)
        if other != index:
            raise InputError(
                f"{path} is coloured, and the bundle's classes {classes[other].name!r} and {info.name!r} have one "
                "colour: give labels of class indices"
            )
    codes = np.array(sorted(by_color), np.uint32)
    pixels = label.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    at = np.minimum(np.searchsorted(codes, pixels), len(codes) - 1)
    known = codes[at] == pixels
    foreign = len(np.unique(pixels[~known]))
    if foreign > _FOREIGN_COLORS:
        raise InputError(
            f"{path} has {foreign} colours that are no class's of the bundle: it is a photo, or labels of other "
            "classes; give labels of class indices, or in the classes' colours"
        )
    if not known.any():
        raise InputError(f"{path} is coloured, in no colour of the bundle's classes: give labels of class indices")
    return np.where(known, np.array([by_color[code] for code in codes.tolist()], np.uint8)[at], np.uint8(IGNORE))


def _chunks(path: Path) -> tuple[bytes, bytes]:
    """The header and the compressed pixels, checksums verified."""
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not content.startswith(_SIGNATURE):
        raise ImageError(f"{path} is not a PNG: labels are PNG files, the only ones that keep every value")
    view, at, name = memoryview(content), len(_SIGNATURE), b""
    header, data = b"", bytearray()
    while name != b"IEND":
        length, name = int.from_bytes(view[at : at + 4], "big"), bytes(view[at + 4 : at + 8])
        end = at + 12 + length
        if end > len(content):
            raise ImageError(f"{path} is cut off, its PNG data has no end: copy it again")
        if name in (b"IHDR", b"IDAT"):
            if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
                raise ImageError(f"{path} is damaged, its {name.decode()} checksum is wrong: copy it again")
            if name == b"IDAT":
                data += view[at + 8 : end - 4]
            else:
                header = bytes(view[at + 8 : end - 4])
        at = end
    if len(header) != 13:
        raise ImageError(f"{path} is damaged, its PNG data has no header: copy it again")
    return header, bytes(data)
