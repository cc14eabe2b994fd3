"""Which class index is written for which channel: all as they are, a subset, or merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeseg.errors import InputError
from edgeseg.manifest import ClassInfo
from edgeseg.types import IGNORE

Choice = Sequence[str] | Mapping[str, str | Sequence[str]]
"""Names to keep (their indices stay, the rest becomes 255), or new name -> old names (indices in this order)."""


@dataclass(frozen=True, slots=True)
class Labels:
    """`lut` is the label written per class of the network (None: the index itself); `classes` names the labels."""

    classes: tuple[ClassInfo, ...]
    lut: tuple[int, ...] | None = None

    def named(self, counts: npt.NDArray[np.int64]) -> dict[str, int]:
        """Pixel counts by class name; those of 255, where there are any, as "unlabelled"."""
        named = {info.name: int(counts[index]) for index, info in enumerate(self.classes)}
        if counts[IGNORE]:
            named["unlabelled"] = named.get("unlabelled", 0) + int(counts[IGNORE])  # a class may have that name
        return named


def choose(classes: tuple[ClassInfo, ...], choice: Choice | None) -> Labels:
    """Resolve the caller's `classes=`; raises InputError for a name the bundle does not have or one used twice."""
    if choice is None:
        return Labels(classes)
    index = {info.name: number for number, info in enumerate(classes)}
    if isinstance(choice, str):
        raise InputError(f"classes is the text {choice!r}: give a list of names, or new name -> names")
    if not choice:
        raise InputError("classes is empty: name at least one class, or leave it out")
    if not isinstance(choice, Mapping):
        kept: set[int] = set()
        for name in choice:
            number = _known(index, name)
            if number in kept:
                raise InputError(f"class {name!r} is named twice: name each class once")
            kept.add(number)
        return Labels(classes, tuple(number if number in kept else IGNORE for number in range(len(classes))))
    lut = [IGNORE] * len(classes)
    merged = []
    for label, (name, olds) in enumerate(choice.items()):
        if not isinstance(name, str) or not isinstance(olds, (str, Sequence)):
            raise InputError(f"classes has {name!r}: {olds!r}, which is no new name -> old name or list of names")
        members = [_known(index, old) for old in ([olds] if isinstance(olds, str) else olds)]
        if not members:
            raise InputError(f"class {name!r} merges nothing: name the classes it is made of")
        for member in members:
            if lut[member] != IGNORE:
                raise InputError(f"class {classes[member].name!r} is merged twice: each belongs to one new class")
            lut[member] = label
        merged.append(ClassInfo(name, classes[members[0]].color))
    return Labels(tuple(merged), tuple(lut))


def _known(index: dict[str, int], name: str) -> int:
    if not isinstance(name, str) or name not in index:
        raise InputError(f"no class {name!r} in this bundle: it has {', '.join(index)}")
    return index[name]
