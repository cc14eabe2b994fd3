"""A bundle's graph as other tools expect one: normalised float images (1, 3, h, w) in, the network unchanged behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeseg.errors import InputError
from edgeseg.surgery.onnx_file import read_onnx
from edgeseg.types import Model, Preprocess, Size

IMAGE = "image"
_SMALL, _ENLARGED = "logits.small", "logits.enlarged"


@dataclass(frozen=True, slots=True)
class UsualGraph:
    """`path` takes `IMAGE`, float32 (1, 3, *size): pixels 0..255, less `mean`, by `std`, per channel of RGB."""

    path: Path
    size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]


def usual_graph(model: Model, preprocess: Preprocess, path: Path, *, enlarged: bool = False) -> UsualGraph:
    """Write a graph of batch 1 without what edgeseg puts between the pixels and the first convolution.

    `enlarged` ends it as torchvision, segmentation_models_pytorch and others export their networks: with the logits
    enlarged to the network's input size, bilinearly in float32, pixel centres at half (align_corners=False).

    An int8 graph, where pixels are quantized as they come, gets a QuantizeLinear there, as other quantizers write it:
    the integers are the same. Raises InputError for a graph whose front is none of edgeseg's.
    """
    proto = read_onnx(model.path)
    graph = proto.graph
    front, tensor = _front(graph)
    kinds = [node.op_type for node in front]
    if kinds == ["Cast", "Transpose", "Mul", "Add"]:
        mean, std = ([255 * value for value in values] for values in (preprocess.mean, preprocess.std))
        before: list[onnx.NodeProto] = []
    elif kinds == ["DequantizeLinear", "Transpose"]:
        names = list(front[0].input[1:])
        scale, zero = (numpy_helper.to_array(one) for name in names for one in graph.initializer if one.name == name)
        mean, std = [float(zero.item())] * 3, [1 / float(scale.item())] * 3
        before = [
            helper.make_node("QuantizeLinear", [IMAGE, *names], ["image.quantized"]),
            helper.make_node("DequantizeLinear", ["image.quantized", *names], [tensor]),
        ]
    else:
        raise InputError(f"{model.path} begins with {', '.join(kinds)}: only graphs that edgeseg wrote can be compared")
    rest = [node for node in graph.node if node not in front]
    if not before:
        for node in rest:
            node.input[:] = [IMAGE if name == tensor else name for name in node.input]
    del graph.node[:], graph.input[:]
    graph.node.extend([*before, *rest])
    graph.input.append(helper.make_tensor_value_info(IMAGE, onnx.TensorProto.FLOAT, (1, 3, *model.input_size)))
    if enlarged:
        _enlarge(graph, (1, model.logits_shape[0], *model.input_size))
    onnx.save(proto, path)
    return UsualGraph(path, model.input_size, tuple(mean), tuple(std))


def _enlarge(graph: onnx.GraphProto, shape: tuple[int, ...]) -> None:
    logits = graph.output[0].name
    for node in graph.node:
        node.output[:] = [_SMALL if name == logits else name for name in node.output]
    graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), _ENLARGED))
    inputs, how = [_SMALL, "", "", _ENLARGED], "half_pixel"
    graph.node.append(helper.make_node("Resize", inputs, [logits], mode="linear", coordinate_transformation_mode=how))
    graph.output[0].CopyFrom(helper.make_tensor_value_info(logits, onnx.TensorProto.FLOAT, shape))


def _front(graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], str]:
    """The nodes before the first convolution, and the tensor that it takes."""
    tensor, found = graph.input[0].name, list[onnx.NodeProto]()
    while True:
        node = next((node for node in graph.node if tensor in node.input), None)
        if node is None or node.op_type == "Conv":
            return found, tensor
        found.append(node)
        tensor = node.output[0]
