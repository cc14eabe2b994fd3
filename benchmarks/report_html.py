"""HTML and SVG as nested calls: what is text is escaped because it is text."""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections.abc import Iterable

from edgeseg.errors import InputError

_VOID = frozenset({"meta", "img", "br", "hr"})
_HEX = re.compile(r"#[0-9a-fA-F]{6}")


class Html(str):
    """Markup, finished; any other string is text and is escaped where it is put in."""

    __slots__ = ()


Part = str | float | None | Iterable["Part"]
"""A child of a tag: text, a number, markup, nothing, or several of them."""


def tag(name: str, /, *children: Part, **attributes: str | float | None) -> Html:
    """`<name attribute="...">children</name>`; `class_` is class, other underscores are hyphens, None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>" + ("" if name in _VOID else f"{join(children)}</{name}>"))


def join(parts: Part) -> Html:
    """The parts one after another."""
    if parts is None:
        return Html()
    if isinstance(parts, Html):
        return parts
    if isinstance(parts, (str, float, int)):
        return Html(html.escape(_number(parts)))
    return Html("".join(map(join, parts)))


def scrolling(table: Html, label: str) -> Html:
    """A wide table that scrolls on its own, also by keyboard."""
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=label)


def color(text: str) -> str:
    """A colour from the data, grey where it is no "#rrggbb": it goes into style sheets."""
    return text if _HEX.fullmatch(text) else "#888888"


def png(text: str, what: str) -> tuple[bytes, str, tuple[int, int]]:
    """Bytes, data URI and (height, width) of a PNG file in base64; raises InputError naming `what` if it is none."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{what} is not base64 ({error}): run the benchmark again") from error
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or len(data) < 24:
        raise InputError(f"{what} is not a PNG file: run the benchmark again")
    size = int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    return data, uri(data), size


def uri(data: bytes) -> str:
    """A PNG file as data URI."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _number(value: str | float) -> str:
    """Coordinates need a hundredth of a pixel, and no more."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
