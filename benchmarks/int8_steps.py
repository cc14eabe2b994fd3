"""What makes our int8 graphs fast, undone one by one in a graph of the cpu encoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeseg.bundle import Bundle
from edgeseg.calibration import ranges as tables
from edgeseg.calibration.network import Network, activations, read_network
from edgeseg.calibration.ranges import Range
from edgeseg.calibration.rounding import round_weights
from edgeseg.errors import BundleError
from edgeseg.surgery.facts import Array, copy, opset_of, prune, refill
from edgeseg.surgery.onnx_file import read_onnx

_MOVES = frozenset({"Expand", "Resize", "Transpose", "Reshape", "Slice", "MaxPool"})
"""What hands a Concat's scale on to the tensor it reads."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An int8 graph in the cpu encoding, and what it was made of."""

    graph: onnx.ModelProto
    network: Network
    ranges: Mapping[str, Range]


def read_encoded(bundle: Bundle, stride: int) -> Encoded:
    """A bundle's variant in the cpu encoding. Raises BundleError."""
    variant = bundle.variant(stride, "int8", "cpu")
    if variant.calibration is None:
        raise BundleError(f"{bundle.path} does not say how {variant.file} was calibrated: calibrate it again")
    name = variant.calibration.ranges
    table = tables.loads(bundle.file(name).read_bytes(), str(bundle.path / name))
    network = read_network(bundle, bundle.variant(stride, "fp32"))
    return Encoded(read_onnx(bundle.path / variant.file), network, table.methods[variant.calibration.method])


def dequantize_after_transposing(encoded: Encoded) -> Encoded:
    """Pixels are transposed as bytes, and become levels after that."""
    graph = _Graph(encoded)
    flat, moved = graph.entry()
    flat.input[0], moved.input[0] = f"{moved.name}.levels", flat.input[0]
    flat.output[0], moved.output[0] = moved.name, f"{moved.name}.levels"
    return graph.finish([moved, flat], at=(flat, moved))


