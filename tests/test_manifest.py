"""The manifest against whoever writes it wrong: every value of the wrong type, range or meaning is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgeseg.errors import BundleError
from edgeseg.manifest import dumps, loads
from edgeseg.testing import TINY

TEXT = (TINY / "manifest.json").read_text(encoding="utf-8")


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(BundleError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_manifest_text_is_golden() -> None:
    assert dumps(loads(TEXT, "here")) == TEXT
    assert json.dumps(json.loads(TEXT), sort_keys=True, indent=2) + "\n" == TEXT


@pytest.mark.parametrize("text", ["[]", "null", "3", '"x"', "[1]", "true"])
def test_json_that_is_no_object(text: str) -> None:
    assert "must be an object" in refusal(lambda: loads(text, "here"))


def test_deep_values_in_a_known_place() -> None:
    deep = "[" * 900 + "]" * 900
    text = TEXT.replace('"name": "tiny"', f'"name": {deep}')
    assert text != TEXT
    refusal(lambda: loads(text, "here"))


def places(data: Any, where: str = "manifest") -> Iterator[tuple[str, Any, Any, Any]]:
    """Every value of parsed JSON: its name as errors give it, its container, its key there, and itself."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in pairs:
        name = f"{where}[{key}]" if isinstance(data, list) else f"{where}.{key}"
        yield name, data, key, value
        yield from places(value, name)


NAN = float("nan")
PLACES = [name for name, *_ in places(json.loads(TEXT))]


@pytest.mark.parametrize("index", range(len(PLACES)), ids=PLACES)
def test_a_value_of_the_wrong_type_is_named(index: int) -> None:
    optional = {"batch", "weights", "parity"}
    for wrong in ({}, [], "x", 1.5, 7, True, None, NAN, 10**400):
        data = json.loads(TEXT)
        where, container, key, value = list(places(data))[index]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = isinstance(wrong, type(value)) or (isinstance(value, float) and isinstance(wrong, int))
        sensible = wrong not in (True, 10**400) or (isinstance(value, bool) and wrong is True) or not number
        if (fits and sensible and wrong is not NAN) or (wrong is None and key in optional):
            continue  # the right type, or an optional field left out
        container[key] = wrong
        text = json.dumps(data)
        of_format = where == "manifest.format" and wrong in (None, 10**400)
        expected = "has format" if of_format else f"{where} is "
        message = refusal(lambda text=text: loads(text, "here"))
        assert expected in message, (wrong, message)
        assert len(message) < 300 or wrong == 10**400


@pytest.mark.parametrize(
    "key", ["name", "classes", "head", "preprocess", "align_corners", "variants", "files", "golden", "format"]
)
def test_a_key_that_is_missing_is_named(key: str) -> None:
    data = json.loads(TEXT)
    del data[key]
    assert ("has format None" if key == "format" else f"manifest.{key} is missing") in refusal(
        lambda: loads(json.dumps(data), "here")
    )


def at(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        *way, last = [int(step) if step.isdigit() else step for step in path.split("/")]
        for step in way:
            data = data[step]
        data[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("classes", [], "manifest.classes has 0 entries"),
        ("classes", [{"name": str(i), "color": [0, 0, 0]} for i in range(256)], "manifest.classes has 256 entries"),
        ("classes/1/name", "ground", "manifest.classes[1].name is 'ground'"),
        ("classes/1/name", "", "manifest.classes[1].name is ''"),
        ("classes/1/name", "a\x1b[31m", "manifest.classes[1].name is 'a\\x1b[31m'"),
        ("classes/1/color/2", 256, "manifest.classes[1].color is [128, 0, 256]"),
        ("classes/1/color/2", -1, "manifest.classes[1].color is [128, 0, -1]"),
        ("classes/1/color", [1, 2], "manifest.classes[1].color is [1, 2]: must be a list of 3"),
        ("head", "sigmoid", "a sigmoid head cannot have"),
        ("head", "argmax", "manifest.head is 'argmax': must be one of 'softmax', 'sigmoid'"),
        ("variants", [], "manifest.variants is empty"),
        ("variants/1/file", "", "manifest.variants[1] refers to ''"),
        ("variants/1/file", "other.onnx", "manifest.variants[1] refers to 'other.onnx'"),
        ("variants/1/file", "golden.npz", "manifest.variants[1].file is 'golden.npz': must end in .onnx"),
        ("variants/1/weights", "", "manifest.variants[1] refers to ''"),
        ("variants/1/weights", "other.bin", "manifest.variants[1] refers to 'other.bin'"),
        ("variants/1/logits_shape", [4, 8, 12], "manifest.variants[1].logits_shape is [4, 8, 12]: 5 channels"),
        ("variants/1/logits_shape", [5, 0, 12], "manifest.variants[1].logits_shape is [5, 0, 12]"),
        ("variants/1/output_stride", 0, "manifest.variants[1].output_stride is 0"),
        ("variants/1/batch", 0, "manifest.variants[1].batch is 0"),
        ("golden/file", "other.npz", "manifest.golden.file 'other.npz'"),
        ("golden/frames", 0, "manifest.golden.frames is 0"),
        ("preprocess/input_size", [0, 96], "manifest.preprocess.input_size is [0, 96]"),
        ("preprocess/pad", 256, "manifest.preprocess.pad is 256"),
        ("preprocess/pad", -1, "manifest.preprocess.pad is -1"),
        ("preprocess/mean/1", 10**400, "manifest.preprocess.mean[1] is 1000"),
        ("golden/tolerances/fp32/logits", float("nan"), "manifest.golden.tolerances.fp32.logits is nan"),
        ("producer", {"a\nb": "1"}, "manifest.producer is "),
    ],
)
def test_values_that_make_no_sense(path: str, value: object, expected: str) -> None:
    data = json.loads(TEXT)
    at(path, value)(data)
    assert expected in refusal(lambda: loads(json.dumps(data), "here"))
