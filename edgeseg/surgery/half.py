"""Graphs for strongly typed builders: every float in half precision, but for the output and what scales the pixels."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from edgeseg.errors import ExportError, one_line
from edgeseg.surgery.facts import Array, attributes, copy, opset_of, real_inputs, refill, title, unused
from edgeseg.surgery.onnx_file import read_onnx

_OPSET = 19  # the first whose QuantizeLinear takes half-precision scales
_HALF = "tensor(float16)"
_LARGEST = float(np.finfo(np.float16).max)
_SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
_SCALE_LOSS = 0.01
_LEVELS = 127  # of int8 weights, which are symmetric
_ON_PIXELS = frozenset(
    {"Cast", "Transpose", "Mul", "Add", "Sub", "Div", "Reshape", "Slice", "Gather", "Concat", "Split"}
)


def half_graph(path: Path) -> bytes:
    """The float16 form (`to_half`) of a bundle's float32 graph at `path`: one ONNX file's bytes, weights inside.

    Raises ExportError as `read_onnx` and `to_half` do, and for inputs and outputs that are not a bundle's.
    """
    model = read_onnx(path)
    ends = (*real_inputs(model.graph), *model.graph.output)
    kinds = [(value.name, value.type.tensor_type.elem_type) for value in ends]
    if kinds != [("pixels", TensorProto.UINT8), ("logits", TensorProto.FLOAT)]:
        there = ", ".join(f"{name} {TensorProto.DataType.Name(kind).lower()}" for name, kind in kinds)
        raise ExportError(f"{path} has {there}, and a bundle's graph has pixels uint8, logits float: export it again")
    data: bytes = to_half(model).SerializeToString(deterministic=True)
    return data


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 graph that is not quantized made float16, its opset kept: from uint8 `pixels` to float32 logits.

    The arithmetic on pixels before the first layer stays float32: half precision would move them by up to a sixth of a
    grey level. What an operator takes in float32 only stays so; a Clip's bound beyond the largest half is that half.
    Raises ExportError naming a constant that half precision cannot hold, or a layer that is no standard operator.
    """
    return _in_half(copy(model), _front(model.graph))