def detour_by_float(encoded: Encoded) -> Encoded:
    """Pixels become floats, are transposed, scaled, shifted, and quantized again: as graphs of floats begin."""
    graph = _Graph(encoded)
    flat, moved = graph.entry()
    half = np.full((1, 3, 1, 1), 0.5, np.float32)  # another scale than 1, which a runtime would see through
    zero = graph.value(flat.input[2])
    names = [f"{moved.name}.{step}" for step in ("float", "nchw", "scaled", "shifted", "quantized")]
    scale = graph.store(f"{moved.name}.half", np.array(0.5, np.float32))
    nodes = [
        helper.make_node("Cast", flat.input[:1], names[:1], name=names[0], to=onnx.TensorProto.FLOAT),
        helper.make_node("Transpose", names[:1], names[1:2], name=names[1], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", [names[1], graph.store(f"{names[2]}.by", half)], names[2:3], name=names[2]),
        helper.make_node(
            "Add", [names[2], graph.store(f"{names[3]}.by", -half * float(zero))], names[3:4], name=names[3]
        ),
        helper.make_node("QuantizeLinear", [names[3], scale, flat.input[2]], names[4:5], name=names[4]),
        helper.make_node("DequantizeLinear", [names[4], scale, flat.input[2]], [moved.name], name=moved.name),
    ]
    for layer in encoded.network.layers:
        if layer.source == encoded.network.entry:  # whose biases keep their scale
            name = f"{layer.weight}.dequantized.scale"
            graph.change(name, graph.value(name) * 2)
    return graph.finish(nodes, at=(flat, moved))


def keep_clips(encoded: Encoded) -> Encoded:
    """Every activation is computed, also where the ends of the levels do the same."""
    graph, source = _Graph(encoded), encoded.network
    behind = {node.output[0]: node for node in activations(source.model.graph, source.constants).values()}
    nodes = []
    for node in graph.nodes:
        nodes.append(node)
        activation = behind.get(node.output[0])
        if activation is not None and node.op_type != activation.op_type:
            node.output[0] = activation.input[0]
            for name in filter(None, activation.input[1:]):
                graph.store(name, source.constants[name])
            nodes.append(activation)
    return graph.finish(nodes)


def scale_each(encoded: Encoded) -> Encoded:
    """What a Concat reads and makes is on its own scale, each by its own range."""
    graph, source = _Graph(encoded), encoded.network.model.graph
    made_by = {node.output[0]: node for node in source.node}
    read_by = {name: [node.op_type for node in source.node if name in node.input] for name in encoded.ranges}
    waiting = [name for node in source.node if node.op_type == "Concat" for name in node.input]
    while waiting:
        name = waiting.pop()
        node = made_by.get(name)
        if node is not None and node.op_type in _MOVES:
            waiting.append(node.input[0])
        scale = f"{name}.dequantized.scale"
        if graph.stored(scale) and "Conv" not in read_by[name]:  # whose bias goes by it
            found = encoded.ranges[name]
            step = max((found.high - found.low) / 255, 1e-12)
            graph.change(scale, np.array(step, np.float32))
            graph.change(f"{name}.dequantized.zero", np.array(np.clip(np.rint(-found.low / step), 0, 255), np.uint8))
    return graph.finish(graph.nodes)


def reduce_means(encoded: Encoded) -> Encoded:
    """Means over whole maps as exporters write them."""
    graph = _Graph(encoded)
    for node in graph.nodes:
        if node.op_type == "GlobalAveragePool":
            node.op_type = "ReduceMean"
            if opset_of(encoded.graph) >= 18:
                node.input.append(graph.store(f"{node.name}.axes", np.array([2, 3], np.int64)))
            else:
                node.attribute.append(helper.make_attribute("axes", [2, 3]))
    return graph.finish(graph.nodes)


def quantize_head(encoded: Encoded) -> Encoded:
    """The head in int8 as well, its weights rounded to nearest, and the logits quantized behind it."""
    graph = _Graph(encoded)
    heads = {layer.node: layer for layer in encoded.network.layers if layer.is_head}
    nodes = []
    for node in graph.nodes:
        layer = heads.get(node.name)
        if layer is None or not graph.stored(f"{node.input[0]}.scale"):
            nodes.append(node)
            continue
        found = round_weights(*encoded.network.weights(layer), None)
        products = graph.value(f"{node.input[0]}.scale") * found.scale
        bias = np.rint(found.bias / products).astype(np.int32)
        weight_zero, bias_zero = np.zeros(len(bias), np.int8), np.zeros(len(bias), np.int32)
        nodes.append(graph.dequantize(graph.store(f"{layer.weight}.int8", found.values), found.scale, weight_zero, 0))
        nodes.append(graph.dequantize(graph.store(f"{layer.bias}.int32", bias), products, bias_zero, 0))
        node.input[1:] = [made.output[0] for made in nodes[-2:]]
        output, seen = node.output[0], encoded.ranges[node.output[0]]
        node.output[0] = f"{output}.float"
        step = np.float32((seen.high - seen.low) / 255)
        back = graph.dequantize(f"{output}.quantized", step, np.array(np.rint(-seen.low / step), np.uint8))
        back.output[0] = output
        inputs = [node.output[0], *back.input[1:]]
        nodes += [node, helper.make_node("QuantizeLinear", inputs, back.input[:1], name=f"{output}.quantized"), back]
    return graph.finish(nodes)


def all_of_these(encoded: Encoded) -> Encoded:
    """Every step undone."""
    for undo in (detour_by_float, keep_clips, scale_each, reduce_means, quantize_head):
        encoded = undo(encoded)
    return encoded


STEPS: dict[str, Callable[[Encoded], Encoded]] = {
    "pixels become levels before they are transposed, not after": dequantize_after_transposing,
    "pixels become levels, without floats in between": detour_by_float,
    "levels clamp, no Clips": keep_clips,
    "one scale around the Concat": scale_each,
    "means as GlobalAveragePool, not ReduceMean": reduce_means,
    "float head": quantize_head,
    "all of these": all_of_these,
}
"""Each step, and what undoes it."""


class _Graph:
    """A copy of an encoded graph being changed."""

    def __init__(self, encoded: Encoded) -> None:
        self._encoded, self._model = encoded, copy(encoded.graph)
        self.nodes = list(self._model.graph.node)
        self._tensors = {tensor.name: tensor for tensor in self._model.graph.initializer}

    def entry(self) -> tuple[onnx.NodeProto, onnx.NodeProto]:
        """The DequantizeLinear of the pixels and the Transpose behind it. Raises BundleError."""
        name = f"{self._encoded.network.entry}.dequantized"
        found = {node.name: node for node in self.nodes}
        if name not in found or f"{name}.nhwc" not in found:
            raise BundleError(f"{self._model.graph.name} does not begin with pixels as levels: there is no such step")
        return found[f"{name}.nhwc"], found[name]

    def stored(self, name: str) -> bool:
        return name in self._tensors

    def value(self, name: str) -> Array:
        return numpy_helper.to_array(self._tensors[name])

    def change(self, name: str, value: Array) -> None:
        self._tensors[name].CopyFrom(numpy_helper.from_array(value, name))

    def store(self, name: str, value: Array) -> str:
        if name not in self._tensors:
            self._tensors[name] = self._model.graph.initializer.add()
            self.change(name, value)
        return name

    def dequantize(
        self, tensor: str, scale: Array | np.float32, zero: Array, axis: int | None = None
    ) -> onnx.NodeProto:
        made = f"{tensor}.dequantized"
        inputs = [tensor, self.store(f"{made}.scale", np.array(scale)), self.store(f"{made}.zero", zero)]
        settings = {} if axis is None else {"axis": axis}
        return helper.make_node("DequantizeLinear", inputs, [made], name=made, **settings)  # type: ignore[arg-type]

    def finish(self, nodes: list[onnx.NodeProto], at: tuple[onnx.NodeProto, ...] = ()) -> Encoded:
        """The graph of these nodes; or with them in the place of those named in `at`."""
        if at:
            others = [node for node in self.nodes if not any(node is gone for gone in at)]
            nodes = [*nodes, *others]  # what reads only the pixels may come first
        refill(self._model.graph.node, nodes)
        del self._model.graph.value_info[:]
        model = prune(self._model)
        onnx.checker.check_model(model, full_check=True)
        return dataclasses.replace(self._encoded, graph=model)
