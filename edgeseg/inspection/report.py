"""What a network's convolutions see at an input size: rows, totals, and warnings that say what to do.

Sources of the warnings: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017, section 3.3
(rates too large for their map); Wang et al., "Understanding Convolution for Semantic Segmentation", WACV 2018, section
3.2 (gridding).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from edgeseg.geometry import BASE_STRIDE, MIN_VALID, Graph, Layer, ValidWeights, fitting_rates, fitting_side
from edgeseg.inspection.receptive import Field, receptive_fields
from edgeseg.types import Size

_DENSE = 0.95
"""Lines of single pixels missing between wide fields are no grid."""


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One convolution: what it is, what it costs, which of its weights meet the map, what a position of it sees.

    `valid` is None for a transposed convolution. `stride` is the cumulative one, pixels of the image per position;
    it and `receptive_field` are None behind an operation that sees the whole image.
    """

    layer: Layer
    valid: ValidWeights | None
    stride: tuple[Fraction, Fraction] | None
    receptive_field: Size | None

    @property
    def is_telling(self) -> bool:
        """Whether the layer spreads its weights or changes the map's size."""
        return self.layer.is_atrous or self.layer.kind == "transposed" or self.layer.stride != (1, 1)


@dataclass(frozen=True, slots=True)
class Report:
    """A network at one input size.

    `output_stride` and `receptive_field` are the output's, along windows; `whole_image`: some path, as ASPP's image
    pooling, sees all of it besides. `padding_macs` of the `macs` multiply padding. Batch norms are no convolutions:
    they count in `parameters` only where an exporter has folded them into biases.
    """

    source: str
    input_size: Size
    map_size: Size
    output_stride: tuple[Fraction, Fraction] | None
    layers: tuple[LayerReport, ...]
    macs: int
    padding_macs: int
    parameters: int
    receptive_field: Size | None
    whole_image: bool
    warnings: tuple[str, ...]


def inspect(graph: Graph) -> Report:
    """Report on every convolution of a graph, in the order in which they run."""
    fields = receptive_fields(graph)
    rows = tuple(
        LayerReport(layer, layer.valid, field.stride(layer.output_size, graph.input_size), field.size)
        for layer, field in ((layer, fields[layer.output]) for layer in graph.layers if layer.is_convolution)
    )
    output = fields[graph.output]
    map_size = next(layer.output_size for layer in reversed(graph.layers) if layer.output == graph.output)
    padding = sum(row.layer.macs * (1 - row.valid.mean) for row in rows if row.valid)
    return Report(
        source=graph.source,
        input_size=graph.input_size,
        map_size=map_size,
        output_stride=output.stride(map_size, graph.input_size),
        layers=rows,
        macs=sum(row.layer.macs for row in rows),
        padding_macs=round(padding),
        parameters=sum(row.layer.parameters for row in rows),
        receptive_field=output.size,
        whole_image=output.whole,
        warnings=(*_constant(rows), *_degenerate(rows), *_sparse(rows), *_gridding(rows, output, fields)),
    )


