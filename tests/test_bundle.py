"""Bundles against whoever damages or crafts them: golden text, flipped bits, paths and weights that lead out."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import external_data_helper, helper

from edgeseg import _wire, bundle
from edgeseg.bundle import Bundle, describe_file, pack_golden, write
from edgeseg.errors import BundleError
from edgeseg.manifest import ClassInfo, FileInfo, dumps, loads
from edgeseg.testing import TINY

TEXT = (TINY / "manifest.json").read_text(encoding="utf-8")
MODEL = (TINY / "os8-fp32.onnx").read_bytes()
NAMES = ["golden.npz", "os16-fp32.onnx", "os8-fp32.onnx", "weights-fp32.bin"]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "tiny.edgeseg"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    change(data)
    (path / "manifest.json").write_text(json.dumps(data), encoding="utf-8")


def put(path: Path, name: str, data: bytes) -> None:
    """Replace a file and list its new hash: what a forger does who can write the manifest."""
    (path / name).write_bytes(data)
    entry = {"sha256": describe_file(data).sha256, "bytes": len(data)}
    edit(path, lambda manifest: manifest["files"].update({name: entry}))


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(BundleError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


# opening


def test_opens_and_says_what_it_has(tiny: Path) -> None:
    opened = Bundle.open(str(tiny))
    assert opened.output_strides == (8, 16)
    assert [info.name for info in opened.manifest.classes] == ["ground", "wall", "sky", "plant", "thing"]
    assert opened.variant(16, "fp32").logits_shape == (5, 4, 6)
    assert "8 fp32" in refusal(lambda: opened.variant(16, "int8"))
    assert "weights-fp32.bin" in refusal(lambda: opened.file("passwd"))
    model = opened.model(opened.variant(8, "fp32"))
    assert (model.path.name, model.input_size, model.logits_shape) == ("os8-fp32.onnx", (64, 96), (5, 8, 12))


def test_model_digest_follows_graph_and_weights(tiny: Path) -> None:
    def digests() -> list[str]:
        opened = Bundle.open(tiny)
        return [opened.model(opened.variant(stride, "fp32")).digest for stride in (8, 16)]

    before = digests()
    assert before[0] != before[1]
    put(tiny, "weights-fp32.bin", bytes((tiny / "weights-fp32.bin").stat().st_size))
    after = digests()
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_golden_frames_are_what_numpy_reads(tiny: Path) -> None:
    with np.load(TINY / "golden.npz") as arrays:
        for stride in (8, 16):
            golden = Bundle.open(tiny).golden(stride, 2)
            np.testing.assert_array_equal(golden.frame, arrays["frame2"])
            np.testing.assert_array_equal(golden.logits, arrays[f"frame2_os{stride}_logits"])
            np.testing.assert_array_equal(golden.class_map, arrays[f"frame2_os{stride}_class_map"])


def test_manifest_text_is_golden() -> None:
    assert dumps(loads(TEXT, "here")) == TEXT
    assert json.dumps(json.loads(TEXT), sort_keys=True, indent=2) + "\n" == TEXT


def test_non_ascii_names_stay_readable(tiny: Path) -> None:
    edit(tiny, lambda data: data["classes"][0].update(name="Straße 道路"))
    assert Bundle.open(tiny).manifest.classes[0].name == "Straße 道路"
    assert "Straße 道路" in dumps(Bundle.open(tiny).manifest)


def test_unknown_keys_are_ignored(tiny: Path) -> None:
    def add(data: dict[str, Any]) -> None:
        data["new"] = data["preprocess"]["new"] = data["variants"][0]["new"] = data["files"]["golden.npz"]["new"] = [{}]

    edit(tiny, add)
    assert Bundle.open(tiny).manifest == Bundle.open(TINY).manifest


@pytest.mark.parametrize("number", [2, 0, -1, None])
def test_another_format_names_both_numbers(tiny: Path, number: object) -> None:
    edit(tiny, lambda data: data.update(format=number))
    message = refusal(lambda: Bundle.open(tiny))
    assert f"format {number!r}" in message
    assert "format 1" in message


def test_no_bundle_there(tmp_path: Path) -> None:
    for name in ("none.edgeseg", "x" * 300, "nul\0"):
        assert "does not exist" in refusal(lambda name=name: Bundle.open(tmp_path / name))
    (tmp_path / "file").write_text("x")
    assert "is a file" in refusal(lambda: Bundle.open(tmp_path / "file"))
    assert "is not a bundle" in refusal(lambda: Bundle.open(tmp_path))
    (tmp_path / "manifest.json").mkdir()
    assert "is not a bundle" in refusal(lambda: Bundle.open(tmp_path))


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"not json", TEXT.encode()[:-3], b'{"format": 1', b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 100_000],
    ids=["empty", "brace", "words", "cut", "open", "utf16", "deep-list", "deep-object"],
)
def test_a_manifest_that_is_no_json(tiny: Path, data: bytes) -> None:
    (tiny / "manifest.json").write_bytes(data)
    assert "manifest.json" in refusal(lambda: Bundle.open(tiny))


@pytest.mark.parametrize("text", ["[]", "null", "3", '"x"', "[1]", "true"])
def test_json_that_is_no_object(tiny: Path, text: str) -> None:
    (tiny / "manifest.json").write_text(text)
    assert "must be an object" in refusal(lambda: Bundle.open(tiny))


def test_deep_values_in_a_known_place(tiny: Path) -> None:
    deep = "[" * 900 + "]" * 900
    text = TEXT.replace('"name": "tiny"', f'"name": {deep}')
    assert text != TEXT
    (tiny / "manifest.json").write_text(text)
    refusal(lambda: Bundle.open(tiny))


# damage


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verify", [True, False])
def test_a_missing_or_truncated_file(tiny: Path, name: str, verify: bool) -> None:
    data = (tiny / name).read_bytes()
    (tiny / name).write_bytes(data[:-1])
    message = refusal(lambda: Bundle.open(tiny, verify=verify))
    assert name in message
    assert f"{len(data) - 1} bytes instead of {len(data)}" in message
    (tiny / name).unlink()
    assert name in refusal(lambda: Bundle.open(tiny, verify=verify))
    (tiny / name).mkdir()
    assert "not a plain file" in refusal(lambda: Bundle.open(tiny, verify=verify))


@pytest.mark.parametrize("name", NAMES)
def test_one_flipped_bit(tiny: Path, name: str) -> None:
    data = bytearray((tiny / name).read_bytes())
    data[len(data) // 2] ^= 0x10
    (tiny / name).write_bytes(data)
    assert f"{name} is damaged" in refusal(lambda: Bundle.open(tiny))
    opened = Bundle.open(tiny, verify=False)
    uses: dict[str, Callable[[], object]] = {
        "golden.npz": lambda: opened.golden(8),
        "os8-fp32.onnx": lambda: opened.model(opened.variant(8, "fp32")),
        "os16-fp32.onnx": lambda: opened.model(opened.variant(16, "fp32")),
    }
    for used, use in uses.items():
        if used == name or (name == "weights-fp32.bin" and used.endswith(".onnx")):
            assert f"{name} is damaged" in refusal(use)
        else:
            use()


def npz(path: Path, change: Callable[[dict[str, Any]], object], **options: Any) -> None:
    with np.load(TINY / "golden.npz") as arrays:
        content = dict(arrays)
    change(content)
    np.savez(path, **content, **options)


@pytest.mark.parametrize("key", ["frame0", "frame0_os8_logits", "frame0_os8_class_map"])
def test_golden_lacking_an_array(tiny: Path, key: str) -> None:
    npz(tiny / "golden.npz", lambda arrays: arrays.pop(key))
    put(tiny, "golden.npz", (tiny / "golden.npz").read_bytes())
    assert key in refusal(lambda: Bundle.open(tiny).golden(8))


def test_golden_frames_that_are_not_there(tiny: Path) -> None:
    for stride, index in ((8, 3), (8, -1), (32, 0)):
        assert f"golden frame {index} at output stride {stride}" in refusal(
            lambda stride=stride, index=index: Bundle.open(tiny).golden(stride, index)
        )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("frame0", np.zeros((64, 97, 3), np.uint8)),
        ("frame0", np.zeros((64, 96, 3), np.float32)),
        ("frame0_os8_logits", np.zeros((5, 8, 13), np.float32)),
        ("frame0_os8_logits", np.zeros((5, 8, 12), np.float64)),
        ("frame0_os8_class_map", np.zeros((64, 95), np.uint8)),
        ("frame0_os8_class_map", np.zeros((64, 96), np.int64)),
    ],
)
def test_golden_arrays_of_another_shape(tiny: Path, key: str, value: np.ndarray) -> None:
    npz(tiny / "golden.npz", lambda arrays: arrays.update({key: value}))
    put(tiny, "golden.npz", (tiny / "golden.npz").read_bytes())
    assert "does not fit" in refusal(lambda: Bundle.open(tiny).golden(8))


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("whole_file", [True, False])
def test_golden_is_never_unpickled(tiny: Path, tmp_path: Path, whole_file: bool) -> None:
    bomb = np.array([Bomb(tmp_path / "executed")], object)
    if whole_file:
        with (tiny / "golden.npz").open("wb") as file:
            np.save(file, bomb, allow_pickle=True)
    else:
        npz(tiny / "golden.npz", lambda arrays: arrays.update(frame0=bomb))
    put(tiny, "golden.npz", (tiny / "golden.npz").read_bytes())
    refusal(lambda: Bundle.open(tiny).golden(8))
    assert not (tmp_path / "executed").exists()
    np.load(tiny / "golden.npz", allow_pickle=True)["frame0" if not whole_file else 0]
    assert (tmp_path / "executed").exists(), "the bomb would not have gone off at all"


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\x05\x06" + bytes(18), b"garbage" * 99])
def test_golden_that_is_no_archive(tiny: Path, data: bytes) -> None:
    put(tiny, "golden.npz", data)
    assert "golden.npz" in refusal(lambda: Bundle.open(tiny).golden(8))


# names


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "C:x", "a/b", "a\\b", "..", ".", "", "..\\x", "x\0y", "x\ny", "\ud800", "x\u2028y"]
)
def test_names_that_could_leave_the_directory(tiny: Path, name: str) -> None:
    edit(tiny, lambda data: data["files"].update({name: {"sha256": "0" * 64, "bytes": 0}}))
    assert "manifest.files" in refusal(lambda: Bundle.open(tiny))


def link(path: Path, target: Path) -> None:
    try:
        path.symlink_to(target)
    except OSError as error:
        pytest.skip(f"no symbolic links here: {error}")


@pytest.mark.parametrize("name", [*NAMES, "manifest.json"])
@pytest.mark.parametrize("verify", [True, False])
def test_links_that_lead_out(tiny: Path, tmp_path: Path, name: str, verify: bool) -> None:
    os.replace(tiny / name, tmp_path / "outside")
    link(tiny / name, tmp_path / "outside")
    assert "leads out" in refusal(lambda: Bundle.open(tiny, verify=verify))


def test_links_within_and_to_the_bundle_are_fine(tiny: Path, tmp_path: Path) -> None:
    os.replace(tiny / "golden.npz", tiny / "real")
    link(tiny / "golden.npz", tiny / "real")
    link(tmp_path / "alias", tiny)
    assert Bundle.open(tmp_path / "alias").golden(8).frame.shape == (64, 96, 3)


def test_a_loop_of_links(tiny: Path) -> None:
    (tiny / "golden.npz").unlink()
    link(tiny / "golden.npz", tiny / "golden.npz")
    assert "golden.npz" in refusal(lambda: Bundle.open(tiny))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("name", ["golden.npz", "manifest.json"])
def test_a_pipe_is_not_waited_for(tiny: Path, name: str) -> None:
    (tiny / name).unlink()
    os.mkfifo(tiny / name)
    if name != "manifest.json":
        edit(tiny, lambda data: data["files"][name].update(bytes=0))
    assert "not a plain file" in refusal(lambda: Bundle.open(tiny))


# the manifest's values


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
        if where == "manifest.format" and wrong in (None, 10**400):
            expected = "has format"
        elif isinstance(value, int) and wrong == 10**400 and not isinstance(value, bool):
            continue  # a whole number, if a silly one
        else:
            expected = f"{where} is "
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


# weights that lead out


def tensor(location: str = "../secret") -> onnx.TensorProto:
    made = onnx.TensorProto(name="w", dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    made.external_data.add(key="offset", value="0")
    made.external_data.add(key="location", value=location)
    return made


def sparse(place: str) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(**{place: tensor()}, dims=[1])


def attribute(**values: Any) -> onnx.AttributeProto:
    return onnx.AttributeProto(name="value", **values)


def node(**values: Any) -> onnx.NodeProto:
    made = helper.make_node("Constant", [], ["y"])
    made.attribute.append(attribute(**values))
    return made


GRAPH = onnx.GraphProto(initializer=[tensor()])
PLANTED: dict[str, onnx.ModelProto] = {
    "initializer": onnx.ModelProto(graph=GRAPH),
    "node tensor": onnx.ModelProto(graph=onnx.GraphProto(node=[node(t=tensor())])),
    "node tensors": onnx.ModelProto(graph=onnx.GraphProto(node=[node(tensors=[tensor("x"), tensor()])])),
    "subgraph": onnx.ModelProto(graph=onnx.GraphProto(node=[node(g=GRAPH)])),
    "subgraphs": onnx.ModelProto(graph=onnx.GraphProto(node=[node(graphs=[onnx.GraphProto(), GRAPH])])),
    "subgraph in subgraph": onnx.ModelProto(
        graph=onnx.GraphProto(node=[node(g=onnx.GraphProto(node=[node(g=onnx.GraphProto(node=[node(t=tensor())]))]))])
    ),
    "sparse values": onnx.ModelProto(graph=onnx.GraphProto(sparse_initializer=[sparse("values")])),
    "sparse indices": onnx.ModelProto(graph=onnx.GraphProto(sparse_initializer=[sparse("indices")])),
    "node sparse": onnx.ModelProto(graph=onnx.GraphProto(node=[node(sparse_tensor=sparse("values"))])),
    "node sparses": onnx.ModelProto(graph=onnx.GraphProto(node=[node(sparse_tensors=[sparse("indices")])])),
    "function node": onnx.ModelProto(functions=[onnx.FunctionProto(name="f", node=[node(t=tensor())])]),
    "function default": onnx.ModelProto(
        functions=[onnx.FunctionProto(name="f", attribute_proto=[attribute(t=tensor())])]
    ),
    "training start": onnx.ModelProto(training_info=[onnx.TrainingInfoProto(initialization=GRAPH)]),
    "training step": onnx.ModelProto(training_info=[onnx.TrainingInfoProto(algorithm=GRAPH)]),
}


@pytest.mark.parametrize("place", PLANTED)
def test_weights_outside_are_found_wherever_they_hide(tiny: Path, place: str) -> None:
    model = onnx.load_from_string(MODEL)
    model.MergeFrom(PLANTED[place])
    put(tiny, "os8-fp32.onnx", model.SerializeToString())
    opened = Bundle.open(tiny)  # every hash is right: only the graph gives it away
    message = refusal(lambda: opened.model(opened.variant(8, "fp32")))
    assert "os8-fp32.onnx" in message
    assert "'../secret'" in message or "'x'" in message


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "", "./weights-fp32.bin", "golden.npz", "weights-fp32.bin\0", "*/_ORT_MEM_ADDR_/*", "C:\\x"],
)
def test_only_the_listed_weights_file_may_be_named(tiny: Path, location: str) -> None:
    model = onnx.load_from_string(MODEL)
    model.graph.initializer.append(tensor(location))
    put(tiny, "os8-fp32.onnx", model.SerializeToString())
    opened = Bundle.open(tiny)
    assert repr(location) in refusal(lambda: opened.model(opened.variant(8, "fp32")))


def test_a_variant_without_weights_may_name_none(tiny: Path) -> None:
    edit(tiny, lambda data: data["variants"][0].pop("weights"))
    opened = Bundle.open(tiny)
    assert "'weights-fp32.bin'" in refusal(lambda: opened.model(opened.variant(8, "fp32")))


def walk(message: Any) -> Iterator[str]:
    """Every external location in any tensor of a parsed message, whatever field holds it."""
    if isinstance(message, onnx.TensorProto):
        for entry in message.external_data:
            if entry.key == "location":
                yield entry.value
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in [value] if hasattr(value, "ListFields") else value:
                yield from walk(item)


@pytest.mark.parametrize("name", ["os8-fp32.onnx", "os16-fp32.onnx"])
def test_locations_are_those_the_onnx_package_finds(name: str) -> None:
    data = (TINY / name).read_bytes()
    model = onnx.load_from_string(data)
    theirs = {
        external_data_helper.ExternalDataInfo(found).location
        for found in external_data_helper._get_all_tensors(model)
        if external_data_helper.uses_external_data(found)
    }
    assert _wire.external_locations(data) == theirs == set(walk(model)) == {"weights-fp32.bin"}


@pytest.mark.parametrize("place", PLANTED)
def test_locations_are_those_of_a_walk_over_every_field(place: str) -> None:
    model = PLANTED[place]
    assert _wire.external_locations(model.SerializeToString()) == set(walk(model)) != set()


def test_a_tag_that_wraps_around_is_refused() -> None:
    """C++ protobuf keeps 32 bits of a tag: field 13 + 2**29 is external_data to it, and must not be skipped here."""
    plain = onnx.ModelProto(graph=GRAPH).SerializeToString()
    tag = bytes([13 << 3 | 2])
    wrapped = bytes([tag[0] | 0x80, 0x80, 0x80, 0x80, 0x10])
    entry = tensor().external_data[1].SerializeToString()
    forged = tensor()
    forged.ClearField("external_data")
    inner = forged.SerializeToString() + wrapped + bytes([len(entry)]) + entry
    graph = bytes([5 << 3 | 2, len(inner)]) + inner
    assert _wire.external_locations(plain) == {"../secret"}
    with pytest.raises(_wire.WireError):
        _wire.external_locations(bytes([7 << 3 | 2, len(graph)]) + graph)


@pytest.mark.parametrize(
    "data",
    [b"\x08", b"\x3a\x05abc", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x0b", b"\x0e", b"\x02\x00", b"\x80"],
    ids=["number", "length", "endless", "group", "type", "field zero", "tag"],
)
def test_damaged_protobuf(tiny: Path, data: bytes) -> None:
    with pytest.raises(_wire.WireError):
        _wire.external_locations(data)
    put(tiny, "os8-fp32.onnx", data)
    opened = Bundle.open(tiny)
    assert "not a well-formed ONNX file" in refusal(lambda: opened.model(opened.variant(8, "fp32")))


def test_graphs_nested_without_end() -> None:
    data = b""
    for depth in range(400):
        field = (7 << 3 | 2, 1 << 3 | 2, 5 << 3 | 2, 6 << 3 | 2)[0 if depth == 399 else 1 + (2 - depth % 3)]
        length, size = len(data), b""
        while length > 127:
            size += bytes([length & 127 | 128])
            length >>= 7
        data = bytes([field]) + size + bytes([length]) + data
    with pytest.raises(_wire.WireError):
        _wire.external_locations(data)


def parsed(data: bytes) -> set[str] | None:
    """What the onnx package reads, or None where it reads nothing."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        # the package gives text that is not UTF-8 as bytes
        found: list[Any] = list(walk(model))
    except Exception:
        return None
    return {name if isinstance(name, str) else name.decode("utf-8", "backslashreplace") for name in found}


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    with contextlib.suppress(_wire.WireError):
        assert _wire.external_locations(data) >= (parsed(data) or set())


