"""Rewrites of an ONNX graph that change nothing it computes: constants, no-ops, batch norms, local functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.inliner import inline_local_functions

from edgeseg.errors import ExportError, one_line
from edgeseg.surgery.facts import (
    Array,
    Facts,
    attributes,
    copy,
    drop,
    drop_made,
    inline_if,
    nodes_within,
    opset_of,
    prune,
    real_inputs,
    refill,
    title,
    unused,
)

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
              "ConvInteger", "MatMulInteger")  # fmt: skip


def fold(model: onnx.ModelProto, facts: Facts, also: Facts | None = None) -> onnx.ModelProto:
    """The same function with constants stored as initialisers, constant `If`s resolved, no-ops and batch norms folded.

    With `also`, learned at another batch size, only what holds at both is written down: the graph keeps any batch
    size. Initialisers leave the list of inputs and are stored as raw bytes.
    """
    model = copy(model)
    graph = model.graph
    refill(graph.input, real_inputs(graph))
    for output, branch in facts.branches:
        if also is None or (output, branch) in also.branches:
            inline_if(graph, next(node for node in graph.node if output in node.output), branch)
    known = {
        name: value
        for name, value in facts.constants.items()
        if also is None or (name in also.constants and np.array_equal(value, also.constants[name]))
    }
    stored = {tensor.name for tensor in graph.initializer}
    made = {name for node in graph.node if set(filter(None, node.output)) <= set(known) for name in node.output if name}
    drop_made(graph, made)
    graph.initializer.extend(numpy_helper.from_array(known[name], name) for name in sorted(made - stored))
    for tensor in graph.initializer:
        if not tensor.HasField("raw_data") and tensor.data_type != onnx.TensorProto.STRING:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    model = prune(model)
    _drop_no_ops(model.graph, known)
    _fold_batch_norms(model.graph)
    return prune(model)


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without documentation, metadata and paths of the machine that wrote it."""
    model = copy(model)
    graph = model.graph
    model.ClearField("doc_string")
    for item in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.ClearField("metadata_props")
        if hasattr(item, "doc_string"):
            item.ClearField("doc_string")
    return model


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the file's own functions written out where they are called."""
    if not model.functions:
        return model
    try:
        inlined: onnx.ModelProto = inline_local_functions(model)
        return inlined
    except Exception as error:  # whatever the C++ inliner meets
        raise ExportError(f"the file's own functions cannot be written out: {one_line(error)}") from error


def refuse_foreign(model: onnx.ModelProto) -> None:
    """Raises ExportError naming the first layer that no runtime can be trusted with: private operators, operators the
    opset does not have, numbers already quantised.
    """
    opset = opset_of(model)
    for node in nodes_within(model.graph):
        if node.domain not in ("", "ai.onnx"):
            raise ExportError(
                f"layer {title(node)} is of the operator set {node.domain!r}, which only its own runtime knows: "
                "export the network with standard ONNX operators, or name an output before it"
            )
        if not onnx.defs.has(node.op_type, opset, ""):
            raise ExportError(f"layer {title(node)} is no operator of ONNX opset {opset}: export with a newer opset")
        if node.op_type in _QUANTIZED:
            raise ExportError(
                f"layer {title(node)} holds numbers already quantised: bring the float file, then `edgeseg calibrate` "
                "makes int8 of it"
            )


def refuse_control_flow(model: onnx.ModelProto) -> None:
    """Raises ExportError naming the first If, Loop or Scan; `fold` has resolved those that always go one way."""
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ExportError(
                f"layer {title(node)} is control flow that depends on the image: rewrite the network without it, "
                "or name an output before it"
            )


def _drop_no_ops(graph: onnx.GraphProto, constants: Mapping[str, Array]) -> None:
    """Leave out Identity and inference Dropout; one that makes a graph output stays, since its name is needed."""
    outputs = {value.name for value in graph.output}
    instead: dict[str, str] = {}

    def passes(node: onnx.NodeProto) -> bool:
        if node.op_type == "Dropout":
            training = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else False
            trains = training is None or bool(np.any(training))
            read = {name for other in graph.node for name in other.input} | outputs
            return not trains and not (len(node.output) > 1 and node.output[1] in read)
        return node.op_type == "Identity"

    gone = [node for node in graph.node if passes(node) and node.output[0] not in outputs]
    for node in gone:  # in the order of the graph, so chains resolve to their start
        instead[node.output[0]] = instead.get(node.input[0], node.input[0])
    for node in graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]
    drop(graph, lambda node: bool(node.output) and node.output[0] in instead)


def _fold_batch_norms(graph: onnx.GraphProto) -> None:
    """Multiply every batch norm on constants into the float32 convolution before it that nothing else reads."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    folded: set[str] = set()
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv, settings = producers.get(norm.input[0]), attributes(norm)
        if conv is None or readers[norm.input[0]] != 1 or not _foldable(conv, norm, settings, tensors):
            continue
        parameters = [numpy_helper.to_array(tensors[name]).astype(np.float64) for name in norm.input[1:5]]
        scale, shift, mean, variance = parameters
        factor = scale / np.sqrt(variance + settings.get("epsilon", 1e-5))
        weights = numpy_helper.to_array(tensors[conv.input[1]])
        bias = numpy_helper.to_array(tensors[conv.input[2]]) if len(conv.input) > 2 and conv.input[2] else 0.0
        along = [1] * weights.ndim
        along[0 if conv.op_type == "Conv" else 1] = -1  # a ConvTranspose's weights have the inputs first
        changed = {
            "weight": weights * factor.reshape(along),
            "bias": (bias - mean) * factor + shift,
        }
        # new names: another layer may share the old tensors
        names = [unused(f"{conv.input[1]}.folded.{kind}", tensors) for kind in changed]
        for name, value in zip(names, changed.values(), strict=True):
            tensors[name] = numpy_helper.from_array(value.astype(np.float32), name)
            graph.initializer.append(tensors[name])
        conv.input[:] = [conv.input[0], *names]
        conv.output[0] = norm.output[0]
        producers[norm.output[0]] = conv
        folded.add(norm.output[0])
    drop(graph, lambda node: node.op_type == "BatchNormalization" and node.output[0] in folded)


def _foldable(
    conv: onnx.NodeProto, norm: onnx.NodeProto, settings: Mapping[str, object], tensors: Mapping[str, onnx.TensorProto]
) -> bool:
    plain = conv.op_type == "Conv" or (conv.op_type == "ConvTranspose" and attributes(conv).get("group", 1) == 1)
    trains = settings.get("training_mode", 0) or settings.get("spatial", 1) == 0 or any(norm.output[1:])
    needed = [name for name in (*conv.input[1:], *norm.input[1:5]) if name]
    float32 = all(name in tensors and tensors[name].data_type == onnx.TensorProto.FLOAT for name in needed)
    return plain and not trains and float32
