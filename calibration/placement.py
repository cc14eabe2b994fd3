"""Which tensors of a network carry 8-bit numbers, on which scale: decided once, written down by the encoders."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from edgeseg.calibration.network import Network, activations
from edgeseg.calibration.ranges import Range
from edgeseg.surgery.facts import Array

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
    return Placement(frozenset(computing), _levels(network, ranges, quantized, computing), frozenset(raw))


def ends_clamp(level: Level, activation: onnx.NodeProto, constants: Mapping[str, Array]) -> bool:
    """Whether the ends of its output's levels do what the activation does."""
    low, high = 0.0, np.inf
    if activation.op_type == "Clip":
        bounds = [float(constants[name]) if name else None for name in (*activation.input[1:], "", "")]
        low, high = (-np.inf if bounds[0] is None else bounds[0]), (np.inf if bounds[1] is None else bounds[1])
    slack = float(level.scale) * 1e-3
    return level.low >= low - slack and level.high <= high + slack


def _levels(
    network: Network, ranges: Mapping[str, Range], quantized: list[str], computing: Collection[str]
) -> dict[str, Level]:
    """Levels per tensor; tensors joined by operators that need one scale share the union of their ranges.

    A Concat can do without: it joins what it reads except where the union's ends would no longer clamp as an activation
    does (a U-Net's skip beside signed maps), for ONNX Runtime then computes the convolution before that in float.
    """
    graph, constants = network.model.graph, network.constants
    moving = [node for node in graph.node if node.name in computing and node.op_type in _SAME_SCALE]
    alike = [[*node.input, *node.output] for node in moving if node.op_type != "Concat"]
    inner, apart = _groups(quantized, alike), set[str]()
    alone = _shared_levels(ranges, inner)
    clamped = {node.output[0]: node for node in activations(graph, constants).values() if node.output[0] in alone}
    clamped = {name: node for name, node in clamped.items() if ends_clamp(alone[name], node, constants)}
    while True:
        joined = [
            [*(name for name in node.input if inner.get(name) not in apart), *node.output]
            for node in moving
            if node.op_type == "Concat"
        ]
        levels = _shared_levels(ranges, _groups(quantized, [*alike, *joined]))
        wider = {inner[name] for name, node in clamped.items() if not ends_clamp(levels[name], node, constants)}
        if wider <= apart:
            return levels
        apart |= wider


def _groups(names: Collection[str], joined: Iterable[Collection[str]]) -> dict[str, str]:
    """By name the one that stands for all that `joined` connects it to; names beside `names` are passed by."""
    leader = {name: name for name in names}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for group in joined:
        members = [name for name in group if name in leader]
        for name in members[1:]:
            leader[find(name)] = find(members[0])
    return {name: find(name) for name in names}


def _shared_levels(ranges: Mapping[str, Range], groups: Mapping[str, str]) -> dict[str, Level]:
    """Levels of every tensor, which cover all ranges of its group."""
    low, high = dict.fromkeys(groups, 0.0), dict.fromkeys(groups, 0.0)
    for name, top in groups.items():
        low[top] = min(low[top], ranges[name].low)
        high[top] = max(high[top], ranges[name].high)
    return {name: _level(low[top], high[top]) for name, top in groups.items()}


def _level(low: float, high: float) -> Level:
    scale = np.float32((high - low) / 255)
    if not scale > 0:  # a tensor that was always zero
        return Level(np.float32(1), 0)
    return Level(scale, int(np.clip(np.rint(-low / float(scale)), 0, 255)))