SMALL = [PLANTED[place].SerializeToString() for place in PLANTED]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_mutated_models_never_hide_a_location(data: st.DataObject) -> None:
    """Whatever the onnx package still makes of a mutated model, this finds at least its locations, or refuses it."""
    content = bytearray(data.draw(st.sampled_from([MODEL, *SMALL])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["byte", "insert", "delete", "cut", "repeat"]))
        if kind == "byte":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        elif kind == "delete" and len(content) > 1:
            del content[at]
        elif kind == "cut":
            del content[max(at, 1) :]
        elif kind == "repeat":
            content += content[at:]
    theirs = parsed(bytes(content))
    try:
        ours = _wire.external_locations(bytes(content))
    except _wire.WireError:
        return
    assert ours >= (theirs or set())


# writing


@pytest.fixture
def parts() -> tuple[Any, dict[str, bytes]]:
    return Bundle.open(TINY).manifest, {name: (TINY / name).read_bytes() for name in NAMES}


def siblings(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def test_writes_the_same_bytes(tmp_path: Path, parts: tuple[Any, dict[str, bytes]]) -> None:
    path = tmp_path / "new" / "copy.edgeseg"
    assert write(path, *parts) == Bundle.open(path)
    assert contents(path) == contents(TINY)
    assert siblings(path) == ["copy.edgeseg"]


def test_refuses_what_exists(tiny: Path, tmp_path: Path, parts: tuple[Any, dict[str, bytes]]) -> None:
    before = contents(tmp_path)
    assert "--overwrite" in refusal(lambda: write(tiny, *parts))
    assert contents(tmp_path) == before
    (tiny / "note.txt").write_text("gone after overwriting")
    write(tiny, *parts, overwrite=True)
    assert contents(tmp_path) == before
    assert siblings(tiny) == ["tiny.edgeseg"]


@pytest.mark.parametrize("manifest", [None, "{}", "[]", "not json", '{"name": "app", "manifest_version": 3}'])
def test_never_replaces_a_directory_that_is_no_bundle(
    tmp_path: Path, parts: tuple[Any, dict[str, bytes]], manifest: str | None
) -> None:
    path = tmp_path / "thesis"
    path.mkdir()
    (path / "chapter.txt").write_text("years of work")
    if manifest is not None:
        (path / "manifest.json").write_text(manifest)
    before = contents(tmp_path)
    assert "is not a bundle" in refusal(lambda: write(path, *parts, overwrite=True))
    assert "is not a bundle" in refusal(lambda: write(path / "chapter.txt", *parts, overwrite=True))
    assert contents(tmp_path) == before


def test_a_failure_half_way_keeps_the_old_bundle(tiny: Path, parts: tuple[Any, dict[str, bytes]]) -> None:
    manifest, files = parts
    name = "w" * 300 + ".bin"  # longer than any file system takes: the last file cannot be written
    listed = dataclasses.replace(manifest, files={**manifest.files, name: describe_file(b"x")})
    before = contents(tiny.parent)
    message = refusal(lambda: write(tiny, listed, {**files, name: b"x"}, overwrite=True))
    assert f"cannot write {tiny}" in message
    assert contents(tiny.parent) == before
    assert siblings(tiny) == ["tiny.edgeseg"]


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """The operating system refuses to let any file grow past `size` bytes: what a full disk does, for real."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_old_bundle(tiny: Path, parts: tuple[Any, dict[str, bytes]]) -> None:
    before = contents(tiny.parent)
    with no_file_beyond(20_000):
        assert f"cannot write {tiny}" in refusal(lambda: write(tiny, *parts, overwrite=True))
    assert contents(tiny.parent) == before
    assert siblings(tiny) == ["tiny.edgeseg"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda files: files.pop("golden.npz"), "golden.npz"),
        (lambda files: files.update({"golden.npz": b"other"}), "golden.npz"),
        (lambda files: files.update({"../evil": b"x"}), "../evil"),
        (lambda files: files.update({"extra": b"x"}), "extra"),
    ],
)
def test_files_and_manifest_must_agree(
    tiny: Path, parts: tuple[Any, dict[str, bytes]], change: Callable[[dict[str, bytes]], object], named: str
) -> None:
    manifest, files = parts
    change(files)
    before = contents(tiny.parent)
    message = refusal(lambda: write(tiny, manifest, files, overwrite=True))
    assert f"cannot write {tiny}: {named}" in message
    assert contents(tiny.parent) == before


def test_a_manifest_that_could_not_be_read_back_is_not_written(
    tmp_path: Path, parts: tuple[Any, dict[str, bytes]]
) -> None:
    manifest, files = parts
    classes = (ClassInfo("ground", (0, 0, 300)), *manifest.classes[1:])
    bad = dataclasses.replace(manifest, classes=classes)
    assert "color is [0, 0, 300]" in refusal(lambda: write(tmp_path / "x", bad, files))
    evil = dataclasses.replace(manifest, files={**manifest.files, "../evil": FileInfo("0" * 64, 1)})
    assert "'../evil'" in refusal(lambda: write(tmp_path / "x", evil, {**files, "../evil": b"x"}))
    assert list(tmp_path.iterdir()) == []


def test_writing_where_nothing_can_be(tmp_path: Path, parts: tuple[Any, dict[str, bytes]]) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "b.edgeseg", tmp_path / ("x" * 300), tmp_path / "nul\0"):
        assert "cannot write" in refusal(lambda path=path: write(path, *parts))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_link_to_a_bundle_stays_a_link(tiny: Path, tmp_path: Path, parts: tuple[Any, dict[str, bytes]]) -> None:
    (tiny / "note.txt").write_text("x")
    link(tmp_path / "latest", tiny)
    write(tmp_path / "latest", *parts, overwrite=True)
    assert (tmp_path / "latest").is_symlink()
    assert contents(tiny) == contents(TINY)
    assert siblings(tiny) == ["latest", "tiny.edgeseg"]


def test_overwriting_the_directory_one_stands_in(
    tiny: Path, parts: tuple[Any, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny / "note.txt").write_text("x")
    monkeypatch.chdir(tiny)
    write(Path("."), *parts, overwrite=True)
    assert contents(tiny) == contents(TINY)


def test_packing_golden_frames_is_deterministic() -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(2)]
    answers = {8: [(rng.random((2, 1, 1), np.float32), np.zeros((8, 8), np.uint8)) for _ in frames]}
    packed = pack_golden(frames, answers)
    assert packed == pack_golden([frame.copy() for frame in frames], answers)
    assert packed != pack_golden(frames[::-1], answers)


def test_the_manifest_name_is_the_documented_one() -> None:
    assert (TINY / bundle.MANIFEST).is_file()
