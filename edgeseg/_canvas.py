"""Plots drawn with OpenCV: lines, bars and letters that are smooth at their own size."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from edgeseg.types import Image, Size

_FINE = 4
"""Everything is drawn this much larger and then averaged down: OpenCV's letters are coarse at their own size."""
_FONT = cv2.FONT_HERSHEY_SIMPLEX
Color = tuple[int, int, int]
INK, PALE, MARK = (40, 40, 40), (225, 225, 225), (120, 120, 120)
BLUE, ORANGE, GREEN, PURPLE = (0, 114, 178), (230, 145, 0), (0, 150, 110), (150, 60, 130)
"""Told apart by colour-blind eyes too."""


class Canvas:
    """A white panel of `size`; coordinates are (x, y) in its pixels, y downwards, colours (r, g, b)."""

    def __init__(self, size: Size) -> None:
        self._height, self._width = size
        self._pixels = np.full((self._height * _FINE, self._width * _FINE, 3), 255, np.uint8)

    def line(self, points: Sequence[tuple[float, float]], color: Color, width: float) -> None:
        scaled = np.rint(np.array(points) * _FINE).astype(np.int32).reshape(-1, 1, 2)
        cv2.polylines(self._pixels, [scaled], False, color, round(width * _FINE), cv2.LINE_AA)

    def dashes(self, x: float, top: float, bottom: float, color: Color, width: float) -> None:
        """A vertical line of dashes."""
        for start in np.arange(top, bottom, 9):
            self.line([(x, start), (x, min(start + 5, bottom))], color, width)

    def bar(self, left: float, top: float, right: float, bottom: float, color: Color) -> None:
        corners = np.rint(np.array([left, top, right, bottom]) * _FINE).astype(int).tolist()
        cv2.rectangle(self._pixels, tuple(corners[:2]), tuple(corners[2:]), color, cv2.FILLED)

    def text(self, words: str, x: float, y: float, *, size: float = 13, align: float = 0, color: Color = INK) -> None:
        """`align` is the share of the text's width left of `x`, `size` the height of a line in pixels."""
        at = (round(x * _FINE - align * self._extent(words, size)), round(y * _FINE))
        cv2.putText(self._pixels, words, at, _FONT, size * _FINE / 30, color, _weight(size), cv2.LINE_AA)

    def fitted(self, words: str, room: float, size: float = 13) -> str:
        """The words, or as much of their end as `room` pixels hold."""
        start = 0
        while self._extent(words[start:], size) > room * _FINE:
            start += 1
        return words if not start else f"..{words[start + 2 :]}"

    def finished(self) -> Image:
        """Uint8 (H, W, 3) RGB."""
        small = cv2.resize(self._pixels, (self._width, self._height), interpolation=cv2.INTER_AREA)
        return np.asarray(small, np.uint8)

    @staticmethod
    def _extent(words: str, size: float) -> int:
        """The width of a text, in fine pixels."""
        return cv2.getTextSize(words, _FONT, size * _FINE / 30, _weight(size))[0][0]


def _weight(size: float) -> int:
    return max(1, round(size * _FINE / 24))
