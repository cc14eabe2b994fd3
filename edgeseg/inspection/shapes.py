"""The shape of every tensor of an ONNX graph, also where sizes are computed inside the graph.

onnx's inference stops at the chains of Shape, Gather, Slice, Cast and Concat by which older exporters tell a Resize its
size. Such chains hold a few numbers each; they are evaluated here, with onnx's reference, as soon as shapes allow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

_SMALL = 64
"""Numbers in the largest tensor that counts as part of such a chain."""

Known = dict[str, npt.NDArray[Any]]


def shapes(model: onnx.ModelProto) -> tuple[dict[str, tuple[int, ...]], Known]:
    """Shapes by tensor name, open dimensions 0; and the small tensors that are constant at this input size.

    Raises what onnx raises for a graph that is not valid.
    """
    model = onnx.ModelProto.FromString(_without_weights(model).SerializeToString())
    known = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if _is_small(t)}
    found: dict[str, tuple[int, ...]] = {}
    while True:
        inferred = shape_inference.infer_shapes(model, data_prop=True).graph
        found = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        for value in (*inferred.value_info, *inferred.input, *inferred.output):
            kind = value.type.tensor_type
            if kind.HasField("shape"):
                found.setdefault(value.name, tuple(dim.dim_value for dim in kind.shape.dim))
        fresh = _evaluate(model, found, known)
        if not fresh:
            return found, known
        known |= fresh
        kept = [node for node in model.graph.node if not set(node.output) & fresh.keys()]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in fresh.items())
        del model.graph.value_info[:]


def _evaluate(model: onnx.ModelProto, found: dict[str, tuple[int, ...]], known: Known) -> Known:
    """The outputs of all nodes whose inputs are known small tensors, and of Shape where the shape is."""
    fresh: Known = {}
    for node in model.graph.node:
        inputs = [name for name in node.input if name]
        shape = found.get(inputs[0]) if inputs and node.op_type == "Shape" else None
        if shape is not None and all(size > 0 for size in shape) and not node.attribute:
            fresh[node.output[0]] = np.array(shape, np.int64)
        elif all(name in known or name in fresh for name in inputs) and len(node.output) == 1:
            value = _run(model, node, {name: fresh[name] if name in fresh else known[name] for name in inputs})
            if value is not None and value.size <= _SMALL:
                fresh[node.output[0]] = value
    return fresh


def _run(model: onnx.ModelProto, node: onnx.NodeProto, inputs: dict[str, Any]) -> npt.NDArray[Any] | None:
    try:
        values = [helper.make_tensor_value_info(name, 0, None) for name in inputs]
        graph = helper.make_graph([node], "node", values, [helper.make_tensor_value_info(node.output[0], 0, None)])
        one = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
        outputs: Any = ReferenceEvaluator(one).run(None, inputs)
        return np.asarray(outputs[0])
    except Exception:  # not every operator has a reference; then the shape stays open, which the reader reports
        return None


def _is_small(tensor: onnx.TensorProto) -> bool:
    return int(np.prod(tensor.dims, dtype=np.int64)) <= _SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that keeps the dimensions of large tensors and drops their numbers."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    for field in ("node", "input", "output", "value_info"):
        getattr(light.graph, field).extend(getattr(model.graph, field))
    light.graph.name = model.graph.name
    for tensor in model.graph.initializer:
        if _is_small(tensor):
            light.graph.initializer.append(tensor)
        else:
            light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return light
