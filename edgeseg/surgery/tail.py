"""Where an ONNX graph's logits end and its tail begins: cut the upsampling, softmax and argmax that decode does itself.

decode gives `argmax bilinear(logits)` exactly, so a tail may go only where that stays true. Behind the last bilinear
upsampling argmax, softmax and sigmoid change no pixel. Before it they do (probabilities are interpolated, not logits),
so there the probabilities are what is kept and upsampled. Every other upsampling stays in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto

from edgeseg.errors import ExportError
from edgeseg.surgery.ending import end_at, ended
from edgeseg.surgery.facts import (
    Facts,
    attributes,
    learn,
    opset_of,
    title,
    unknown_shape,
)
from edgeseg.surgery.layout import Dims, Layout, canonical, expanded
from edgeseg.types import Size

Activation = Literal["none", "softmax", "log_softmax", "sigmoid"]

_ACTIVATIONS: dict[str, Activation] = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_CENTRES = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
"""The same for outputs longer than one pixel that the scale reaches exactly, and only those are cut."""
_SCALE_SLACK = 1e-3
"""Pixels by which scale x length may miss the output: float32 scales do, floored ones (other geometry) miss by more."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A graph that ends at its `logits`, float32 (N, C, h, w), and what was known of the tail it had.

    `logits_name` is the tensor of the given graph they are, in its own `layout`. `align_corners` is the removed
    upsampling's, None where none was removed; `activation` was behind the logits and is removed. `values` are
    probabilities where the graph makes them before an upsampling, which then interpolates those. The output held a
    class map where `labels`, else scores. `removed` names the layers, last first.
    """

    model: onnx.ModelProto
    output_name: str
    logits_name: str
    logits_shape: tuple[int, int, int]
    layout: Layout
    align_corners: bool | None
    activation: Activation
    values: Literal["logits", "probabilities"]
    labels: bool
    removed: tuple[str, ...]


@dataclass(slots=True)
class _Walk:
    """Where the walk from the output towards the input stands, and what it has passed."""

    name: str
    dims: Dims
    channel: int | None = None
    align_corners: bool | None = None
    activation: Activation = "none"
    threshold: float | None = None
    argmax: bool = False
    integers: str = ""
    removed: tuple[str, ...] = ()


def cut_tail(
    model: onnx.ModelProto, input_size: Size, *, output: str | None = None, channels: int | None = None
) -> Cut:
    """End the graph at its low-resolution logits; `output` names an output or any tensor (default: the first output).

    `input_size` is the network's: only an upsampling to exactly that size is decode's. `channels` helps to tell
    (N, C, h, w) from (N, h, w, C) where shapes do not. Raises ExportError where the output is neither scores nor a
    class map made from scores in a known way.
    """
    model = end_at(model, output)
    facts, name = learn(model), model.graph.output[0].name
    producers = {made: node for node in model.graph.node for made in node.output}
    if name not in facts.shapes:
        raise ExportError(
            f"output {name!r} has no fixed shape at input {_text(input_size)}: what layer "
            f"{unknown_shape(model, facts)} makes depends on the image, or does not fit its inputs"
        )
    walk = _Walk(name, list(range(len(facts.shapes[name]))))
    while (node := producers.get(walk.name)) is not None and node.output[0] == walk.name:
        if not _step(walk, node, facts, input_size, opset_of(model)):
            break
        walk.removed += (title(node),)
    kept = _kept_activation(walk, producers, name)
    _check_scores(walk, kept, facts, name, producers)
    shape = facts.shapes.get(walk.name, ())
    layout = canonical(walk.dims, shape, facts.shapes[name], walk.channel, input_size, channels)
    if layout is None:
        raise ExportError(
            f"tensor {walk.name!r} has shape {_text(shape)}: scores (N, classes, h, w) are needed; name an output or "
            "an inner tensor that has them"
        )
    _, channel, row, column = layout.order
    logits_shape = (layout.shape[channel], layout.shape[row], layout.shape[column])
    if walk.threshold is not None and logits_shape[0] != 1:
        raise ExportError(
            f"output {name!r} thresholds {logits_shape[0]} channels one by one: decode gives each pixel one class; "
            f"name the scores, {walk.name!r}, as the output to have the largest win"
        )
    return Cut(
        model=ended(model, walk.name, facts, layout, logits_shape),
        output_name=name,
        logits_name=walk.name,
        logits_shape=logits_shape,
        layout=layout,
        align_corners=walk.align_corners,
        activation=walk.activation,
        # log-probabilities are logits, less the same for every class
        values="probabilities" if kept in ("softmax", "sigmoid") else "logits",
        labels=walk.argmax or walk.threshold is not None,
        removed=walk.removed,
    )


def _step(walk: _Walk, node: onnx.NodeProto, facts: Facts, input_size: Size, opset: int) -> bool:
    """Move the walk behind `node` to its input where the node may be cut; else leave it and say False."""
    kind, settings, source = node.op_type, attributes(node), node.input[0] if node.input else ""
    shape, made = facts.shapes.get(source), facts.shapes.get(node.output[0])
    if node.domain not in ("", "ai.onnx") or shape is None or made is None:
        return False
    plain = walk.activation == "none" and walk.align_corners is None  # nothing but layout and casts was passed
    unread = plain and not walk.argmax and walk.threshold is None
    if kind == "Identity" or (kind == "Dropout" and walk.name == node.output[0]):
        pass
    elif kind == "Cast" and (settings["to"] in _FLOATS or unread):
        if settings["to"] not in _FLOATS:
            walk.integers = walk.integers or title(node)
    elif (dims := expanded(node, settings, walk.dims, shape, made, facts.constants)) is not None:
        walk.dims = dims
    elif kind == "ArgMax" and unread:
        axis = settings.get("axis", 0) % len(shape)
        walk.channel = min([0, *walk.dims]) - 1
        walk.dims = [*walk.dims[:axis], walk.channel, *walk.dims[axis + settings.get("keepdims", 1) :]]
        walk.argmax = True
    elif kind in ("Greater", "GreaterOrEqual", "Round") and unread and shape == made:
        limit = facts.constants.get(node.input[1]) if kind != "Round" else np.array(0.5)
        if limit is None or limit.size != 1:
            return False
        walk.threshold = float(limit.reshape(()))
    elif kind in _ACTIVATIONS and plain:
        if kind != "Sigmoid":
            axis = settings.get("axis", 1 if opset < 13 else -1) % len(shape)
            if opset >= 13 or axis == len(shape) - 1:
                if walk.channel not in (None, walk.dims[axis]):
                    return False
                walk.channel = walk.dims[axis]
            elif axis > 1:  # before opset 13 all axes from 1 on are normalised as one: no pixel's order changes either
                return False
        walk.activation = _ACTIVATIONS[kind]
    elif kind == "Resize" and walk.align_corners is None:
        if shape != made:
            walk.align_corners = _bilinear(node, settings, facts, walk, input_size, opset)
            if walk.align_corners is None:
                return False
        elif settings.get("coordinate_transformation_mode") == "tf_crop_and_resize":
            return False
    else:
        return False
    walk.name = source
    return True


def _bilinear(
    node: onnx.NodeProto, settings: Mapping[str, Any], facts: Facts, walk: _Walk, input_size: Size, opset: int
) -> bool | None:
    """`align_corners` of an upsampling that decode does in the very same way, else None."""
    shape, made = facts.shapes[node.input[0]], facts.shapes[node.output[0]]
    moved = {axis for axis in range(len(shape)) if shape[axis] != made[axis]}
    pairs = [pair for pair in ((2, 3), (1, 2), (0, 1)) if moved <= set(pair)]
    spatial = next((pair for pair in pairs if walk.channel not in [walk.dims[axis] for axis in pair]), None)
    # opset 10 and before, like Upsample, knew asymmetric coordinates only, which decode does not
    if opset < 11 or spatial is None or settings.get("mode", "nearest") != "linear":
        return None
    if tuple(made[axis] for axis in spatial) != tuple(input_size) or any(shape[i] > made[i] for i in spatial):
        return None
    plain = (("antialias", 0), ("exclude_outside", 0), ("keep_aspect_ratio_policy", "stretch"))
    if any(settings.get(name, value) != value for name, value in plain):
        return None
    if len(node.input) > 2 and node.input[2]:
        scales = facts.constants.get(node.input[2])
        if scales is None:
            return None
        axes = settings.get("axes") or range(len(shape))
        if scales.size and any(
            abs(scale * shape[i] - made[i]) > _SCALE_SLACK for i, scale in zip(axes, scales, strict=False)
        ):
            return None
    mode = settings.get("coordinate_transformation_mode", "half_pixel")
    if mode == "align_corners":
        return True
    return False if mode in _CENTRES and min(input_size) > 1 else None


def _kept_activation(walk: _Walk, producers: dict[str, onnx.NodeProto], output: str) -> Activation:
    """The activation whose probabilities reach the logits through upsamplings and layout alone, if any."""
    name = walk.name
    passing = ("Identity", "Cast", "Dropout", "Transpose", "Squeeze", "Unsqueeze", "Reshape", "Resize", "Upsample")
    found = walk.argmax or walk.threshold is not None
    while (node := producers.get(name)) is not None:
        if node.op_type in ("ArgMax", "Greater", "GreaterOrEqual") and not found:
            raise ExportError(
                f"output {output!r} is a class map made by {title(node)} before the end: name the scores it reads, "
                f"{node.input[0]!r}, as the output"
            )
        if node.op_type in ("ReduceMax", "TopK") and not found:
            raise ExportError(
                f"output {output!r} holds only the largest scores, made by {title(node)}: name another output, or the "
                f"scores it reads, {node.input[0]!r}"
            )
        if node.op_type in _ACTIVATIONS or node.op_type == "HardSigmoid":
            return "sigmoid" if node.op_type == "HardSigmoid" else _ACTIVATIONS[node.op_type]
        if node.op_type not in passing:
            break
        name = node.input[0]
    return "none"


def _check_scores(
    walk: _Walk, kept: Activation, facts: Facts, output: str, producers: dict[str, onnx.NodeProto]
) -> None:
    made_by = producers.get(walk.name)
    maker = f"made by {title(made_by)}" if made_by is not None else "the input itself"
    if walk.threshold is not None:
        probability = "sigmoid" in (walk.activation, kept)
        if walk.threshold != (0.5 if probability else 0.0):
            what = "probability" if probability else "score"
            raise ExportError(
                f"output {output!r} compares a {what} with {walk.threshold:g}: only probability 0.5 and score 0 are "
                f"decode's threshold; name the scores, {walk.name!r}, as the output"
            )
    elif not walk.argmax and (walk.integers or facts.types.get(walk.name, 0) not in _FLOATS):
        what = f"whole numbers by {walk.integers}" if walk.integers else "no floating-point numbers"
        raise ExportError(
            f"output {output!r} is {what}, and {walk.name!r} before it is {maker}: no scores can be found; name the "
            "tensor that holds them"
        )
    if made_by is None:
        raise ExportError(f"output {output!r} is only the input transformed: there is no network in this file")


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "()"
