"""All that calibration learns from images, for every output stride of a bundle: ranges and integer weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import onnx
from onnx import numpy_helper

from edgeseg.bundle import Bundle
from edgeseg.calibration import ranges as tables
from edgeseg.calibration.datasets import Dataset
from edgeseg.calibration.network import Layer, Network
from edgeseg.calibration.observe import Moments, observe
from edgeseg.calibration.ranges import Ranges
from edgeseg.calibration.rounding import IntWeights, round_weights
from edgeseg.errors import BundleError
from edgeseg.preprocess import Preprocessor
from edgeseg.surgery.onnx_file import read_onnx
from edgeseg.types import Image

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Rounding:
    """How weights become integers: see `edgeseg.calibration.rounding.round_weights`."""

    per_channel: bool = True
    second_order: bool = True
    correct_bias: bool = True


@dataclass(frozen=True, slots=True)
class Learnt:
    """One output stride: its float network, the table of ranges, and integer weights by layer name.

    `float_only` are layers without integer weights, which a table read from a bundle may have left in float.
    """

    network: Network
    ranges: Ranges
    weights: dict[str, IntWeights]
    float_only: frozenset[str] = field(default_factory=frozenset)


def learn(
    bundle: Bundle, networks: dict[int, Network], images: Dataset, rounding: Rounding, *, seed: int, tell: Tell
) -> dict[int, Learnt]:
    """Run the calibration images through the float graph of every output stride, and round the weights.

    Weights are rounded once for all strides that share them, on what they meet at every one of these, so that the
    integer weights too are stored once. Raises ImageError, ExportError, BundleError.
    """
    moments: dict[str, Moments] = {}
    digests = tuple(images.digests())
    found: dict[int, Ranges] = {}
    for stride, network in networks.items():
        frames = _prepared(bundle, images, stride, tell)
        seen = observe(network, frames, len(images), moments=moments, shared_by=len(networks), seed=seed)
        found[stride] = tables.tabulate(f"os{stride}", seen, digests)
    rounded: dict[bytes, IntWeights] = {}
    learnt = {}
    for stride, network in networks.items():
        weights = {}
        for number, layer in enumerate(network.layers):
            tell(f"output stride {stride}: rounding weights ({number + 1} of {len(network.layers)})")
            weight, bias = network.weights(layer)
            key = hashlib.sha256(layer.name.encode() + weight.tobytes() + bias.tobytes()).digest()
            if key not in rounded:
                rounded[key] = round_weights(
                    weight,
                    bias,
                    moments[layer.name],
                    per_channel=rounding.per_channel,
                    second_order=rounding.second_order,
                    correct_bias=rounding.correct_bias,
                )
            weights[layer.name] = rounded[key]
        learnt[stride] = Learnt(network, found[stride], weights)
    return learnt


def strides(bundle: Bundle) -> tuple[int, ...]:
    """The output strides that an earlier calibration covered; raises BundleError where there was none."""
    calibrated = [v for v in bundle.manifest.variants if v.calibration]
    if not calibrated:
        raise BundleError(f"{bundle.path} was never calibrated: give --images DIR")
    readable = [v for v in calibrated if v.encoding == "tensorrt"]
    return tuple(sorted({v.output_stride for v in readable or calibrated}))


def calibrated_on(bundle: Bundle) -> frozenset[str]:
    """The digests of the images that the bundle's tables were made of; raises BundleError."""
    names = {v.calibration.ranges for v in bundle.manifest.variants if v.calibration}
    found = [tables.loads(bundle.file(name).read_bytes(), str(bundle.path / name)) for name in sorted(names)]
    return frozenset(digest for ranges in found for digest in ranges.images)


def read(bundle: Bundle, networks: dict[int, Network]) -> dict[int, Learnt]:
    """The same from a bundle that was calibrated before, without any image: its tables, and the integer weights and
    corrected biases of its tensorrt encoding. Raises BundleError where it has none.
    """
    learnt = {}
    calibrated = {v.output_stride: v for v in bundle.manifest.variants if v.encoding == "tensorrt" and v.calibration}
    for stride, network in networks.items():
        variant = calibrated.get(stride)
        if variant is None or variant.calibration is None:
            raise BundleError(
                f"{bundle.path} has no tensorrt variant of output stride {stride} that says how it was calibrated: "
                "give images to calibrate on"
            )
        name = variant.calibration.ranges
        ranges = tables.loads(bundle.file(name).read_bytes(), str(bundle.path / name))
        bundle.model(variant)  # checks the hashes
        stored = {tensor.name: tensor for tensor in read_onnx(bundle.path / variant.file).graph.initializer}
        weights = {layer.name: found for layer in network.layers if (found := _stored_weights(layer, stored))}
        missing = {layer.name for layer in network.layers if not layer.is_head} - set(weights)
        learnt[stride] = Learnt(network, ranges, weights, frozenset(missing))
    return learnt


def _stored_weights(layer: Layer, stored: dict[str, onnx.TensorProto]) -> IntWeights | None:
    names = (f"{layer.weight}.int8", f"{layer.weight}.dequantized.scale", f"{layer.bias}.corrected")
    if not all(name in stored for name in names):
        return None
    values, scale, bias = (numpy_helper.to_array(stored[name]) for name in names)
    return IntWeights(values, scale, bias)


def _prepared(bundle: Bundle, images: Dataset, output_stride: int, tell: Tell) -> Iterator[Image]:
    """Network-sized frames, one at a time."""
    preprocessor = Preprocessor(bundle.manifest.preprocess)
    for index in range(len(images)):
        tell(f"output stride {output_stride}: observing image {index + 1} of {len(images)}")
        yield preprocessor.prepare(images.frame(index))[0]
