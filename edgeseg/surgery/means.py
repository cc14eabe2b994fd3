"""Means over whole maps, written as every runtime and every opset knows them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import helper

from edgeseg.surgery.facts import Array, attributes, learn, prune


def with_pooled_means(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with `pool_means` done, for export.

    TensorRT 8 does not read a ReduceMean's axes where opset 18 writes them, and takes the mean over everything.
    """
    facts = learn(model)
    pool_means(model.graph, facts.constants, facts.shapes)
    return prune(model)


def pool_means(graph: onnx.GraphProto, constants: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Means over whole maps as GlobalAveragePool, in place: which ONNX Runtime has in int8 and opsets write alike."""
    for node in graph.node:
        settings = attributes(node)
        axes = constants.get(node.input[1]) if len(node.input) > 1 else settings.get("axes")
        if node.op_type != "ReduceMean" or axes is None or len(shapes.get(node.input[0], ())) != 4:
            continue
        if settings.get("keepdims", 1) == 1 and sorted(int(axis) % 4 for axis in axes) == [2, 3]:
            pool = helper.make_node("GlobalAveragePool", node.input[:1], node.output, name=node.name)
            node.CopyFrom(pool)
