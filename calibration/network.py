"""The float graph as quantization sees it: its layers by name, and pixels that reach the first one as whole numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeseg.bundle import Bundle
from edgeseg.calibration.rewrites import store, tile_upsamplings
from edgeseg.errors import ExportError
from edgeseg.geometry import Padding, effective_kernel
from edgeseg.manifest import Variant
from edgeseg.surgery.facts import Array, attributes, copy, learn, prune, refill, unused
from edgeseg.surgery.means import pool_means
from edgeseg.surgery.onnx_file import read_onnx

ACTIVATIONS = frozenset({"Relu", "Clip"})
"""What a runtime computes inside the convolution before it, and what clamping to a quantized range can stand for."""
_PIXELS = ("Cast", "Transpose", "Mul", "Add")
"""How exported graphs begin: `edgeseg.tracing` and `edgeseg.surgery.pixels` write these; Mul and Add may be missing."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution with constant weights. `name` is its weight tensor's, without what exporters put around it.

    `source` and `output` are the float tensors it reads and, behind the activation that it absorbs, makes; `made` is
    the convolution's own output. `weight` names a float32 (O, I / groups, *kernel) initialiser, `bias` an (O,) one.
    `macs` are the multiply-accumulates for one image. `is_head` where no convolution comes after: it stays float.
    """

    name: str
    node: str
    source: str
    made: str
    output: str
    weight: str
    bias: str
    groups: int
    strides: tuple[int, int]
    rates: tuple[int, int]
    padding: Padding
    macs: int
    is_head: bool


@dataclass(frozen=True, slots=True)
class Network:
    """A float32 graph from `pixels` to `logits`, weights inside, every node and every bias named.

    `zero` is the grey level that `entry`, the first layer's input, is measured from: `entry` holds pixels minus `zero`,
    whole numbers; both None where the graph does not begin in a way that allows it. `shapes` and `constants` are those
    of the graph's tensors.
    """

    model: onnx.ModelProto
    layers: tuple[Layer, ...]
    entry: str | None
    zero: int | None
    shapes: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, Array]

    def weights(self, layer: Layer) -> tuple[Array, Array]:
        """Float32 weight and bias of a layer."""
        return self.constants[layer.weight], self.constants[layer.bias]


def read_network(bundle: Bundle, variant: Variant) -> Network:
    """A bundle's float variant, made ready for quantization. Raises ExportError where it has no convolution."""
    bundle.model(variant)  # checks the hashes and the names of the files
    return prepare(read_onnx(bundle.path / variant.file))


def prepare(model: onnx.ModelProto) -> Network:
    """Name everything, give every convolution a bias, and fold the normalisation of pixels into the first one.
    Transposed convolutions whose stride is their kernel become 1x1 convolutions and DepthToSpace.

    The first convolution then reads pixels minus `zero`. A convolution that pads does so with `zero` instead of each
    channel's mean: the difference, at the image's border only, is less than half a grey level where the channels' means
    agree, and the largest distance of a mean from their average where not (11 levels with ImageNet's).
    """
    model = copy(model)
    graph = model.graph
    _name_everything(graph)
    facts = learn(model)
    pool_means(graph, facts.constants, facts.shapes)
    tile_upsamplings(graph, facts.constants, activations(graph, facts.constants))
    entry, zero = _fold_pixels(graph, facts.constants)
    model = prune(model)
    facts = learn(model)
    layers = tuple(_layers(model.graph, facts.constants, facts.shapes))
    if not layers:
        raise ExportError(f"{model.graph.name} has no convolution with constant weights: there is nothing to quantize")
    return Network(model, layers, entry, zero, facts.shapes, facts.constants)


def readers(graph: onnx.GraphProto) -> Counter[str]:
    """How often each tensor is read; the graph's outputs count as read."""
    found = Counter(name for node in graph.node for name in node.input if name)
    found.update(value.name for value in graph.output)
    return found


def activations(graph: onnx.GraphProto, constants: Mapping[str, Array]) -> dict[str, onnx.NodeProto]:
    """By the tensor they read, the activations with constant bounds that alone read a convolution or an addition."""
    count, kinds = readers(graph), ("Conv", "ConvTranspose", "Add")
    made = {node.output[0] for node in graph.node if node.op_type in kinds and count[node.output[0]] == 1}
    return {
        node.input[0]: node
        for node in graph.node
        if node.op_type in ACTIVATIONS and node.input[0] in made and {*node.input[1:]} <= {"", *constants}
    }


def _name_everything(graph: onnx.GraphProto) -> None:
    """A name for every node, a bias for every convolution, and weights that no two layers share by name."""
    taken = {node.name for node in graph.node}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    used = {name for node in graph.node if node.op_type != "Conv" for name in node.input}
    for node in graph.node:
        if not node.name:
            node.name = unused(f"{node.op_type}.{node.output[0]}", taken)
            taken.add(node.name)
        if node.op_type != "Conv" or node.input[1] not in tensors:
            continue
        inputs = list(node.input) + [""] * (3 - len(node.input))
        if inputs[1] in used:  # shared weights are quantized for each reader's own input
            inputs[1] = store(graph, tensors, inputs[1], numpy_helper.to_array(tensors[inputs[1]]))
        if not inputs[2]:
            zeros = np.zeros(tensors[inputs[1]].dims[0], np.float32)
            inputs[2] = store(graph, tensors, f"{inputs[1]}_bias", zeros)
        elif inputs[2] in used and inputs[2] in tensors:
            inputs[2] = store(graph, tensors, f"{inputs[1]}_bias", numpy_helper.to_array(tensors[inputs[2]]))
        node.input[:] = inputs
        used |= set(inputs[1:])


