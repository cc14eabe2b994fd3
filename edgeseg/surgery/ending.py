"""Giving a graph a new end: float32 logits (N, C, h, w) named `logits`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeseg.errors import ExportError
from edgeseg.surgery.facts import Facts, copy, prune, refill, rename, unused
from edgeseg.surgery.layout import Layout


def end_at(model: onnx.ModelProto, output: str | None = None) -> onnx.ModelProto:
    """The graph with this one output (default: its first), an output or any tensor, and without what others need.

    Raises ExportError where no layer makes it.
    """
    outputs = [value.name for value in model.graph.output]
    name = outputs[0] if output is None else output
    if not any(name in node.output for node in model.graph.node):
        raise ExportError(f"no layer makes {name!r}: the outputs are {', '.join(map(repr, outputs))}")
    model = copy(model)
    kept = [value for value in model.graph.output if value.name == name]
    refill(model.graph.output, kept or [onnx.ValueInfoProto(name=name)])
    return prune(model)


def ended(
    model: onnx.ModelProto, name: str, facts: Facts, layout: Layout, logits_shape: tuple[int, int, int]
) -> onnx.ModelProto:
    """The graph made to end at float32 (N, C, h, w) named `logits`, from its tensor `name`."""
    model = end_at(model, name)
    graph = model.graph
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    last = name

    def append(kind: str, *constants: onnx.TensorProto, **settings: Any) -> None:
        nonlocal last
        made = unused(f"logits.{kind.lower()}", names)
        graph.node.append(helper.make_node(kind, [last, *(c.name for c in constants)], [made], name=made, **settings))
        graph.initializer.extend(constants)
        last = made

    if len(facts.shapes[name]) != len(layout.shape):
        append("Reshape", numpy_helper.from_array(np.array((-1, *layout.shape[1:]), np.int64), "logits.shape"))
    if layout.order != (0, 1, 2, 3):
        append("Transpose", perm=layout.order)
    if facts.types.get(name) != TensorProto.FLOAT:
        append("Cast", to=TensorProto.FLOAT)
    graph.output[0].name = last
    rename(graph, last, "logits")
    batch = graph.input[0].type.tensor_type.shape.dim[0]
    shape = [batch.dim_param or batch.dim_value or None, *logits_shape]
    graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape))
    refill(graph.value_info, [value for value in graph.value_info if value.name != "logits"])
    return model
