"""Weights that lead out of a bundle: the reader of external locations against the onnx package, in forged models."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import external_data_helper, helper

from edgeseg import _wire
from edgeseg.bundle import Bundle, describe_file
from edgeseg.errors import BundleError
from edgeseg.testing import TINY

MODEL = (TINY / "os8-fp32.onnx").read_bytes()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "tiny.edgeseg"))


def forge(path: Path, data: bytes) -> str:
    """Put this model into the bundle with a manifest whose hashes match; why the bundle then refuses it, at use."""
    (path / "os8-fp32.onnx").write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["os8-fp32.onnx"] = {"sha256": describe_file(data).sha256, "bytes": len(data)}
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    opened = Bundle.open(path)
    with pytest.raises(BundleError) as caught:
        opened.model(opened.variant(8, "fp32"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
    message = forge(tiny, model.SerializeToString())
    assert "os8-fp32.onnx" in message
    assert "'../secret'" in message or "'x'" in message


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "", "./weights-fp32.bin", "golden.npz", "weights-fp32.bin\0", "*/_ORT_MEM_ADDR_/*", "C:\\x"],
)
def test_only_the_listed_weights_file_may_be_named(tiny: Path, location: str) -> None:
    model = onnx.load_from_string(MODEL)
    model.graph.initializer.append(tensor(location))
    assert repr(location) in forge(tiny, model.SerializeToString())


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
    assert "not a well-formed ONNX file" in forge(tiny, data)


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
