"""Which tensors of a network carry 8-bit numbers, on which scale: decided once, written down by the encoders."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from edgeseg.calibration.network import Network, activations
from edgeseg.calibration.ranges import Range

_SAME_SCALE = frozenset(
    {"Concat", "MaxPool", "Resize", "Expand", "Slice", "Split", "Transpose", "Reshape", "DepthToSpace", "Relu", "Clip"}
)
"""Operators that only move, pick or mix values of one range: with one scale on all sides they need no arithmetic."""
_LIGHT = _SAME_SCALE | {"Add", "Mul", "AveragePool", "GlobalAveragePool"}
"""What runs in 8 bits beside convolutions, where what it reads is in 8 bits already."""


@dataclass(frozen=True, slots=True)
class Level:
    """uint8 levels of one tensor: value = scale * (level - zero)."""

    scale: np.float32
    zero: int

    @property
    def low(self) -> float:
        return float(-self.zero * self.scale)

    @property
    def high(self) -> float:
        return float((255 - self.zero) * self.scale)


@dataclass(frozen=True, slots=True)
class Placement:
    """`int8_nodes` by name compute on levels; `levels` are those of every quantized tensor but the network's entry.

    `raw_readers` are (tensor, node) pairs that read the unquantized tensor although it has levels.
    """

    int8_nodes: frozenset[str]
    levels: Mapping[str, Level]
    raw_readers: frozenset[tuple[str, str]]


def int8_layers(network: Network, float_layers: Collection[str]) -> frozenset[str]:
    """The nodes of the layers with integer weights: all but the head and `float_layers` (names of layers)."""
    return frozenset(layer.node for layer in network.layers if not layer.is_head and layer.name not in float_layers)


def place(network: Network, ranges: Mapping[str, Range], float_layers: Collection[str] = ()) -> Placement:
    """Place levels for runtimes that compute whole graphs in 8 bits (the cpu encoding).

    A layer in `float_layers` reads and writes floats; the head reads levels but has float weights: it is a thousandth
    of the work, and its rounding would go straight into the logits.
    """
    graph = network.model.graph
    kept = {layer.node for layer in network.layers if layer.name in float_layers}
    computing = set(int8_layers(network, float_layers))
    made_in_int8: set[str] = set()
    for node in graph.node:
        if node.name in computing or (node.op_type in _LIGHT and made_in_int8 & set(node.input)):
            computing.add(node.name)
            made_in_int8 |= set(node.output)
    absorbed = activations(graph, network.constants)
    outputs = {value.name for value in graph.output}
    quantized = []
    for name in ranges:
        reading = [node for node in graph.node if name in node.input]
        wanted = any(node.name in computing for node in reading)
        offered = name in made_in_int8 and not any(node.name in kept for node in reading)
        if name not in (*outputs, *absorbed, network.entry) and (wanted or offered):
            quantized.append(name)
    raw = {(name, node.name) for node in graph.node if node.name in kept for name in node.input}
    return Placement(frozenset(computing), _levels(graph, ranges, quantized, computing), frozenset(raw))


def _levels(
    graph: onnx.GraphProto, ranges: Mapping[str, Range], quantized: list[str], computing: set[str]
) -> dict[str, Level]:
    """Levels per tensor; tensors joined by operators that need one scale share the union of their ranges."""
    leader = {name: name for name in quantized}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for node in graph.node:
        if node.name in computing and node.op_type in _SAME_SCALE:
            joined = [name for name in (*node.input, *node.output) if name in leader]
            for name in joined[1:]:
                leader[find(name)] = find(joined[0])
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for name in quantized:
        top = find(name)
        low[top] = min(low.get(top, 0.0), ranges[name].low)
        high[top] = max(high.get(top, 0.0), ranges[name].high)
    return {name: _level(low[find(name)], high[find(name)]) for name in quantized}


def _level(low: float, high: float) -> Level:
    scale = np.float32((high - low) / 255)
    if not scale > 0:  # a tensor that was always zero
        return Level(np.float32(1), 0)
    return Level(scale, int(np.clip(np.rint(-low / float(scale)), 0, 255)))
