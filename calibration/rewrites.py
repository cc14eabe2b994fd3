"""What no runtime has in int8, written as operators that they have; graphs are changed in place."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeseg.surgery.facts import Array, attributes, refill, unused


def tile_upsamplings(
    graph: onnx.GraphProto, constants: Mapping[str, Array], following: Mapping[str, onnx.NodeProto]
) -> None:
    """Transposed convolutions whose stride is their kernel as 1x1 convolutions and DepthToSpace: each pixel becomes a
    tile. `following` are activations by the tensor that they alone read: one goes in between, where the convolution
    absorbs it.

    DepthToSpace keeps its default order, DCR, a tile's pixels one after the other: OpenVINO moves that faster than CRD.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    names = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
    nodes, moved = list[onnx.NodeProto](), set[str]()
    for node in graph.node:
        side = _tile_side(node, constants)
        if side is None:
            nodes += [node] if node.name not in moved else []
            continue
        weight, made = constants[node.input[1]], node.output[0]
        bias = constants[node.input[2]] if any(node.input[2:]) else np.zeros(weight.shape[1], np.float32)
        filters = weight.transpose(2, 3, 1, 0).reshape(-1, len(weight), 1, 1)
        name = store(graph, tensors, f"{node.input[1].removesuffix('.weight')}.folded.weight", filters)
        inputs = [node.input[0], name, store(graph, tensors, f"{name}_bias", np.tile(bias, side * side))]
        flat = unused(f"{made}.flat", names)
        nodes.append(helper.make_node("Conv", inputs, [flat], name=node.name))
        if behind := following.get(made):
            made, clamp = behind.output[0], onnx.NodeProto()
            clamp.CopyFrom(behind)
            clamp.input[0], clamp.output[0] = flat, unused(f"{made}.flat", names)
            nodes.append(clamp)
            flat = clamp.output[0]
            moved.add(behind.name)
        tiles = unused(f"{node.name}.tiles", names)
        nodes.append(helper.make_node("DepthToSpace", [flat], [made], name=tiles, blocksize=side))
    refill(graph.node, nodes)


def store(graph: onnx.GraphProto, tensors: dict[str, onnx.TensorProto], name: str, value: Array) -> str:
    """Add an initialiser, `tensors` being those that there are; returns the name it got."""
    name = unused(name, tensors)
    tensors[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
    graph.initializer.append(tensors[name])
    return name


def _tile_side(node: onnx.NodeProto, constants: Mapping[str, Array]) -> int | None:
    """What a transposed convolution makes of each pixel, if it is a square tile that no other pixel reaches."""
    if node.op_type != "ConvTranspose" or not all(name in constants for name in node.input[1:] if name):
        return None
    kernel, settings = constants[node.input[1]].shape[2:], attributes(node)
    plain = {"group": 1, "dilations": [1, 1], "pads": [0] * 4, "output_padding": [0, 0], "auto_pad": "NOTSET"}
    fits = all(settings.get(name, value) == value for name, value in plain.items()) and "output_shape" not in settings
    return kernel[0] if fits and len(kernel) == 2 and [*kernel] == settings.get("strides") == [kernel[0]] * 2 else None