def to_typed_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of `encode_tensorrt`, its float32 tensors made float16: from uint8 `pixels` to float32 logits, opset 19.

    Integers stay as they are, except weights whose scale would lose more than a hundredth in half precision (below
    3e-6): they are rounded again to the next scale that it has. Activations are quantized with the half-precision scale
    itself, at least 6e-8, and lose nothing by it. What an operator takes in float32 only (Resize's scales) stays so; a
    Clip's bound beyond the largest half is that half. Raises ExportError naming a constant that half precision cannot
    hold, or an operator that opset 19 does not have.
    """
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            raise ExportError(f"input {value.name!r} is float32, and a typed graph reads pixels: encode a bundle's own")
    try:
        model = version_converter.convert_version(model, _OPSET)
    except Exception as error:  # the converter raises anything
        raise ExportError(f"{model.graph.name} cannot be brought to opset {_OPSET}: {one_line(error)}") from error
    _half_scales(model.graph)
    return _in_half(model)


def _in_half(model: onnx.ModelProto, front: Collection[str] = ()) -> onnx.ModelProto:
    """The float tensors made float16, in place, but for the outputs of the graph and those in `front`."""
    graph, opset = model.graph, opset_of(model)
    _half_constants(graph, opset, front)
    _cast_at_the_edges(graph, opset, front)
    del graph.value_info[:]
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker and shape inference raise unrelated classes
        raise ExportError(f"{graph.name} cannot be written in half precision: {one_line(error)}") from error
    return model


def _front(graph: onnx.GraphProto) -> set[str]:
    """The float tensors that are pixels, moved and scaled."""
    stored = {tensor.name for tensor in graph.initializer}
    whole, front = {value.name for value in real_inputs(graph)}, set[str]()
    for node in graph.node:
        reads = set(filter(None, node.input)) - stored
        if node.op_type not in _ON_PIXELS or not reads:
            continue
        if reads <= whole:
            (front if attributes(node).get("to") == TensorProto.FLOAT else whole).update(node.output)
        elif reads <= front and node.op_type != "Cast":
            front.update(node.output)
    return front - {value.name for value in graph.output}


def _half_scales(graph: onnx.GraphProto) -> None:
    """Scales of levels in half precision, in place."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.input[1] not in tensors:
            continue
        stored = tensors[node.input[1]]
        if stored.data_type != TensorProto.FLOAT:
            continue  # of a pair whose other half came first
        exact = numpy_helper.to_array(stored).astype(np.float64)
        half = np.maximum(_to_half(node.input[1], exact), np.float16(_SMALLEST))
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
            lossy = np.abs(half / exact - 1) > _SCALE_LOSS
            half = np.where(lossy & (half < exact), np.nextafter(half, np.float16(np.inf)), half)
            weight = tensors[node.input[0]]
            levels = numpy_helper.to_array(weight)
            ratio = np.where(lossy, exact / half, 1.0)
            again = np.rint(levels * ratio.reshape(-1, *[1] * (levels.ndim - 1)))
            fitting = np.clip(again, -_LEVELS, _LEVELS).astype(levels.dtype)
            weight.CopyFrom(numpy_helper.from_array(fitting, weight.name))
        stored.CopyFrom(numpy_helper.from_array(half, stored.name))


def _half_constants(graph: onnx.GraphProto, opset: int, front: Collection[str]) -> None:
    """Float32 initialisers, and what attributes say of types, in half precision, in place."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    single: dict[str, str] = {}  # copies for inputs that take float32 only
    bounds = set()
    for node, index, takes_half in _float_inputs(graph, opset, front):
        name = node.input[index]
        if node.op_type == "Clip" and index:
            bounds.add(name)
        if name in tensors and not takes_half and tensors[name].data_type == TensorProto.FLOAT:
            if name not in single:
                single[name] = unused(f"{name}.float32", tensors)
                twin = numpy_helper.from_array(numpy_helper.to_array(tensors[name]), single[name])
                graph.initializer.append(twin)
            node.input[index] = single[name]
    for name, tensor in tensors.items():
        if tensor.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(tensor)
            half = _to_half(name, np.clip(value, -_LARGEST, _LARGEST) if name in bounds else value)
            tensor.CopyFrom(numpy_helper.from_array(half, name))
    for node in graph.node:
        for attribute in () if node.output[0] in front else node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
                half = _to_half(title(node), numpy_helper.to_array(attribute.t))
                attribute.t.CopyFrom(numpy_helper.from_array(half))


def _cast_at_the_edges(graph: onnx.GraphProto, opset: int, front: Collection[str]) -> None:
    """Casts to float32 before what takes nothing else and at the outputs, to float16 behind the front, in place."""
    made = {name for node in graph.node for name in node.output}
    names = made | {tensor.name for tensor in graph.initializer}
    before: dict[str, onnx.NodeProto] = {}
    for node, index, takes_half in _float_inputs(graph, opset, front):
        name = node.input[index]
        if name in made and takes_half == (name in front) and node.output[0] not in front:
            if name not in before:
                kind = TensorProto.FLOAT16 if takes_half else TensorProto.FLOAT
                cast = unused(f"{name}.float{16 if takes_half else 32}", names)
                before[name] = helper.make_node("Cast", [name], [cast], name=cast, to=kind)
            node.input[index] = before[name].output[0]
    after = {}
    for value in graph.output:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            half = unused(f"{value.name}.float16", names)
            after[value.name] = helper.make_node("Cast", [half], [value.name], name=value.name, to=TensorProto.FLOAT)
    nodes = []
    for node in graph.node:
        for fields in (node.input, node.output):
            fields[:] = [after[name].input[0] if name in after else name for name in fields]
        nodes += [node, *(before[name] for name in node.output if name in before)]
    refill(graph.node, [*nodes, *after.values()])


def _float_inputs(
    graph: onnx.GraphProto, opset: int, front: Collection[str]
) -> Iterator[tuple[onnx.NodeProto, int, bool]]:
    """(node, index of input, whether it is to be float16) for every input that may be float32."""
    for node in graph.node:
        try:
            formal = onnx.defs.get_schema(node.op_type, opset, node.domain).inputs
        except onnx.defs.SchemaError as error:
            raise ExportError(f"layer {title(node)} is no operator of ONNX's opset {opset}: use fp32") from error
        for index, name in enumerate(node.input):
            kinds = formal[min(index, len(formal) - 1)].types  # the last one may stand for any number
            if name and "tensor(float)" in kinds:
                yield node, index, _HALF in kinds and node.output[0] not in front


def _to_half(name: str, value: Array) -> Array:
    """Rounded to nearest. Raises ExportError naming what does not fit; infinities do."""
    finite = np.abs(value[np.isfinite(value)])
    if finite.size and finite.max() > _LARGEST:
        raise ExportError(
            f"constant {name!r} reaches {finite.max():.6g}, and half precision ends at {_LARGEST:.0f}: this network "
            "has no float16 form, use fp32, or a TensorRT that is not strongly typed"
        )
    return value.astype(np.float16)
