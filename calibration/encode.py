"""Writing quantized graphs: the cpu encoding for ONNX Runtime and OpenVINO, the tensorrt encoding for its builders."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeseg.calibration.network import Layer, Network, activations
from edgeseg.calibration.placement import Level, Placement, ends_clamp, int8_layers, place
from edgeseg.calibration.ranges import Range
from edgeseg.calibration.rounding import LEVELS, IntWeights
from edgeseg.errors import ExportError, one_line
from edgeseg.surgery.facts import Array, attributes, copy, opset_of, prune, refill, title

_OLDEST_OPSET = 13  # the first with scales per channel
_TENSORRT_OPSET = 17
_SINCE_18 = ("noop_with_empty_axes", "antialias", "keep_aspect_ratio_policy", "num_outputs")
_MOST_BIAS = 1 << 30


class _Writer:
    """A copy of a network's graph being rewritten node by node."""

    def __init__(self, network: Network) -> None:
        if opset_of(network.model) < _OLDEST_OPSET:
            raise ExportError(
                f"{network.model.graph.name} is written in opset {opset_of(network.model)}, and scales per channel "
                f"begin with {_OLDEST_OPSET}: export the network with a newer opset"
            )
        self.model = copy(network.model)
        self.nodes: list[onnx.NodeProto] = []
        self._stored: set[str] = set()

    def store(self, name: str, value: Array) -> str:
        if name not in self._stored:
            self._stored.add(name)
            # scalars stay scalars: with scales of shape (1,) ONNX Runtime adds in float
            self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def dequantize(self, tensor: str, scale: Array, zero: Array, made: str, axis: int | None = None) -> str:
        """Add a DequantizeLinear; `made` is its name and its output's."""
        inputs = [tensor, self.store(f"{made}.scale", scale), self.store(f"{made}.zero", zero)]
        settings: dict[str, Any] = {} if axis is None else {"axis": axis}
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [made], name=made, **settings))
        return made

    def quantize(self, tensor: str, scale: float | np.float32, zero: Array) -> str:
        """Add a pair of QuantizeLinear and DequantizeLinear behind `tensor`; returns what to read instead."""
        made, level = f"{tensor}.dequantized", f"{tensor}.quantized"
        inputs = [tensor, self.store(f"{made}.scale", np.array(scale, np.float32)), self.store(f"{made}.zero", zero)]
        self.nodes.append(helper.make_node("QuantizeLinear", inputs, [level], name=level))
        return self.dequantize(level, np.array(scale, np.float32), zero, made)

    def weight(self, layer: Layer, values: Array, scale: Array) -> str:
        """Add a layer's integer weights; returns the dequantized tensor."""
        stored = self.store(f"{layer.weight}.int8", values)
        zeros = np.zeros(len(values), np.int8)
        return self.dequantize(stored, scale, zeros, f"{layer.weight}.dequantized", axis=0)

    def finish(self) -> onnx.ModelProto:
        refill(self.model.graph.node, self.nodes)
        del self.model.graph.value_info[:]
        self.model = prune(self.model)
        try:
            onnx.checker.check_model(self.model, full_check=True)
        except Exception as error:  # the checker and shape inference raise unrelated classes
            name, opset = self.model.graph.name, opset_of(self.model)
            raise ExportError(f"{name} cannot be written in int8 in opset {opset}: {one_line(error)}") from error
        return self.model


def encode_cpu(
    network: Network,
    ranges: Mapping[str, Range],
    weights: Mapping[str, IntWeights],
    float_layers: Collection[str] = (),
) -> onnx.ModelProto:
    """uint8 activations, int8 weights per channel, int32 biases: what ONNX Runtime and OpenVINO run fastest.

    `weights` by layer name. Pixels become the first layer's input without a float in between: their levels are the
    pixels themselves. Clamping activations that the levels' own ends stand for are left out. Raises ExportError for a
    graph older than opset 13.
    """
    writer, placement = _Writer(network), place(network, ranges, float_layers)
    layers = {layer.node: layer for layer in network.layers}
    following = activations(network.model.graph, network.constants)
    dropped: set[str] = set()
    instead = _enter_on_levels(writer, network, placement)
    entry = Level(np.float32(1), network.zero or 0)
    for node in network.model.graph.node:
        if node.name in dropped:
            continue
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.input[:] = [
            name if (name, node.name) in placement.raw_readers else instead.get(name, name) for name in node.input
        ]
        layer = layers.get(node.name)
        if layer is not None and node.name in placement.int8_nodes:
            source = entry if layer.source == network.entry else placement.levels[layer.source]
            twin.input[1:] = _weight_and_bias(writer, layer, weights[layer.name], source.scale)
        behind = following.get(node.output[0])
        if behind is not None and node.name in placement.int8_nodes and _clamps(network, behind, placement):
            twin.output[0] = behind.output[0]
            dropped.add(behind.name)
        writer.nodes.append(twin)
        for name in twin.output:
            if level := placement.levels.get(name):
                instead[name] = writer.quantize(name, level.scale, np.array(level.zero, np.uint8))
    return writer.finish()


