"""The front of an ONNX graph: uint8 pixels instead of the normalised floats a file was made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeseg.errors import ExportError
from edgeseg.surgery.facts import Array, attributes, copy, real_inputs, refill, rename, unused
from edgeseg.types import Color, Preprocess, Size


@dataclass(frozen=True, slots=True)
class Entry:
    """How a file takes images: its input's name and its layout."""

    name: str
    layout: Literal["NCHW", "NHWC"]


def read_entry(model: onnx.ModelProto, layout: Literal["NCHW", "NHWC"] | None = None) -> Entry:
    """The file's one image input; `layout` None: told by which axis has length 3, NCHW if neither says.

    Raises ExportError for anything but one float32 input with four axes and three channels.
    """
    inputs = real_inputs(model.graph)
    if len(inputs) != 1:
        names = ", ".join(repr(value.name) for value in inputs)
        raise ExportError(f"the file has {len(inputs)} inputs ({names}): a network of one image is needed")
    value, tensor = inputs[0], inputs[0].type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise ExportError(
            f"input {value.name!r} is {kind}: bring the file that takes float32 (pixels are put before it here, and "
            "runtimes make fp16 of it themselves)"
        )
    shape = _dims(value)
    if len(shape) != 4:
        raise ExportError(f"input {value.name!r} has shape {_text(shape)}: (N, 3, h, w) or (N, h, w, 3) is needed")
    chosen = layout or ("NHWC" if shape[3] == 3 and shape[1] != 3 else "NCHW")
    channels = shape[1 if chosen == "NCHW" else 3]
    if channels not in (None, 3):
        raise ExportError(
            f"input {value.name!r} has {channels} channels, its shape being {_text(shape)} in layout {chosen}: "
            "edgeseg's frames have 3"
        )
    return Entry(value.name, chosen)


def fix_input(model: onnx.ModelProto, entry: Entry, size: Size, *, batch: int | None = 1) -> onnx.ModelProto:
    """The graph with its input's shape fixed to this size and batch (None: any), and stale shape notes removed.

    Raises ExportError where the file is fixed to another size or batch.
    """
    model = copy(model)
    (value,) = real_inputs(model.graph)  # by another name if it was called `logits`
    shape = _dims(value)
    row = 2 if entry.layout == "NCHW" else 1
    own = shape[row : row + 2]
    if any(length not in (None, wanted) for length, wanted in zip(own, size, strict=True)):
        fixed = "x".join("?" if length is None else str(length) for length in own)
        raise ExportError(f"the file is fixed to {fixed} and the size asked for is {size[0]}x{size[1]}: give {fixed}")
    if shape[0] not in (None, 1):
        raise ExportError(f"the file is fixed to batches of {shape[0]}: export it with batch size 1 or a dynamic one")
    wanted = [batch or "N", 3, *size] if entry.layout == "NCHW" else [batch or "N", *size, 3]
    value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, wanted))
    # a node of the file may repeat the sizes it was made with; they are inferred anew
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return model


def from_pixels(
    model: onnx.ModelProto, entry: Entry, preprocess: Preprocess, *, color: Color = "rgb", batch: int | None = 1
) -> onnx.ModelProto:
    """The graph with input `pixels`, uint8 (batch, h, w, 3) RGB, normalised inside as `preprocess` says.

    Where the file wants BGR (`color`), the flip goes into the first convolution's weights, or a Gather. All nodes
    added are valid from opset 7 on. Raises ExportError where the size does not fit the file.
    """
    height, width = preprocess.input_size
    model = fix_input(model, entry, preprocess.input_size, batch=batch)
    graph = model.graph
    rename(graph, real_inputs(graph)[0].name, "image")
    if any("pixels" in node.output for node in graph.node):
        rename(graph, "pixels", unused("pixels.1", {name for node in graph.node for name in node.output}))
    mean, std = np.array(preprocess.mean), np.array(preprocess.std)
    shape = (1, 3, 1, 1) if entry.layout == "NCHW" else (1, 1, 1, 3)
    scale, shift = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
    flip = color == "bgr" and not _flip_first_weights(graph, entry)
    nodes: list[onnx.NodeProto] = []
    last = "pixels"

    def append(kind: str, constant: Array | None = None, **settings: Any) -> None:
        nonlocal last
        inputs, made = [last], f"pixels.{kind.lower()}{len(nodes)}"
        if constant is not None:
            inputs.append(f"{made}.constant")
            graph.initializer.append(numpy_helper.from_array(constant, inputs[1]))
        nodes.append(helper.make_node(kind, inputs, [made], name=made, **settings))
        last = made

    append("Cast", to=TensorProto.FLOAT)  # before the Transpose, since TensorRT transposes no uint8
    if entry.layout == "NCHW":
        append("Transpose", perm=[0, 3, 1, 2])
    if not np.all(scale == 1):
        append("Mul", scale.reshape(shape))
    if np.any(shift):
        append("Add", shift.reshape(shape))
    if flip:
        append("Gather", np.array([2, 1, 0], np.int64), axis=shape.index(3))
    nodes[-1].output[0] = "image"
    refill(graph.node, [*nodes, *graph.node])
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, [batch or "N", height, width, 3])
    refill(graph.input, [pixels, *(value for value in graph.input if value.name != "image")])
    return model


def _flip_first_weights(graph: onnx.GraphProto, entry: Entry) -> bool:
    """Turn the first convolutions' input channels around, in place; False where anything else reads the input."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    readers = [node for node in graph.node if "image" in node.input]
    if entry.layout != "NCHW" or any(
        node.op_type != "Conv" or attributes(node).get("group", 1) != 1 or node.input[1] not in tensors
        for node in readers
    ):
        return False
    for node in readers:
        weights = numpy_helper.to_array(tensors[node.input[1]])
        name = unused(f"{node.input[1]}.rgb", tensors)
        tensors[name] = numpy_helper.from_array(np.ascontiguousarray(weights[:, ::-1]), name)
        graph.initializer.append(tensors[name])
        node.input[1] = name
    return True


def _dims(value: onnx.ValueInfoProto) -> list[int | None]:
    """The declared shape; None where any length goes (zero and -1 are older exporters' ways to say so)."""
    return [dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim]


def _text(shape: list[int | None]) -> str:
    return "x".join("?" if length is None else str(length) for length in shape) or "()"
