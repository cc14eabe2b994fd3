"""What executed layers add up to: the share of the work done in int8, float islands in it, conversions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgeseg.backends.base import ExecutedLayer

_FLOATS = frozenset({"fp32", "fp16", "bf16"})
_KINDS = frozenset({"Cast", "Convert", "QuantizeLinear", "DequantizeLinear"}) | frozenset(
    {"Reorder", "ReorderInput", "ReorderOutput", "Transpose"}
)
"""What the runtimes call layers that only change the type, or only the layout."""


@dataclass(frozen=True, slots=True)
class Island:
    """Float layers between int8 ones, with the conversions there; `layers` in the order of execution."""

    layers: tuple[ExecutedLayer, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The float layers, without the conversions."""
        return tuple(layer.name for layer in self.layers if _is_float(layer))

    @property
    def elapsed_ns(self) -> int | None:
        """What the island costs, conversions included; None where the runtime does not say."""
        return total_ns(self.layers)


@dataclass(frozen=True, slots=True)
class Execution:
    """The layers that a runtime executes in one run, in order, and what they add up to."""

    layers: tuple[ExecutedLayer, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run."""
        return sum(layer.macs for layer in self.layers)

    @property
    def int8_macs(self) -> int:
        """Those done in int8."""
        return sum(layer.macs for layer in self.layers if layer.precision == "int8")

    @property
    def int8_share(self) -> float:
        """Share of the multiply-accumulates done in int8, 0 to 1; 0 where there are none."""
        return self.int8_macs / self.macs if self.macs else 0.0

    @property
    def elapsed_ns(self) -> int | None:
        """One run by the runtime's own profile; None where it does not say."""
        return total_ns(self.layers)

    @property
    def conversions(self) -> tuple[ExecutedLayer, ...]:
        """What computes nothing: changes between int8 and float or between floats, and changes of layout."""
        return tuple(layer for layer in self.layers if is_conversion(layer))

    @property
    def islands(self) -> tuple[Island, ...]:
        """Runs of float layers with int8 ones before and after them.

        Runtimes tell the order and not every edge, so a branch that is float from end to end counts where it runs
        between the layers of an int8 branch.
        """
        found, since, begun = [], list[ExecutedLayer](), False
        for layer in self.layers:
            if layer.precision != "int8" or is_conversion(layer):
                since.append(layer)
                continue
            if begun and any(map(_is_float, since)):
                found.append(Island(tuple(since)))
            since, begun = [], True
        return tuple(found)


def is_conversion(layer: ExecutedLayer) -> bool:
    """Whether the layer only changes type or layout."""
    changes = layer.precision != layer.writes and {layer.precision, layer.writes} <= _FLOATS | {"int8"}
    return not layer.macs and (changes or layer.kind in _KINDS)


def total_ns(layers: Iterable[ExecutedLayer]) -> int | None:
    """The time of several layers; None if it is unknown for one of them."""
    times = [layer.elapsed_ns for layer in layers]
    known = [time for time in times if time is not None]
    return sum(known) if len(known) == len(times) else None


def _is_float(layer: ExecutedLayer) -> bool:
    return layer.precision in _FLOATS and not is_conversion(layer)
