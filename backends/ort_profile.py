"""What ONNX Runtime really executes, layer by layer, from its own profile."""

from __future__ import annotations

import json
import math
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime

from edgeseg.backends.base import ExecutedLayer
from edgeseg.backends.ort import PROVIDER, session_options
from edgeseg.types import Model

_RUNS = 5
_WEIGHTS_AT = {
    **dict.fromkeys(("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "ConvInteger"), 1),
    **dict.fromkeys(("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulInteger"), 1),
    **dict.fromkeys(("QLinearConv", "QGemm", "QLinearMatMul"), 3),  # after the input's scale and zero point
}
"""What multiplies, and which of its inputs are the weights."""
_TYPES = {"uint8": "int8", "float": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_BLOCK = 16
"""Channels are padded to multiples of this or less where ONNX Runtime packs float maps into blocks."""
_SUFFIX = re.compile(r"(_token_\d+|_nchwc)+$")
"""What the layout passes append to a node's name."""

_Tensor = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Node:
    """One node in one run: tensors are (type, shape), absent inputs and packed weights left out."""

    name: str
    op: str
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Tensor, ...]
    elapsed_us: int

    @property
    def weights(self) -> tuple[int, ...] | None:
        """The weights' shape, None where they were packed."""
        at = _WEIGHTS_AT[self.op]
        shape = self.inputs[at][1] if at < len(self.inputs) else ()
        return shape if len(shape) > 1 else None

    @property
    def macs(self) -> int:
        """Multiply-accumulates, from shapes in the order of the graph (NCHW)."""
        (_, taken), (_, given) = self.inputs[0], self.outputs[0]
        weights = self.weights or ()
        if "MatMul" in self.op or "Gemm" in self.op:
            return math.prod(given) * taken[-1]
        mapped = taken if self.op == "ConvTranspose" else given
        return mapped[0] * math.prod(mapped[2:]) * math.prod(weights)


def executed_layers(model: Model, threads: int) -> tuple[ExecutedLayer, ...]:
    """Profile the network as it runs, on one image of noise; times are medians over the runs after the first.

    The profile lacks packed weights, and where maps are packed into blocks its channels are padded. So the shapes that
    count come from a second profile without layout passes and packing, in which every multiplying node has its twin.
    """
    runs = _profile(model, session_options(threads), _RUNS)[1:]
    plain = session_options(threads)
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    plain.add_session_config_entry("session.disable_prepacking", "1")
    twins = _twins(runs[0], _profile(model, plain, 1)[0])
    times = [int(1000 * median(node.elapsed_us for node in same)) for same in zip(*runs, strict=True)]
    layers = []
    for node, twin, elapsed_ns in zip(runs[0], twins, times, strict=True):
        multiplies = twin is not None
        # elsewhere scales come before the maps
        kind = node.inputs[0][0] if multiplies else max(node.inputs, key=lambda item: math.prod(item[1]))[0]
        layers.append(
            ExecutedLayer(
                name=_SUFFIX.sub("", node.name),
                kind=node.op,
                precision=_TYPES.get(kind, kind),
                writes=_TYPES.get(node.outputs[0][0], node.outputs[0][0]),
                macs=twin.macs if twin else 0,
                elapsed_ns=elapsed_ns,
            )
        )
    return tuple(layers)


def _profile(model: Model, settings: onnxruntime.SessionOptions, runs: int) -> list[list[_Node]]:
    """The nodes of each run, in the order of execution."""
    with tempfile.TemporaryDirectory() as folder:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(model.path), settings, providers=[PROVIDER])
        image = np.random.default_rng(0).integers(0, 256, (model.batch or 1, *model.input_size, 3), np.uint8)
        for _ in range(runs):
            session.run(None, {session.get_inputs()[0].name: image})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [_node(event) for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    each = len(nodes) // runs
    return [nodes[run * each : (run + 1) * each] for run in range(runs)]


def _node(event: dict[str, Any]) -> _Node:
    def tensors(key: str) -> tuple[_Tensor, ...]:
        return tuple((kind, tuple(shape)) for item in event["args"][key] for kind, shape in item.items())

    return _Node(
        name=event["name"].removesuffix("_kernel_time"),
        op=event["args"]["op_name"],
        inputs=tensors("input_type_shape"),
        outputs=tensors("output_type_shape"),
        elapsed_us=event["dur"],
    )


def _twins(executed: list[_Node], plain: list[_Node]) -> list[_Node | None]:
    """For every executed node that multiplies its twin among the plain ones, None for the others.

    Layout passes keep a node's name and append to it, or name it after its output; then the first that fits is taken.
    Each twin is given once, so the sum is right even where two that fit alike are confused.
    """
    left = [node for node in plain if node.op in _WEIGHTS_AT]
    found: dict[int, _Node] = {}
    names = {node.name: node for node in left}
    wanted = [at for at, node in enumerate(executed) if node.op in _WEIGHTS_AT]
    for at in wanted:
        if twin := names.pop(_SUFFIX.sub("", executed[at].name), None):
            found[at] = twin
            left.remove(twin)
    for at in wanted:
        if at not in found:
            fitting = [twin for twin in left if _padding(executed[at], twin) is not None]
            if not fitting:
                raise ValueError(f"its profile does not tell the shapes of {executed[at].name}")
            found[at] = min(fitting, key=lambda twin: _padding(executed[at], twin) or 0)
            left.remove(found[at])
    return [found.get(at) for at in range(len(executed))]


def _padding(node: _Node, twin: _Node) -> int | None:
    """By how many positions in all `node`'s shapes are larger; None where it cannot be `twin` in another layout."""
    # sorted: the channels may have moved to the end
    pairs = list(zip(sorted(node.outputs[0][1]), sorted(twin.outputs[0][1]), strict=False))
    pairs += zip(node.weights or (), twin.weights or (), strict=False)
    more = [padded - size for padded, size in pairs]
    return sum(more) if all(0 <= extra < _BLOCK for extra in more) else None
