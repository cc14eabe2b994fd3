"""What OpenVINO's CPU plugin really executes, layer by layer, from its runtime model and performance counters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import openvino

from edgeseg.backends.base import ExecutedLayer
from edgeseg.types import Model

_RUNS = 10
_TYPES = {"u8": "int8", "i8": "int8", "f32": "fp32", "f16": "fp16", "bf16": "bf16"}
_CONVOLUTIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData")


def executed_layers(core: openvino.Core, model: Model, config: dict[str, object]) -> tuple[ExecutedLayer, ...]:
    """Compile once more with counters and run noise; times are means over the runs after the first.

    A layer's precision is the widest type among its data and weights, whatever it writes. Multiply-accumulates are
    counted in the graph as read, whose names the executed layers carry.
    """
    graph = core.read_model(model.path)
    shape = (model.batch or 1, *model.input_size, 3)
    graph.reshape(shape)
    compiled = core.compile_model(graph, "CPU", {**config, "PERF_COUNT": True})
    request = compiled.create_infer_request()
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    request.infer([image])
    first = _counters(request)
    for _ in range(1, _RUNS):
        request.infer([image])
    # the counters are means over all runs, and the first one's is another matter
    times = {name: max(0.0, (_RUNS * mean - first[name]) / (_RUNS - 1)) for name, mean in _counters(request).items()}
    nodes = [(node, _info(node)) for node in compiled.get_runtime_model().get_ordered_ops()]
    nodes = [(node, info) for node, info in nodes if node.get_friendly_name() in times]
    nodes.sort(key=lambda item: int(item[1]["execOrder"]))
    macs = _assign(graph, [info["originalLayersNames"].split(",") for _, info in nodes])
    return tuple(
        ExecutedLayer(
            name=node.get_friendly_name().removesuffix("/WithoutBiases"),  # the ONNX reader's own addition
            kind=info["layerType"],
            precision=_TYPES.get(info["runtimePrecision"], info["runtimePrecision"]),
            writes=_TYPES.get(written := info["outputPrecisions"].split(",")[0], written),
            macs=count,
            elapsed_ns=round(1000 * times[node.get_friendly_name()]),
        )
        for (node, info), count in zip(nodes, macs, strict=True)
    )


def _counters(request: openvino.InferRequest) -> dict[str, float]:
    """Microseconds per executed node, the mean over the runs so far."""
    executed = openvino.ProfilingInfo.Status.EXECUTED
    return {
        info.node_name: info.real_time.total_seconds() * 1e6
        for info in request.profiling_info
        if info.status == executed
    }


def _info(node: openvino.Node) -> dict[str, str]:
    """What a node of the runtime model says of itself, all of it text."""
    pairs: list[tuple[str, Any]] = list(node.get_rt_info().items())
    return {key: str(getattr(value, "value", value)) for key, value in pairs}


def _assign(graph: openvino.Model, originals: list[list[str]]) -> list[int]:
    """Multiply-accumulates per executed node, `originals` naming the nodes of the graph that went into each.

    A convolution that none of them names was fused into the one before it (a depthwise one on CPUs without AVX-512).
    """
    hosts = {name: at for at, names in enumerate(originals) for name in names}
    macs = [0] * len(originals)
    for node in graph.get_ordered_ops():
        if (kind := node.get_type_name()) in _CONVOLUTIONS or kind == "MatMul":
            host: openvino.Node = node
            while host.get_friendly_name() not in hosts:
                if not host.inputs():
                    raise RuntimeError(f"its runtime model does not say where {node.get_friendly_name()} runs")
                host = host.input_value(0).get_node()
            macs[hosts[host.get_friendly_name()]] += _macs(node, kind)
    return macs


def _macs(node: openvino.Node, kind: str) -> int:
    shapes: list[tuple[int, ...]] = [tuple(port.get_shape()) for port in (*node.inputs()[:2], node.output(0))]
    taken, weights, given = shapes
    if kind == "MatMul":
        return math.prod(given) * taken[-2 if node.get_attributes()["transpose_a"] else -1]
    mapped = taken if kind.endswith("BackpropData") else given
    return mapped[0] * math.prod(mapped[2:]) * math.prod(weights)
