"""Receptive fields: which pixels of the image a position of each map depends on.

A field is followed along each axis as the exact set of pixels that position 0 of a map sees, borders aside
(Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019: the jump grows by
each stride, the field by (k_eff - 1) jumps). Where paths join, the sets unite. The set also shows gridding: the holes
that dilated convolutions with a common divisor leave (Wang et al., "Understanding Convolution for Semantic
Segmentation", WACV 2018, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from edgeseg.geometry import Graph, Layer, effective_kernel
from edgeseg.types import Size


@dataclass(frozen=True, slots=True)
class Span:
    """Pixels from `low` to `high` along one axis, seen from position 0; neighbouring positions lie `jump` pixels apart.

    Bit i of `seen` is pixel `low + i`; None after a change of size: which pixels are seen then differs
    from position to position, and the span is their usual extent.
    """

    low: Fraction
    high: Fraction
    jump: Fraction
    seen: int | None

    @property
    def pixels(self) -> int:
        """The receptive field's length, holes included."""
        return int(self.high - self.low) + 1

    @property
    def has_holes(self) -> bool:
        return self.seen is not None and self.seen != (1 << self.pixels) - 1


@dataclass(frozen=True, slots=True)
class Field:
    """Rows and columns that a map's position sees through windows; `whole`: some path sees the entire image.

    Rows and columns are None where every path does.
    """

    spans: tuple[Span, Span] | None
    whole: bool

    @property
    def size(self) -> Size | None:
        """(height, width) in pixels of the image, without the paths that see all of it."""
        return (self.spans[0].pixels, self.spans[1].pixels) if self.spans else None

    def stride(self, map_size: Size, input_size: Size) -> tuple[Fraction, Fraction] | None:
        """The cumulative stride: pixels of the image from one position to the next.

        Resizing a map to a given size shifts that by its rounding (9 positions at stride 16 made 33 are 4.36 apart);
        such a map has the whole stride s for which it is ceil(image / s) positions long, else the ratio.
        """
        if self.spans is None:
            return None
        rows, cols = (_stride(*axis) for axis in zip(self.spans, map_size, input_size, strict=True))
        return rows, cols


_PIXEL = Span(Fraction(0), Fraction(0), Fraction(1), 1)


def receptive_fields(graph: Graph) -> dict[str, Field]:
    """The field of every tensor of the graph, by its name."""
    fields = {graph.input: Field((_PIXEL, _PIXEL), whole=False)}
    for layer in graph.layers:
        united = _unite([fields[name] for name in layer.inputs if name in fields])
        if layer.kind == "global" or united.spans is None:
            fields[layer.output] = Field(None, whole=True)
        else:
            rows, cols = united.spans
            fields[layer.output] = replace(united, spans=(_through(layer, 0, rows), _through(layer, 1, cols)))
    return fields


def _stride(span: Span, positions: int, pixels: int) -> Fraction:
    whole = round(pixels / positions)
    if span.seen is not None:
        return span.jump
    return Fraction(whole) if whole and -(-pixels // whole) == positions else Fraction(pixels, positions)


def _unite(fields: list[Field]) -> Field:
    local = [field.spans for field in fields if field.spans is not None]
    whole = any(field.whole for field in fields) or not local
    if not local:
        return Field(None, whole)
    return Field((_union([spans[0] for spans in local]), _union([spans[1] for spans in local])), whole)


def _union(spans: list[Span]) -> Span:
    low, high = min(span.low for span in spans), max(span.high for span in spans)
    seen: int | None = 0
    for span in spans:
        seen = None if seen is None or span.seen is None else seen | span.seen << int(span.low - low)
    exact = [span.jump for span in spans if span.seen is not None]
    return Span(low, high, min(exact or [span.jump for span in spans]), seen)


def _through(layer: Layer, axis: int, span: Span) -> Span:
    """One axis of a layer's output: from the span of position 0 of its input to that of its output."""
    jump = span.jump
    if layer.kind in ("resample", "transposed"):
        if layer.kind == "transposed":
            stride = layer.stride[axis]
            taps = -(-effective_kernel(layer.kernel[axis], layer.dilation[axis]) // stride)
            reach, shrink = taps - 1, Fraction(1, stride)
        else:
            reach, shrink = layer.reach, Fraction(layer.input_size[axis], layer.output_size[axis])
        if not reach and shrink == 1:
            return span
        half = Fraction(reach, 2) * jump
        return Span(span.low - half, span.high + half, jump * shrink, None)
    kernel, rate, before = layer.kernel[axis], layer.dilation[axis], layer.padding[axis][0]
    low = span.low - before * jump
    step = rate * jump
    seen = 0
    for tap in range(kernel if span.seen is not None else 0):
        seen |= (span.seen or 0) << int(tap * step)
    return Span(
        low=low,
        high=span.high - before * jump + (kernel - 1) * step,
        jump=jump * layer.stride[axis],
        seen=seen if span.seen is not None else None,
    )
