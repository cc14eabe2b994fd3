"""Records to JSON and back: the same value after the round trip, and errors that name the place."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseg._records import RecordError, from_json, to_json
from edgeseg.manifest import ClassInfo, FileInfo, GoldenInfo, Manifest, Parity, Tolerance, Variant
from edgeseg.types import Preprocess


@dataclass(frozen=True)
class Inner:
    numbers: tuple[float, ...]
    flag: bool = False


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    pair: tuple[int, str]
    kind: Literal["a", "b"] = "a"
    maybe: int | None = None
    table: dict[str, Inner] = field(default_factory=dict)


def outer(**values: Any) -> dict[str, Any]:
    return {"name": "x", "inner": {"numbers": [1, 2.5]}, "pair": [1, "y"], **values}


def test_what_is_left_out_takes_its_default() -> None:
    assert from_json(Outer, outer(), "top") == Outer("x", Inner((1.0, 2.5)), (1, "y"))
    full = outer(kind="b", maybe=3, table={"k": {"numbers": [], "flag": True}}, unknown=1)
    assert from_json(Outer, full, "top") == Outer("x", Inner((1.0, 2.5)), (1, "y"), "b", 3, {"k": Inner((), True)})
    assert from_json(Outer, outer(maybe=None), "top").maybe is None


def test_none_is_left_out_and_whole_numbers_become_floats() -> None:
    record = from_json(Outer, outer(), "top")
    assert to_json(record) == {**outer(), "inner": {"numbers": [1.0, 2.5], "flag": False}, "kind": "a", "table": {}}
    assert [type(number) for number in record.inner.numbers] == [float, float]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "top is None: must be an object"),
        ([], "top is []: must be an object"),
        ({"name": "x"}, "top.inner is missing"),
        (outer(inner={}), "top.inner.numbers is missing"),
        (outer(name=5), "top.name is 5: must be one line of text"),
        (outer(name="5\n"), "top.name is '5\\n': must be one line of text"),
        (outer(inner={"numbers": 5}), "top.inner.numbers is 5: must be a list"),
        (outer(inner={"numbers": [1, "2"]}), "top.inner.numbers[1] is '2': must be a number"),
        (outer(inner={"numbers": [True]}), "top.inner.numbers[0] is True: must be a number"),
        (outer(inner={"numbers": [float("inf")]}), "top.inner.numbers[0] is inf: must be a finite number"),
        (outer(inner={"numbers": [], "flag": 1}), "top.inner.flag is 1: must be true or false"),
        (outer(pair=[1]), "top.pair is [1]: must be a list of 2"),
        (outer(pair=[1.0, "y"]), "top.pair[0] is 1.0: must be a whole number"),
        (outer(pair=[True, "y"]), "top.pair[0] is True: must be a whole number"),
        (outer(kind="c"), "top.kind is 'c': must be one of 'a', 'b'"),
        (outer(kind=[]), "top.kind is []: must be one of 'a', 'b'"),
        (outer(maybe="1"), "top.maybe is '1': must be a whole number"),
        (outer(table=[]), "top.table is []: must be an object"),
        (outer(table={"k": 1}), "top.table.k is 1: must be an object"),
        (outer(table={"k": {"numbers": [None]}}), "top.table.k.numbers[0] is None: must be a number"),
    ],
)
def test_errors_name_place_value_and_remedy(data: Any, says: str) -> None:
    with pytest.raises(RecordError, match=f"^{re.escape(says)}$"):
        from_json(Outer, data, "top")


def test_a_huge_value_is_not_repeated_whole() -> None:
    with pytest.raises(RecordError) as caught:
        from_json(Outer, outer(name=["x"] * 9999), "top")
    assert len(str(caught.value)) < 120


TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=6)
COUNTS = st.integers(0, 2**40)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VARIANTS = st.builds(
    Variant,
    COUNTS,
    st.sampled_from(["fp32", "fp16", "int8"]),
    st.sampled_from(["float", "cpu", "tensorrt"]),
    TEXTS,
    st.tuples(COUNTS, COUNTS, COUNTS),
    st.none() | COUNTS,
    st.none() | TEXTS,
    st.none() | st.builds(Parity, COUNTS, FLOATS, FLOATS, TEXTS, TEXTS),
)
MANIFESTS = st.builds(
    Manifest,
    name=TEXTS,
    classes=st.lists(st.builds(ClassInfo, TEXTS, st.tuples(COUNTS, COUNTS, COUNTS)), max_size=3).map(tuple),
    head=st.sampled_from(["softmax", "sigmoid"]),
    preprocess=st.builds(
        Preprocess, st.tuples(COUNTS, COUNTS), st.tuples(FLOATS, FLOATS, FLOATS), st.tuples(FLOATS, FLOATS, FLOATS)
    ),
    align_corners=st.booleans(),
    variants=st.lists(VARIANTS, max_size=2).map(tuple),
    files=st.dictionaries(TEXTS, st.builds(FileInfo, TEXTS, COUNTS), max_size=2),
    golden=st.builds(
        GoldenInfo, TEXTS, COUNTS, st.dictionaries(TEXTS, st.builds(Tolerance, FLOATS, FLOATS), max_size=2)
    ),
    producer=st.dictionaries(TEXTS, TEXTS, max_size=2),
)


@given(MANIFESTS)
def test_every_manifest_survives_the_round_trip(manifest: Manifest) -> None:
    """Through text, with every optional field set or absent; a None that is not the default must not be lost."""
    data = json.loads(json.dumps(to_json(manifest)))
    assert from_json(Manifest, data, "manifest") == manifest