def _fold_pixels(graph: onnx.GraphProto, constants: Mapping[str, Array]) -> tuple[str | None, int | None]:
    """Replace normalisation by a subtraction of one grey level, in place; returns the tensor made and the level."""
    count, chain, tensor = readers(graph), [], graph.input[0].name
    for kind in _PIXELS:
        node = next((node for node in graph.node if tensor in node.input), None)
        if node is not None and node.op_type == kind and count[tensor] == 1:
            chain.append(node)
            tensor = node.output[0]
    kinds = [node.op_type for node in chain]
    conv = next((node for node in graph.node if tensor in node.input), None)
    fits = kinds[:2] == ["Cast", "Transpose"] and conv is not None and conv.op_type == "Conv" and count[tensor] == 1
    if conv is None or not fits or attributes(conv).get("group", 1) != 1:
        return None, None
    tensors = {initializer.name: initializer for initializer in graph.initializer}
    if attributes(chain[1]).get("perm") != [0, 3, 1, 2] or not all(name in tensors for name in conv.input[1:3]):
        return None, None
    per_channel = {"Mul": np.ones(3), "Add": np.zeros(3)}
    for node in chain[2:]:
        constant = next((constants[name] for name in node.input if name in constants), None)
        if constant is None or constant.size not in (1, 3) or (constant.size == 3 and constant.shape[-3:] != (3, 1, 1)):
            return None, None
        per_channel[node.op_type] = np.broadcast_to(constant.astype(np.float64).reshape(-1), 3)
    scale, shift = per_channel["Mul"], per_channel["Add"]
    # 127.5 becomes 128, also where float32 made 127.49999 of it: signed pixels are then -128 to 127 exactly
    zero = int(np.clip(np.floor(np.mean(-shift / scale) + 0.501), 0, 255))
    weight, bias = (constants[name].astype(np.float64) for name in conv.input[1:3])
    scaled = weight * scale.reshape(1, 3, 1, 1)
    moved = bias + np.einsum("oikl,i->o", weight, shift + zero * scale)
    for name, value in zip(conv.input[1:3], (scaled, moved), strict=True):
        tensors[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    entry = unused("pixels.centred", [*tensors, *count])
    level = store(graph, tensors, f"{entry}.zero", np.array(zero, np.float32))
    subtract = helper.make_node("Sub", [chain[1].output[0], level], [entry], name=entry)
    conv.input[0] = entry
    gone = {node.name for node in chain[2:]}
    refill(graph.node, [*chain[:2], subtract, *(n for n in graph.node if n.name not in gone and n not in chain[:2])])
    return entry, zero


def _layers(
    graph: onnx.GraphProto, constants: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]
) -> list[Layer]:
    following = activations(graph, constants)
    leading: set[str] = set()  # to convolutions
    for node in reversed(graph.node):
        if node.op_type == "Conv" or leading & set(node.output):
            leading |= set(node.input)
    names: Counter[str] = Counter()
    found = []
    for node in graph.node:
        if node.op_type != "Conv" or len(node.input) < 3 or not all(name in constants for name in node.input[1:]):
            continue
        made, weight, settings = node.output[0], constants[node.input[1]], attributes(node)
        if weight.ndim != 4 or len(shapes.get(made, ())) != 4:
            continue
        output = following[made].output[0] if made in following else made
        name = _plain(node.input[1])
        names[name] += 1
        positions = int(np.prod(shapes[made][2:]))
        found.append(
            Layer(
                name=name if names[name] == 1 else f"{name}#{names[name]}",
                node=node.name,
                source=node.input[0],
                made=made,
                output=output,
                weight=node.input[1],
                bias=node.input[2],
                groups=settings.get("group", 1),
                strides=_pair(settings.get("strides")),
                rates=_pair(settings.get("dilations")),
                padding=_padding(settings, shapes[node.input[0]][2:], weight.shape[2:]),
                macs=positions * weight.size,
                is_head=made not in leading,
            )
        )
    return found


def _pair(values: Sequence[int] | None) -> tuple[int, int]:
    return (values[0], values[1]) if values else (1, 1)


def _padding(settings: Mapping[str, Any], size: Sequence[int], kernel: Sequence[int]) -> Padding:
    mode = settings.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):  # the output is ceil(size / stride), the odd one of the padding goes there
        strides, rates = _pair(settings.get("strides")), _pair(settings.get("dilations"))
        found = []
        for length, stride, span in zip(size, strides, map(effective_kernel, kernel, rates), strict=True):
            total = max(0, (-(-length // stride) - 1) * stride + span - length)
            smaller = total // 2
            found.append((smaller, total - smaller) if mode == "SAME_UPPER" else (total - smaller, smaller))
        return found[0], found[1]
    top, left, bottom, right = settings.get("pads") or (0, 0, 0, 0)
    return (top, bottom), (left, right)


def _plain(weight: str) -> str:
    """backbone.features.1.conv.0.0 of network.backbone.features.1.conv.0.0.weight: what its author calls the layer."""
    return weight.removeprefix("network.").removesuffix(".folded.weight").removesuffix(".weight")