def pyramids(rows: tuple[LayerReport, ...]) -> list[list[LayerReport]]:
    """Groups of parallel atrous convolutions: two or more that read the same tensor, as ASPP's do."""
    groups: dict[str, list[LayerReport]] = {}
    for row in rows:
        if row.layer.is_atrous:
            groups.setdefault(row.layer.inputs[0], []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def _constant(rows: tuple[LayerReport, ...]) -> Iterator[str]:
    for group in pyramids(rows):
        rates = {row.layer.dilation for row in group}
        if len(rates) == 1:
            layer = group[0].layer
            stride = group[0].stride
            fitting = fitting_rates(layer.input_size, max(stride) if stride else BASE_STRIDE)
            yield (
                f"constant rates: {_names(group)} all run at rate {_pair(layer.dilation)} on the same map, so all see "
                f"the same context; {_remedy(fitting, layer.input_size)}"
            )


def _degenerate(rows: tuple[LayerReport, ...]) -> Iterator[str]:
    """Atrous convolutions some of whose weights never meet the map; one line for those that share a map."""
    for group in _by_map(rows, lambda valid: valid.used < valid.weights):
        used = ", ".join(dict.fromkeys(f"{row.valid.used} of {row.valid.weights}" for row in group if row.valid))
        one = " (as in a 1x1 convolution)" if any(row.valid and row.valid.used == 1 for row in group) else ""
        yield f"degenerate: {_where(group)}: weights that ever meet the map: {used}{one}; {_fix(group, rows)}"


def _sparse(rows: tuple[LayerReport, ...]) -> Iterator[str]:
    """Atrous convolutions whose weights all meet the map somewhere, but seldom."""
    for group in _by_map(rows, lambda valid: valid.used == valid.weights and valid.mean < MIN_VALID):
        shares = ", ".join(dict.fromkeys(f"{row.valid.mean:.1%}" for row in group if row.valid))
        yield f"mostly padding: {_where(group)}: on average {shares} of the weights meet the map; {_fix(group, rows)}"


def _gridding(rows: tuple[LayerReport, ...], output: Field, fields: dict[str, Field]) -> Iterator[str]:
    """Holes in what the output sees, left by dilated convolutions that no later or earlier one fills."""
    seen = [span.seen.bit_count() / span.pixels for span in output.spans or () if span.seen]
    if not seen or min(seen) > _DENSE:
        return
    guilty = []
    for row in rows:
        spans = fields[row.layer.output].spans
        degenerate = row.valid is not None and row.valid.used < row.valid.weights  # has a line of its own
        if row.layer.is_atrous and not degenerate and spans and any(span.has_holes for span in spans):
            guilty.append(row)
    if guilty:
        rates = _rates(tuple(_pair(row.layer.dilation) for row in guilty))
        yield (
            f"gridding: behind {_names(guilty)} ({rates}) an output position sees {min(seen):.0%} of the rows or "
            "columns it spans; choose rates that begin with 1 and share no divisor, as 1, 2, 3"
        )


def _by_map(rows: tuple[LayerReport, ...], test: Callable[[ValidWeights], bool]) -> list[list[LayerReport]]:
    groups: dict[tuple[Size, Size], list[LayerReport]] = {}
    for row in rows:
        if row.layer.is_atrous and row.valid is not None and test(row.valid):
            groups.setdefault((row.layer.input_size, row.layer.kernel), []).append(row)
    return list(groups.values())


def _fix(group: list[LayerReport], rows: tuple[LayerReport, ...]) -> str:
    """Rates that fit, for a whole pyramid where the convolution is in one; and the input at which its own would."""
    worst = max((row.layer for row in group), key=lambda layer: max(layer.dilation))
    side = fitting_side(worst.kernel, worst.dilation)
    stride = next((row.stride for row in group if row.stride), None)
    need = f"feed a map of {side}x{side}"
    if stride:
        rows_px, cols_px = (int((side - 1) * step) + 1 for step in stride)
        need = f"feed an input of {rows_px}x{cols_px} or more"
    together = next((p for p in pyramids(rows) if worst in [row.layer for row in p]), [])
    rates = tuple(sorted({max(row.layer.dilation) for row in together})) or (max(worst.dilation),)
    return f"{_remedy(fitting_rates(worst.input_size, BASE_STRIDE, rates), worst.input_size)}, or {need}"


def _remedy(rates: tuple[int, ...], size: Size) -> str:
    if not rates:
        return f"no rate fits a {_pair(size, 'x')} map"
    return f"train with {_rates(rates)}, which {'fit' if len(rates) > 1 else 'fits'} a {_pair(size, 'x')} map"


def _where(group: list[LayerReport]) -> str:
    rates = _rates(tuple(dict.fromkeys(_pair(row.layer.dilation) for row in group)))
    return f"{_names(group)} ({rates} on a {_pair(group[0].layer.input_size, 'x')} map)"


def _rates(rates: tuple[int, ...] | tuple[str, ...]) -> str:
    return f"{'rate' if len(rates) == 1 else 'rates'} {', '.join(map(str, rates))}"


def _names(group: list[LayerReport]) -> str:
    names = [row.layer.name for row in group]
    return ", ".join(names if len(names) <= 4 else [*names[:3], f"{len(names) - 3} more"])


def _pair(pair: Size, sign: str = "") -> str:
    return f"{pair[0]}x{pair[1]}" if sign or pair[0] != pair[1] else str(pair[0])
