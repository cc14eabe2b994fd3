"""Just enough of the protobuf wire format to see which files an ONNX graph reads its weights from.

On the device there is no `onnx` package, and a runtime opens whatever path the graph names; so the names are checked
here first. Field numbers are onnx.proto's: ModelProto.graph 7, GraphProto.initializer 5 and .node 1,
NodeProto.attribute 5, AttributeProto.t 5 / .g 6 / .tensors 10 / .graphs 11, GraphProto.sparse_initializer 15,
SparseTensorProto.values 1 / .indices 2, ModelProto.functions 25 and .training_info 20, FunctionProto.node 7 and
.attribute_proto 11, TensorProto.external_data 13, StringStringEntryProto.key 1 / .value 2.
"""

from __future__ import annotations

from collections.abc import Iterator

# kind of message -> {field number: kind of the message inside}
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}


class WireError(ValueError):
    """The bytes are not a well-formed protobuf message."""


def external_locations(model: bytes) -> set[str]:
    """Every file name that tensors of this serialised ONNX model refer to; raises WireError if it is damaged."""
    return set(_locations(memoryview(model), "model", 0))


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > 100:  # graphs nest inside graphs; a real one does so a few times
        raise WireError("nested too deeply")
    texts: dict[int, str] = {}
    for number, content in _fields(message):
        if kind == "entry":
            # a listed name holds no backslash, so bytes that are not UTF-8 never come out as one
            texts[number] = bytes(content).decode("utf-8", "backslashreplace")
        elif number in _INSIDE[kind]:
            yield from _locations(content, _INSIDE[kind][number], depth + 1)
    if texts.get(1) == "location":
        yield texts.get(2, "")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of one message; numbers and fixed-size fields are stepped over."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        # a C++ parser keeps 32 bits of the tag: to it, field 13 + 2**29 is field 13
        if not 8 <= tag < 1 << 32:
            raise WireError(f"field number {tag >> 3}")
        if tag & 7 == 0:
            _, at = _varint(message, at)
        elif tag & 7 == 2:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise WireError("a field runs past the end")
            yield tag >> 3, message[at : at + length]
            at += length
        elif tag & 7 in (1, 5):
            at += 8 if tag & 7 == 1 else 4
        else:
            raise WireError(f"wire type {tag & 7}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise WireError("a number runs past the end")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if not byte & 0x80:
            return value, at
        shift += 7
