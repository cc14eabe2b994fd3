"""The arithmetic of atrous convolution: kernels, map sizes, valid weights, receptive fields.

Sources: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016 (sizes); Chen et al.,
"Rethinking Atrous Convolution for Semantic Image Segmentation", 2017 (rates, valid weights); Araujo, Norris and Sim,
"Computing Receptive Fields of Convolutional Neural Networks", Distill 2019 (fields). Pairs are (height, width);
padding is (before, after) of one axis, `Padding` one such pair per axis.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np

from edgeseg.errors import InputError
from edgeseg.types import Size

Padding = tuple[tuple[int, int], tuple[int, int]]
NO_PADDING: Padding = ((0, 0), (0, 0))
MIN_VALID = 0.5
"""Below this mean share of valid weights a rate does not fit its map. The paper names no number; half is ours."""
BASE_STRIDE = 16
"""The output stride that the paper's rates 6, 12, 18 belong to (section 3.3)."""


def effective_kernel(kernel: int, dilation: int) -> int:
    """k + (k - 1)(r - 1): the positions that k weights at rate r span (Dumoulin and Visin, section 5.1)."""
    _positive(kernel=kernel, dilation=dilation)
    return kernel + (kernel - 1) * (dilation - 1)


def output_size(size: int, kernel: int, stride: int = 1, padding: tuple[int, int] = (0, 0), dilation: int = 1) -> int:
    """floor((h + 2p - k_eff) / s) + 1, with 2p written as before + after (Dumoulin and Visin, relationship 15).

    Raises InputError where the kernel does not fit into the padded map.
    """
    _positive(size=size, stride=stride)
    if min(padding) < 0:
        raise InputError(f"padding is {padding}: must be 0 or more")
    span, room = effective_kernel(kernel, dilation), size + sum(padding)
    if span > room:
        raise InputError(f"a kernel of {kernel} at rate {dilation} spans {span} positions, the padded map has {room}")
    return (room - span) // stride + 1


def transposed_size(
    size: int, kernel: int, stride: int = 1, padding: tuple[int, int] = (0, 0), dilation: int = 1, extra: int = 0
) -> int:
    """s (h - 1) + k_eff - 2p + extra: a transposed convolution's output (Dumoulin and Visin, relationship 14).

    `extra` chooses among the sizes that the convolution would bring to `size` (torch's output_padding).
    """
    _positive(size=size, stride=stride)
    return stride * (size - 1) + effective_kernel(kernel, dilation) - sum(padding) + extra


def same_padding(kernel: Size, dilation: Size) -> Padding:
    """The padding that keeps a map's size at stride 1: k_eff - 1 in all, the odd one after."""
    total = [effective_kernel(k, r) - 1 for k, r in zip(kernel, dilation, strict=True)]
    return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)


@dataclass(frozen=True, slots=True)
class ValidWeights:
    """Which weights of a convolution meet the map instead of its padding.

    `used` of `weights` ever do; `mean` is the average share per output position; `shares` is the paper's Figure 4:
    (number of valid weights, share of output positions with that many), ascending.
    """

    weights: int
    used: int
    mean: float
    shares: tuple[tuple[int, float], ...]

    def share(self, count: int) -> float:
        """The share of output positions at which exactly `count` weights are valid."""
        return dict(self.shares).get(count, 0.0)

    @property
    def fits(self) -> bool:
        """Every weight is used and at least half of them are valid on average."""
        return self.used == self.weights and self.mean >= MIN_VALID


