"""Which axis of a tensor is what: layouts followed backwards through transpositions and squeezes.

Dims name a tensor's axes by where they end up: 0, 1, ... are axes of the graph's output, negative numbers are axes
of length one that the way to the output squeezes away, or the channels that its argmax consumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from edgeseg.surgery.facts import Array
from edgeseg.types import Size

Dims = list[int]
_ADDED = -1000
"""An axis of length one that the scores lack."""


def expanded(
    node: onnx.NodeProto,
    settings: dict[str, Any],
    dims: Dims,
    shape: tuple[int, ...],
    made: tuple[int, ...],
    constants: Mapping[str, Array],
) -> Dims | None:
    """The dims of the node's input (of `shape`), given its output's (of shape `made`); None: it is no layout change."""
    if node.op_type == "Transpose":
        before = [0] * len(dims)
        for at, axis in enumerate(settings.get("perm", range(len(dims))[::-1])):
            before[axis] = dims[at]
        return before
    if node.op_type == "Unsqueeze":
        added = _axes(node, settings, constants, len(made))
        return None if added is None else [dim for axis, dim in enumerate(dims) if axis not in added]
    gone: list[int] | None = None
    if node.op_type == "Squeeze":
        gone = _axes(node, settings, constants, len(shape))
        if gone is None and len(node.input) == 1:  # all of length one
            gone = [axis for axis, length in enumerate(shape) if length == 1]
    elif node.op_type == "Gather":  # x[:, 0] on an axis of length one
        axis, index = settings.get("axis", 0) % len(shape), constants.get(node.input[1])
        gone = [axis] if index is not None and index.ndim == 0 and shape[axis] == 1 else None
    elif node.op_type == "Reshape" and len(shape) > len(made):
        ones = [axis for axis, length in enumerate(shape) if length == 1][: len(shape) - len(made)]
        gone = ones if tuple(length for axis, length in enumerate(shape) if axis not in ones) == made else None
    if gone is None or len(gone) + len(made) != len(shape):
        return None
    rest, fresh = iter(dims), iter(range(min([0, *dims]) - 1, -100, -1))
    return [next(fresh) if axis in gone else next(rest) for axis in range(len(shape))]


@dataclass(frozen=True, slots=True)
class Layout:
    """How scores become (N, C, h, w): reshape to `shape` (the batch size apart), then `transpose(order)`.

    `channel_axis` is the graph output's axis of the channels, None where they are squeezed away or consumed.
    """

    shape: tuple[int, ...]
    order: tuple[int, int, int, int]
    channel_axis: int | None


def canonical(
    dims: Dims,
    shape: tuple[int, ...],
    output: tuple[int, ...],
    channel: int | None,
    input_size: Size,
    channels: int | None,
) -> Layout | None:
    """The layout of a score tensor of this `shape`; None: it is not scores of an image.

    `output` is the graph output's shape, whose axes are taken to be (.., height, width) apart from the channels.
    """
    if len(shape) == 3 and channel is None and shape[0] == 1:  # (N, h, w) of one channel
        dims, shape, channel = [dims[0], _ADDED, *dims[1:]], (1, 1, *shape[1:]), _ADDED
    elif len(shape) == 3:  # no batch
        dims, shape = [_ADDED, *dims], (1, *shape)
    if len(shape) != 4:
        return None
    kept = sorted(dim for dim in dims if dim >= 0)
    if channel is None:
        squeezed = [dim for dim in dims if dim < 0]
        channel = _guessed_channel(kept, squeezed, [output[dim] for dim in kept], input_size, channels)
    spatial = [dim for dim in kept if dim != channel][-2:]
    batch = [dim for dim in dims if dim != channel and dim not in spatial]
    if len(spatial) != 2 or len(batch) != 1 or channel not in dims:
        return None
    order = (dims.index(batch[0]), dims.index(channel), dims.index(spatial[0]), dims.index(spatial[1]))
    return Layout(shape, order, channel if channel >= 0 else None)


def output_stride(input_size: Size, height: int, width: int) -> int | None:
    """The s with (height, width) = ceil(input_size / s), powers of two before others; None: there is none."""
    tried = [1, 2, 4, 8, 16, 32, 64, *range(3, max(input_size) + 1)]
    return next((s for s in tried if (-(-input_size[0] // s), -(-input_size[1] // s)) == (height, width)), None)


def _guessed_channel(kept: Dims, squeezed: Dims, lengths: list[int], input_size: Size, channels: int | None) -> int:
    """The channels' dim where no softmax or argmax tells: the axis beside two that are a scaled-down image."""

    def fits(first: int) -> bool:
        return output_stride(input_size, lengths[first], lengths[first + 1]) is not None

    if len(kept) == 4:  # (N, C, h, w) or (N, h, w, C)
        if fits(2) != fits(1):
            return kept[1] if fits(2) else kept[3]
        return kept[3] if channels == lengths[3] != lengths[1] else kept[1]
    if len(kept) == 3:  # (N, h, w), (C, h, w) or (h, w, C)
        if lengths[0] == 1 and fits(1):
            return squeezed[0]
        return kept[0] if fits(1) or not fits(0) else kept[2]
    return squeezed[-1] if squeezed else _ADDED


def _axes(
    node: onnx.NodeProto, settings: dict[str, Any], constants: Mapping[str, Array], rank: int
) -> list[int] | None:
    """The axes of Squeeze or Unsqueeze: an attribute before opset 13, an input since."""
    axes = settings.get("axes")
    if axes is None and len(node.input) > 1 and node.input[1] in constants:
        axes = constants[node.input[1]].reshape(-1).tolist()
    return None if axes is None else [axis % rank for axis in axes]
