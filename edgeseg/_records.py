"""Frozen dataclasses to JSON and back, with errors that name the place."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
import unicodedata
from typing import Any, Literal, TypeVar

T = TypeVar("T")

_CALLED = {int: "a whole number", str: "one line of text", bool: "true or false"}


class RecordError(ValueError):
    """A JSON value does not fit the record; the message names where."""


def to_json(value: Any) -> Any:
    """Turn records, tuples and dicts of them into JSON types; fields are left out that are None or () by default."""
    if dataclasses.is_dataclass(value):
        pairs = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {
            field.name: to_json(item) for field, item in pairs if item is not field.default or item not in (None, ())
        }
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], data: Any, where: str) -> T:
    """Build a record of type `kind` from parsed JSON; unknown keys are ignored (a newer writer's additions).

    Raises RecordError naming the place (`where` is the outermost), the value, and what was expected.
    """
    return typing.cast(T, _convert(kind, data, where))


def _convert(kind: Any, data: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _record(kind, data, where)
    if origin is Literal:
        _expect(data in args, where, data, f"one of {', '.join(map(repr, args))}")
        return data
    if origin in (types.UnionType, typing.Union):
        return None if data is None else _convert(next(a for a in args if a is not type(None)), data, where)
    if origin is tuple:
        _expect(isinstance(data, list), where, data, "a list")
        if args[-1] is Ellipsis:
            return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(data))
        _expect(len(data) == len(args), where, data, f"a list of {len(args)}")
        return tuple(_convert(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(args, data, strict=True)))
    if origin is dict:
        _expect(isinstance(data, dict), where, data, "an object")
        for key in data:
            _expect(_is_plain(key), where, data, "an object whose names are one line of text each")
        return {key: _convert(args[1], item, f"{where}.{key}") for key, item in data.items()}
    if kind is float:
        _expect(isinstance(data, (int, float)) and not isinstance(data, bool), where, data, "a number")
        # Python also reads NaN, Infinity, 1e999 and integers past the largest float
        _expect(abs(data) <= sys.float_info.max, where, data, "a finite number")
        return float(data)
    # bool is a subclass of int in Python, not in JSON
    fits = isinstance(data, kind) and (kind is bool or not isinstance(data, bool))
    _expect(kind is not int or not fits or abs(data) < 2**63, where, data, "a whole number of 64 bits")
    _expect(fits and (kind is not str or _is_plain(data)), where, data, _CALLED[kind])
    return data


def _record(kind: Any, data: Any, where: str) -> Any:
    _expect(isinstance(data, dict), where, data, "an object")
    hints = typing.get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):
        if field.name in data:
            values[field.name] = _convert(hints[field.name], data[field.name], f"{where}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RecordError(f"{where}.{field.name} is missing")
    return kind(**values)


def _is_plain(text: str) -> bool:
    """No control characters, line ends or lone surrogates: it can be printed, encoded, and be a file's name."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def _expect(holds: bool, where: str, data: Any, what: str) -> None:
    if not holds:
        raise RecordError(f"{where} is {repr(data)[:60]}: must be {what}")
