"""One pass over calibration images: what flows through the float graph, kept as samples and moments of bounded size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeseg.calibration.network import Layer, Network
from edgeseg.geometry import output_size
from edgeseg.surgery.facts import Array
from edgeseg.surgery.onnx_file import Runner
from edgeseg.types import Image

Float64 = npt.NDArray[np.float64]

_SAMPLES_PER_TENSOR = 1 << 18
_POSITIONS_PER_LAYER = 12288
"""Output positions whose patches make a layer's moments: four for each weight of the largest kernels there are."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One tensor's values over all images: exact extremes, and float32 `samples` drawn evenly from every image."""

    low: float
    high: float
    samples: npt.NDArray[np.float32]


class Moments:
    """What a layer's weights meet: patches x of its input at drawn positions, per group of channels.

    `second` is the mean of x x^T, float64 (groups, K, K), `mean` that of x, (groups, K), where K = I / groups * kernel
    in the weights' own order. Padding counts as the zeros that the layer sees.
    """

    def __init__(self, layer: Layer, weight: Array) -> None:
        self._layer, self._kernel = layer, weight.shape[2:]
        depth = int(np.prod(weight.shape[1:]))
        self._second = np.zeros((layer.groups, depth, depth))
        self._sum = np.zeros((layer.groups, depth))
        self.count = 0

    @property
    def second(self) -> Float64:
        return self._second / max(1, self.count)

    @property
    def mean(self) -> Float64:
        return self._sum / max(1, self.count)

    def add(self, x: Array, positions: int, rng: np.random.Generator) -> None:
        """Draw patches from one input, float32 (1, I, h, w)."""
        layer, size = self._layer, x.shape[2:]
        rows, columns = (
            output_size(size[axis], self._kernel[axis], layer.strides[axis], layer.padding[axis], layer.rates[axis])
            for axis in (0, 1)
        )
        drawn = rng.integers(0, rows * columns, min(positions, rows * columns))
        top, left = (drawn // columns) * layer.strides[0], (drawn % columns) * layer.strides[1]
        patches = np.zeros((x.shape[1], *self._kernel, len(drawn)), np.float32)
        for i in range(self._kernel[0]):
            for j in range(self._kernel[1]):
                row = top + i * layer.rates[0] - layer.padding[0][0]
                column = left + j * layer.rates[1] - layer.padding[1][0]
                inside = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
                patches[:, i, j, inside] = x[0][:, row[inside], column[inside]]
        grouped = patches.reshape(layer.groups, -1, len(drawn))
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
            low[name], high[name] = min(low[name], float(value.min())), max(high[name], float(value.max()))
            flat = value.reshape(-1)
            drawn = flat if flat.size <= per_image else flat[rng.integers(0, flat.size, per_image)]
            samples[name].append(drawn.copy())
        for layer in network.layers:
            moments[layer.name].add(values[layer.source], positions, rng)
        ran += 1
    seen = {name: Seen(low[name], high[name], np.concatenate(samples[name])) for name in names}
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
