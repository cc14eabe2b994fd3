"""One pass over calibration images: what flows through the float graph, kept as samples and moments of bounded size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeseg.calibration.network import Layer, Network
from edgeseg.errors import ExportError
from edgeseg.geometry import output_size
from edgeseg.surgery.facts import Array
from edgeseg.surgery.onnx_file import Runner
from edgeseg.types import Image

Float64 = npt.NDArray[np.float64]

_SAMPLES_PER_TENSOR = 1 << 18
_POSITIONS_PER_LAYER = 4096
"""Output positions whose patches make a layer's moments: as good as three times as many on the embedded network."""


_MOST_DEPTH = 1152
"""Weights of one output whose moments are kept together, 10 MiB: a ResNet's atrous layers have 18432, 2.5 GiB."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One tensor's values over all images: exact extremes, and float32 `samples` drawn evenly from every image."""

    low: float
    high: float
    samples: npt.NDArray[np.float32]


class Moments:
    """What a layer's weights meet: patches x of its input at drawn positions, per block of channels.

    `second` is the mean of x x^T, float64 (blocks, K, K), `mean` that of x, (blocks, K), where K counts the weights
    that one output has in the block, in the weights' own order. A block is a group of the convolution, or where that
    is large an even part of it: what channels of different parts have in common is left out. Padding counts as the
    zeros that the layer sees.
    """

    def __init__(self, layer: Layer, weight: Array) -> None:
        self._kernel = weight.shape[2:]
        channels, taps = weight.shape[1], int(np.prod(weight.shape[2:]))
        parts = next(n for n in range(1, channels + 1) if channels % n == 0 and channels // n * taps <= _MOST_DEPTH)
        blocks, depth = layer.groups * parts, channels // parts * taps
        self._second = np.zeros((blocks, depth, depth))
        self._sum = np.zeros((blocks, depth))
        self.count = 0

    @property
    def second(self) -> Float64:
        return self._second / max(1, self.count)

    @property
    def mean(self) -> Float64:
        return self._sum / max(1, self.count)

    def add(self, layer: Layer, x: Array, positions: int, rng: np.random.Generator) -> None:
        """Draw patches from one input, float32 (1, I, h, w); all there are where that is no more than `positions`.

        `layer` is this one as another output stride may have it: at other strides, rates and padding.
        """
        size = x.shape[2:]
        rows, columns = (
            output_size(size[axis], self._kernel[axis], layer.strides[axis], layer.padding[axis], layer.rates[axis])
            for axis in (0, 1)
        )
        there = rows * columns
        drawn = np.arange(there) if there <= positions else rng.integers(0, there, positions)
        top, left = (drawn // columns) * layer.strides[0], (drawn % columns) * layer.strides[1]
        patches = np.zeros((x.shape[1], *self._kernel, len(drawn)), np.float32)
        for i in range(self._kernel[0]):
            for j in range(self._kernel[1]):
                row = top + i * layer.rates[0] - layer.padding[0][0]
                column = left + j * layer.rates[1] - layer.padding[1][0]
                inside = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
                patches[:, i, j, inside] = x[0][:, row[inside], column[inside]]
        grouped = patches.reshape(*self._sum.shape, len(drawn))
        self._second += np.matmul(grouped, grouped.transpose(0, 2, 1))
        self._sum += grouped.sum(axis=2)
        self.count += len(drawn)


@dataclass(frozen=True, slots=True)
class Observation:
    """All of one pass: by tensor name what was seen, by layer name the moments of its input."""

    images: int
    seen: dict[str, Seen]
    moments: dict[str, Moments]


def observe(
    network: Network,
    images: Iterable[Image],
    count: int,
    *,
    moments: dict[str, Moments] | None = None,
    shared_by: int = 1,
    seed: int = 0,
) -> Observation:
    """Run `count` network-sized frames, uint8 (h, w, 3), through the float graph.

    Memory is that of one frame's tensors plus at most a mebibyte per tensor and the moments. Several networks on the
    same weights (output strides) may add to the same `moments`; `shared_by` is how many do, so that each adds its part.
    """
    rng = np.random.default_rng(seed)
    if moments is None:
        moments = {}
    for layer in network.layers:
        if layer.name not in moments:
            moments[layer.name] = Moments(layer, network.constants[layer.weight])
    names = _activations(network)
    runner = Runner(network.model, also=names)
    low = dict.fromkeys(names, np.inf)
    high = dict.fromkeys(names, -np.inf)
    samples: dict[str, list[Array]] = {name: [] for name in names}
    per_image = max(1, _SAMPLES_PER_TENSOR // max(1, count))
    positions = max(1, _POSITIONS_PER_LAYER // max(1, count * shared_by))
    ran = 0
    for frame in images:
        values = dict(zip(names, runner.run({"pixels": frame[None]}, names), strict=True))
        for name, value in values.items():
            if value.dtype != np.float32:
                continue
            if not np.isfinite(value).all():
                raise ExportError(f"{name!r} is not finite on calibration image {ran + 1}: no range covers it")
            low[name], high[name] = min(low[name], float(value.min())), max(high[name], float(value.max()))
            flat = value.reshape(-1)
            drawn = flat if flat.size <= per_image else flat[rng.integers(0, flat.size, per_image)]
            samples[name].append(drawn.copy())
        for layer in network.layers:
            moments[layer.name].add(layer, values[layer.source], positions, rng)
        ran += 1
    seen = {name: Seen(low[name], high[name], np.concatenate(samples[name])) for name in names if samples[name]}
    return Observation(ran, seen, moments)


def _activations(network: Network) -> list[str]:
    """Every float tensor that depends on the pixels and is more than a shape; what activations absorb is left out."""
    absorbed = {layer.made for layer in network.layers if layer.output != layer.made}
    depends = {network.model.graph.input[0].name}
    found = []
    for node in network.model.graph.node:
        if not depends & set(node.input) or node.op_type in ("Shape", "Size"):
            continue
        depends |= set(node.output)
        if node.op_type != "Cast":
            found += [name for name in node.output if name and name not in absorbed]
    return [name for name in found if len(network.shapes.get(name, ())) == 4]