def encode_tensorrt(
    network: Network,
    ranges: Mapping[str, Range],
    weights: Mapping[str, IntWeights],
    float_layers: Collection[str] = (),
) -> onnx.ModelProto:
    """Signed symmetric int8 at the inputs of convolutions and on their weights, float biases, opset 17 at most.

    TensorRT fuses everything else by itself, and refuses uint8, zero points other than 0 and integer biases. Raises
    ExportError where the graph needs a newer opset.
    """
    writer, computing = _Writer(network), int8_layers(network, float_layers)
    layers = {layer.node: layer for layer in network.layers}
    wanted = {layer.source for layer in network.layers if layer.node in computing}
    instead: dict[str, str] = {}
    for node in network.model.graph.node:
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        if node.name in computing:
            layer = layers[node.name]
            found = weights[layer.name]
            bias = writer.store(f"{layer.bias}.corrected", found.bias)
            twin.input[:] = [instead[layer.source], writer.weight(layer, found.values, found.scale), bias]
        writer.nodes.append(twin)
        for name in node.output:
            if name in wanted:
                instead[name] = writer.quantize(name, _signed_scale(network, name, ranges), np.array(0, np.int8))
    _lower_opset(writer)
    return writer.finish()


def _enter_on_levels(writer: _Writer, network: Network, placement: Placement) -> dict[str, str]:
    """Let the int8 first layers read the pixels as levels; dequantized before they are transposed, which OpenVINO and
    ONNX Runtime both take out altogether (the other order leaves OpenVINO's first convolution in float).
    """
    if network.entry is None:
        return {}
    reading = [node.name for node in network.model.graph.node if network.entry in node.input]
    if not any(name in placement.int8_nodes for name in reading):
        return {}
    pixels, made = network.model.graph.input[0].name, f"{network.entry}.dequantized"
    flat = writer.dequantize(pixels, np.array(1, np.float32), np.array(network.zero, np.uint8), f"{made}.nhwc")
    writer.nodes.append(helper.make_node("Transpose", [flat], [made], name=made, perm=[0, 3, 1, 2]))
    return {network.entry: made}


def _weight_and_bias(writer: _Writer, layer: Layer, found: IntWeights, source: np.float32) -> list[str]:
    scale, values, bias = found.scale, found.values, found.bias
    # a channel of next to no weights under a large bias: coarser weights, so that the bias fits 32 bits
    needed = (np.abs(bias) / (source * np.float64(_MOST_BIAS))).astype(np.float32)
    if np.any(needed > scale):
        coarser = np.maximum(scale, needed)
        shape = (-1, *[1] * (values.ndim - 1))
        values, scale = np.rint(values * (scale / coarser).reshape(shape)).astype(np.int8), coarser
    weight = writer.weight(layer, values, scale)
    # ONNX Runtime compares this scale with the product of the other two, in float32
    bias_scale = np.float32(source) * scale
    stored = writer.store(f"{layer.bias}.int32", np.rint(bias / bias_scale.astype(np.float64)).astype(np.int32))
    zeros = np.zeros(len(bias), np.int32)
    return [weight, writer.dequantize(stored, bias_scale, zeros, f"{layer.bias}.dequantized", axis=0)]


def _clamps(network: Network, activation: onnx.NodeProto, placement: Placement) -> bool:
    """Whether the ends of its output's levels do what the activation does."""
    level = placement.levels.get(activation.output[0])
    if level is None or any(name == activation.output[0] for name, _ in placement.raw_readers):
        return False
    return ends_clamp(level, activation, network.constants)


def _signed_scale(network: Network, name: str, ranges: Mapping[str, Range]) -> float:
    if name == network.entry and network.zero is not None:
        reach = max(network.zero - 1, 255 - network.zero)  # there is a level -128 too
        return max(1.0, reach / LEVELS)
    limit = ranges[name].limit
    return limit / LEVELS if limit > 0 else 1.0


def _lower_opset(writer: _Writer) -> None:
    """From opset 18 and later to 17, in place. onnx's own converter writes an invalid ReduceMean here."""
    model = writer.model
    if opset_of(model) <= _TENSORRT_OPSET:
        return
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in writer.nodes:
        settings, newer = attributes(node), False
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":
            axes = constants.get(node.input[1]) if len(node.input) > 1 else None
            if axes is not None:
                del node.input[1:]
                node.attribute.append(helper.make_attribute("axes", [int(axis) for axis in axes]))
            newer = len(node.input) > 1 or (axes is None and settings.get("noop_with_empty_axes", 0) == 1)
        elif node.op_type == "Resize":
            stretches = settings.get("keep_aspect_ratio_policy", "stretch") == "stretch"
            newer = not stretches or settings.get("antialias", 0) == 1 or "axes" in settings
        if newer:
            raise ExportError(f"layer {title(node)} needs opset 18, and the tensorrt encoding is written in 17")
        if node.op_type != "ReduceSum":  # which had them before
            refill(node.attribute, [attribute for attribute in node.attribute if attribute.name not in _SINCE_18])
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = _TENSORRT_OPSET
    model.ir_version = min(model.ir_version, 8)