def valid_weights(
    size: Size,
    kernel: Size = (3, 3),
    stride: Size = (1, 1),
    padding: Padding | None = None,
    dilation: Size = (1, 1),
) -> ValidWeights:
    """Count valid weights at a map size; `padding=None` keeps the size (Chen et al. 2017, section 3.3 and Figure 4).

    A weight at (i, j) is valid at an output position if it meets the map and not the padding. That is decided for rows
    and columns apart, so the work is O(h + w). Raises InputError where the kernel does not fit the padded map.
    """
    padding = same_padding(kernel, dilation) if padding is None else padding
    rows, cols = (_axis(*axis) for axis in zip(size, kernel, stride, padding, dilation, strict=True))
    shares: Counter[int] = Counter()
    for in_rows, row_positions in rows.positions.items():
        for in_cols, col_positions in cols.positions.items():
            shares[in_rows * in_cols] += row_positions * col_positions
    total = rows.outputs * cols.outputs
    weights = kernel[0] * kernel[1]
    valid = sum(count * positions for count, positions in shares.items())
    return ValidWeights(
        weights=weights,
        used=rows.used * cols.used,
        mean=valid / (weights * total),
        shares=tuple((count, shares[count] / total) for count in sorted(shares)),
    )


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis: how many taps are ever valid, and at how many output positions how many taps are."""

    used: int
    outputs: int
    positions: Counter[int]


def _axis(size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int) -> _Axis:
    outputs = output_size(size, kernel, stride, padding, dilation)
    start = np.arange(outputs, dtype=np.int64) * stride - padding[0]  # where the first tap lies on the map
    # tap i is valid where 0 <= start + i * dilation < size
    first = np.maximum(0, -(start // dilation))
    last = np.minimum(kernel - 1, (size - 1 - start) // dilation)
    counts = np.maximum(0, last - first + 1)
    edges = np.zeros(kernel + 1, np.int64)
    np.add.at(edges, first[counts > 0], 1)
    np.add.at(edges, last[counts > 0] + 1, -1)
    found = zip(*np.unique(counts, return_counts=True), strict=True)
    return _Axis(
        used=int(np.count_nonzero(np.cumsum(edges)[:kernel])),
        outputs=outputs,
        positions=Counter({int(count): int(positions) for count, positions in found}),
    )


def fitting_rates(
    map_size: Size, output_stride: Fraction | int = BASE_STRIDE, base: tuple[int, ...] = (6, 12, 18)
) -> tuple[int, ...]:
    """ASPP rates for a map: `base` belongs to output stride 16 and is scaled (Chen et al. 2017, section 3.3).

    Where the largest of them does not fit a 3x3 kernel (see `ValidWeights.fits`), all shrink in proportion until it
    does. Fewer rates come back where the map has no room for as many different ones, none where not even rate 1 fits.
    """
    wanted = [max(Fraction(1), Fraction(rate * BASE_STRIDE) / Fraction(output_stride)) for rate in sorted(set(base))]
    largest = min(int(wanted[-1]), *map_size)
    while largest and not valid_weights(map_size, dilation=(largest, largest)).fits:
        largest -= 1
    shrunk = (int(rate * largest / wanted[-1] + Fraction(1, 2)) for rate in wanted)
    return tuple(sorted({max(1, rate) for rate in shrunk})) if largest else ()


def fitting_side(kernel: Size, dilation: Size) -> int:
    """The smallest square map's side, in positions, at which every weight is used and half are valid on average."""
    low, high = 0, 1
    while not valid_weights((high, high), kernel, dilation=dilation).fits:
        low, high = high, 2 * high
    while high - low > 1:  # the share grows with the map
        middle = (low + high) // 2
        fits = valid_weights((middle, middle), kernel, dilation=dilation).fits
        low, high = (low, middle) if fits else (middle, high)
    return high


@dataclass(frozen=True, slots=True)
class Layer:
    """One operation of a network, by what it does to the map.

    `conv`, `transposed` and `pool` move a window; `pad` enlarges by `padding`; `resample` changes the size and reaches
    `reach` positions further; `global` sees the whole map; `join` passes maps on, element by element or stacked.
    `inputs` and `output` name tensors; `channels` are (in, out).
    """

    name: str
    kind: Literal["conv", "transposed", "pool", "pad", "resample", "global", "join"]
    op: str
    inputs: tuple[str, ...]
    output: str
    input_size: Size
    output_size: Size
    channels: tuple[int, int] = (0, 0)
    kernel: Size = (1, 1)
    stride: Size = (1, 1)
    dilation: Size = (1, 1)
    padding: Padding = NO_PADDING
    groups: int = 1
    bias: bool = False
    reach: int = 0

    @property
    def is_convolution(self) -> bool:
        return self.kind in ("conv", "transposed")

    @property
    def is_atrous(self) -> bool:
        """A convolution in which some rate really spreads the weights."""
        spread = any(r > 1 and k > 1 for k, r in zip(self.kernel, self.dilation, strict=True))
        return self.is_convolution and spread

    @property
    def effective_kernel(self) -> Size:
        return effective_kernel(self.kernel[0], self.dilation[0]), effective_kernel(self.kernel[1], self.dilation[1])

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image, those that meet padding included; a bias costs none."""
        if not self.is_convolution:
            return 0
        positions = math.prod(self.output_size if self.kind == "conv" else self.input_size)
        return positions * math.prod(self.kernel) * self.channels[0] * self.channels[1] // self.groups

    @property
    def parameters(self) -> int:
        """Weights and biases of a convolution."""
        if not self.is_convolution:
            return 0
        weights = math.prod(self.kernel) * self.channels[0] * self.channels[1] // self.groups
        return weights + self.channels[1] * self.bias

    @property
    def valid(self) -> ValidWeights | None:
        """Valid weights of a convolution; None for a transposed one, whose windows lie on its output."""
        if self.kind != "conv":
            return None
        return valid_weights(self.input_size, self.kernel, self.stride, self.padding, self.dilation)


@dataclass(frozen=True, slots=True)
class Graph:
    """A network's layers in an order in which inputs come before their users, for one image of `input_size`."""

    source: str
    input_size: Size
    input: str
    output: str
    layers: tuple[Layer, ...]


def fold_padding(layers: list[Layer]) -> tuple[Layer, ...]:
    """Count explicit zero padding before a convolution as its own: its weights meet it just the same."""
    pads = {layer.output: layer for layer in layers if layer.kind == "pad"}
    folded = []
    for layer in layers:
        pad = pads.get(layer.inputs[0]) if layer.kind == "conv" and len(layer.inputs) == 1 else None
        if pad is not None:
            own, more = layer.padding, pad.padding
            padding = tuple((own[axis][0] + more[axis][0], own[axis][1] + more[axis][1]) for axis in (0, 1))
            unpadded = replace(layer, inputs=pad.inputs, input_size=pad.input_size, padding=(padding[0], padding[1]))
        folded.append(layer if pad is None else unpadded)
    return tuple(folded)


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise InputError(f"{name} is {value}: must be 1 or more")
