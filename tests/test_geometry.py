"""The arithmetic of atrous convolution against loops that place the kernel at every position and count."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgeseg.errors import InputError
from edgeseg.geometry import (
    Graph,
    Layer,
    Padding,
    effective_kernel,
    fitting_rates,
    fitting_side,
    fold_padding,
    output_size,
    same_padding,
    transposed_size,
    valid_weights,
)
from edgeseg.inspection.receptive import receptive_fields
from edgeseg.inspection.report import inspect
from edgeseg.types import Size

pads = st.tuples(st.integers(0, 9), st.integers(0, 9))
axes = st.tuples(st.integers(1, 14), st.integers(1, 5), st.integers(1, 3), pads, st.integers(1, 8))
"""(size, kernel, stride, padding, dilation) of one axis."""


def placements(size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int) -> list[list[bool]]:
    """For each place where the whole kernel lies on the padded map: which of its taps meet the map."""
    on_map = [False] * padding[0] + [True] * size + [False] * padding[1]
    found = []
    for start in range(0, len(on_map), stride):
        taps = [start + tap * dilation for tap in range(kernel)]
        if taps[-1] < len(on_map):
            found.append([on_map[tap] for tap in taps])
    return found


@given(st.integers(1, 9), st.integers(1, 40))
def test_effective_kernel(kernel: int, dilation: int) -> None:
    taps = [tap * dilation for tap in range(kernel)]
    assert effective_kernel(kernel, dilation) == taps[-1] - taps[0] + 1


@given(axes)
def test_output_size(axis: tuple[int, int, int, tuple[int, int], int]) -> None:
    found = placements(*axis)
    if found:
        assert output_size(*axis) == len(found)
    else:
        with pytest.raises(InputError, match="spans"):
            output_size(*axis)


@given(axes)
def test_transposed_size_is_the_way_back(axis: tuple[int, int, int, tuple[int, int], int]) -> None:
    size, kernel, stride, padding, dilation = axis
    assume(placements(*axis))
    small = output_size(*axis)
    sizes = [transposed_size(small, kernel, stride, padding, dilation, extra) for extra in range(stride)]
    assert size in sizes
    # whatever each input position spreads, laid side by side and the padding cut off
    spread = {place * stride + tap * dilation for place in range(small) for tap in range(kernel)}
    assert sizes[0] == max(spread) + 1 - sum(padding)


@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 9))
def test_same_padding_keeps_the_size(size: int, kernel: int, dilation: int) -> None:
    rows, cols = same_padding((kernel, 3), (dilation, 1))
    assert output_size(size, kernel, 1, rows, dilation) == size
    assert cols == (1, 1)


@settings(max_examples=150, deadline=None)
@given(axes, axes)
def test_valid_weights(
    rows: tuple[int, int, int, tuple[int, int], int], cols: tuple[int, int, int, tuple[int, int], int]
) -> None:
    placed = placements(*rows), placements(*cols)
    assume(all(placed))
    counts: Counter[int] = Counter()
    used = np.zeros((rows[1], cols[1]), bool)
    for row, col in product(*placed):
        valid = np.outer(row, col)
        counts[int(valid.sum())] += 1
        used |= valid
    positions = sum(counts.values())
    size, kernel, stride, padding, dilation = zip(rows, cols, strict=True)
    found = valid_weights(size, kernel, stride, padding, dilation)
    assert (found.weights, found.used) == (used.size, np.count_nonzero(used))
    assert dict(found.shares) == {count: number / positions for count, number in counts.items()}
    assert [count for count, _ in found.shares] == sorted(counts)
    assert found.mean == pytest.approx(sum(c * n for c, n in counts.items()) / (positions * used.size), abs=1e-12)


def test_the_textbook_case() -> None:
    """Chen et al. 2017, section 3.3: at a rate close to the map's size, only the centre weight is left."""
    at_65 = valid_weights((65, 65), dilation=(65, 65))
    assert (at_65.weights, at_65.used, at_65.mean, at_65.shares) == (9, 1, 1 / 9, ((1, 1.0),))
    at_64 = valid_weights((65, 65), dilation=(64, 64))
    assert (at_64.used, at_64.share(4), at_64.share(2)) == (9, 4 / 65**2, 4 * 63 / 65**2)
    assert valid_weights((65, 65)).share(9) == 63**2 / 65**2


def test_figure_4() -> None:
    """The paper's three curves on a 65x65 map: 9 falls to none, 4 peaks at half the map, 1 rises to all."""
    curves = [[valid_weights((65, 65), dilation=(r, r)).share(count) for r in range(1, 66)] for count in (9, 4, 1)]
    nine, four, one = (np.array(curve) for curve in curves)
    assert np.all(np.diff(nine) <= 0)
    assert np.all(np.diff(one) >= 0)
    assert (nine[0], nine[31], nine[32]) == (63**2 / 65**2, 1 / 65**2, 0)
    assert (one[31], one[32], one[-1]) == (0, 1 / 65**2, 1)
    assert four.argmax() in (31, 32)
    assert four.max() == 64**2 / 65**2
    for rate in range(1, 66):
        assert sum(share for _, share in valid_weights((65, 65), dilation=(rate, rate)).shares) == pytest.approx(1)


def test_big_maps_take_no_time() -> None:
    found = valid_weights((4096, 8192), dilation=(5000, 18))
    assert (found.used, found.weights) == (3, 9)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([8, 16, 32, Fraction(16, 3)]))
@settings(max_examples=60, deadline=None)
def test_fitting_rates_fit_and_the_next_does_not(height: int, width: int, stride: int | Fraction) -> None:
    rates = fitting_rates((height, width), stride)
    wanted = [Fraction(rate * 16) / stride for rate in (6, 12, 18)]
    if not rates:
        assert not valid_weights((height, width)).fits
        return
    assert list(rates) == sorted(set(rates))
    assert all(valid_weights((height, width), dilation=(rate, rate)).fits for rate in rates)
    more = rates[-1] + 1
    assert more > wanted[-1] or not valid_weights((height, width), dilation=(more, more)).fits


def test_fitting_rates_keep_what_fits_and_the_proportions_of_what_does_not() -> None:
    assert fitting_rates((65, 65), 16) == (6, 12, 18)
    assert fitting_rates((65, 65), 8) == (9, 19, 28)
    assert fitting_rates((23, 30), 16) == (4, 7, 11)
    assert fitting_rates((100, 100), 32) == (3, 6, 9)
    assert fitting_rates((3, 3)) == (1,)
    assert fitting_rates((1, 1)) == ()


@given(st.integers(2, 5), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_fitting_side_is_the_smallest(kernel: int, rate: int) -> None:
    side = fitting_side((kernel, kernel), (rate, rate))
    fits = [valid_weights((n, n), (kernel, kernel), dilation=(rate, rate)).fits for n in range(1, side + 3)]
    assert fits.index(True) + 1 == side


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: effective_kernel(0, 1), "kernel is 0"),
        (lambda: effective_kernel(3, 0), "dilation is 0"),
        (lambda: output_size(0, 3), "size is 0"),
        (lambda: output_size(5, 3, 0), "stride is 0"),
        (lambda: output_size(5, 3, 1, (-1, 0)), "padding"),
        (lambda: valid_weights((5, 5), (9, 3), padding=((0, 0), (0, 0))), "spans 9 positions, the padded map has 5"),
    ],
)
def test_errors(call: object, told: str) -> None:
    with pytest.raises(InputError, match=told):
        call()  # type: ignore[operator]


# Receptive fields: a graph over one axis, where position p of a map depends on a set of pixels.


def layer(kind: str, inputs: tuple[str, ...], output: str, *, kernel: int = 1, stride: int = 1, rate: int = 1,
          pad: int = 0, size: int = 0, after: int = 0) -> Layer:  # fmt: skip
    return Layer(output, kind, kind, inputs, output, (size, size), (after, after), (1, 1), (kernel, kernel),  # type: ignore[arg-type]
                 (stride, stride), (rate, rate), ((pad, pad), (pad, pad)))  # fmt: skip


def dependencies(graph: Graph) -> dict[str, list[set[int]]]:
    """By brute force: which pixels each position of each map depends on, one axis."""
    sees = {graph.input: [{pixel} for pixel in range(graph.input_size[0])]}
    for step in graph.layers:
        maps = [sees[name] for name in step.inputs]
        if step.kind == "join":
            sees[step.output] = [set().union(*places) for places in zip(*maps, strict=True)]
        elif step.kind == "global":
            sees[step.output] = [set().union(*maps[0])]
        else:
            padded = [set[int]()] * step.padding[0][0] + maps[0] + [set[int]()] * step.padding[0][1]
            taps = [tap * step.dilation[0] for tap in range(step.kernel[0])]
            starts = range(0, len(padded) - taps[-1], step.stride[0])
            sees[step.output] = [set().union(*(padded[start + tap] for tap in taps)) for start in starts]
    return sees


windows = st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(1, 3), st.integers(0, 3))


def chain(steps: list[tuple[int, int, int, int]], size: int) -> tuple[list[Layer], int]:
    layers: list[Layer] = []
    for index, (kernel, stride, rate, pad) in enumerate(steps):
        after = output_size(size, kernel, stride, (pad, pad), rate)
        source = f"t{index - 1}" if index else "x"
        layers.append(layer("conv", (source,), f"t{index}", kernel=kernel, stride=stride, rate=rate, pad=pad,
                            size=size, after=after))  # fmt: skip
        size = after
    return layers, size


def middle(graph: Graph, name: str) -> tuple[int, set[int]]:
    """The middle position of a map and what it sees, far from every border."""
    places = dependencies(graph)[name]
    return len(places) // 2, places[len(places) // 2]


@settings(max_examples=80, deadline=None)
@given(st.lists(windows, min_size=1, max_size=5))
def test_receptive_field_of_a_chain(steps: list[tuple[int, int, int, int]]) -> None:
    layers, _ = chain(steps, 700)
    graph = Graph("chain", (700, 700), "x", layers[-1].output, tuple(layers))
    fields = receptive_fields(graph)
    for step in layers:
        position, seen = middle(graph, step.output)
        span, _ = fields[step.output].spans or (None, None)
        assert span is not None
        assert span.seen is not None
        assert (span.pixels, fields[step.output].whole) == (max(seen) - min(seen) + 1, False)
        first = span.low + position * span.jump
        assert {int(first) + bit for bit in range(span.pixels) if span.seen >> bit & 1} == seen
        assert span.has_holes == (len(seen) < span.pixels)


@settings(max_examples=40, deadline=None)
@given(st.lists(windows, max_size=3), st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=2, max_size=4))
def test_receptive_field_where_paths_join(
    steps: list[tuple[int, int, int, int]], branches: list[tuple[int, int]]
) -> None:
    """A trunk, then parallel atrous convolutions that keep the size, joined as ASPP's are."""
    layers, size = chain([(1, 1, 1, 0), *steps], 500)
    trunk = layers[-1].output
    for index, (half, rate) in enumerate(branches):
        layers.append(layer("conv", (trunk,), f"b{index}", kernel=2 * half - 1, rate=rate, pad=(half - 1) * rate,
                            size=size, after=size))  # fmt: skip
    joined = tuple(f"b{index}" for index in range(len(branches)))
    layers.append(layer("join", joined, "out", size=size, after=size))
    graph = Graph("pyramid", (500, 500), "x", "out", tuple(layers))
    _, seen = middle(graph, "out")
    field = receptive_fields(graph)["out"]
    assert field.size == (max(seen) - min(seen) + 1,) * 2
    assert field.spans is not None
    assert (field.spans[0].seen or 0).bit_count() == len(seen)


def test_a_global_path_is_told_apart() -> None:
    layers = [
        layer("conv", ("x",), "a", kernel=3, pad=1, size=20, after=20),
        layer("global", ("a",), "pooled", size=20, after=1),
        layer("conv", ("pooled",), "gate", size=1, after=1),
        layer("join", ("a", "gate"), "out", size=20, after=20),
    ]
    fields = receptive_fields(Graph("gate", (20, 20), "x", "out", tuple(layers)))
    assert (fields["gate"].size, fields["gate"].stride((1, 1), (20, 20)), fields["gate"].whole) == (None, None, True)
    assert (fields["out"].size, fields["out"].whole) == ((3, 3), True)
    assert (fields["a"].size, fields["a"].whole) == ((3, 3), False)


def test_upsampling_makes_the_stride_finer() -> None:
    layers = [
        layer("conv", ("x",), "a", kernel=3, stride=4, pad=1, size=32, after=8),
        Layer("up", "resample", "Resize", ("a",), "b", (8, 8), (16, 16), reach=1),
        layer("transposed", ("b",), "c", kernel=2, stride=2, size=16, after=32),
    ]
    fields = receptive_fields(Graph("decoder", (32, 32), "x", "c", tuple(layers)))
    assert fields["b"].stride((16, 16), (32, 32)) == (2, 2)
    assert fields["b"].size == (7, 7)  # two positions, each 3 pixels wide, 4 apart
    assert fields["c"].stride((32, 32), (32, 32)) == (1, 1)
    assert fields["c"].size == (7, 7)


def test_padding_of_its_own_counts_as_the_convolutions() -> None:
    pad = Layer("", "pad", "Pad", ("x",), "p", (9, 9), (12, 14), padding=((1, 2), (2, 3)))
    conv = Layer("c", "conv", "Conv", ("p",), "y", (12, 14), (10, 12), (4, 8), (3, 3))
    _, folded = fold_padding([pad, conv])
    assert (folded.inputs, folded.input_size, folded.padding) == (("x",), (9, 9), ((1, 2), (2, 3)))
    assert folded.valid == valid_weights((9, 9), (3, 3), (1, 1), ((1, 2), (2, 3)))


# Warnings


def pyramid(rates: list[int], size: int, *, before: list[int] | None = None) -> Graph:
    layers = []
    source = "x"
    for index, rate in enumerate(before or []):
        layers.append(layer("conv", (source,), f"t{index}", kernel=3, rate=rate, pad=rate, size=size, after=size))
        source = f"t{index}"
    names = []
    for index, rate in enumerate(rates):
        names.append(f"branch{index}")
        layers.append(layer("conv", (source,), names[-1], kernel=3, rate=rate, pad=rate, size=size, after=size))
    layers.append(layer("join", tuple(names) or (source,), "out", size=size, after=size))
    return Graph("pyramid", (size, size), "x", "out", tuple(layers))


@pytest.mark.parametrize(
    ("graph", "told"),
    [
        (pyramid([6, 12, 18], 65, before=[1] * 12), []),
        (pyramid([12, 12, 12], 65, before=[1] * 12), ["constant rates: branch0, branch1, branch2 all run at rate 12"]),
        (pyramid([6, 65], 65, before=[1] * 40), ["degenerate: branch1 (rate 65 on a 65x65 map): weights that ever"]),
        (pyramid([6, 40], 65, before=[1] * 40), ["mostly padding: branch1 (rate 40 on a 65x65 map): on average 34.8%"]),
        (
            pyramid([], 65, before=[2, 2, 2]),
            ["gridding: behind t0, t1, t2 (rates 2, 2, 2) an output position sees 54%"],
        ),
        (pyramid([], 65, before=[1, 2, 3]), []),
        (pyramid([], 65, before=[2, 2, 1]), []),
        (pyramid([], 65, before=[1, 2, 9]), ["gridding: behind t2 (rate 9)"]),
    ],
)
def test_warnings(graph: Graph, told: list[str]) -> None:
    found = inspect(graph).warnings
    assert len(found) == len(told), found
    for line, beginning in zip(found, told, strict=True):
        assert line.startswith(beginning)
        assert "\n" not in line


def test_remedies_are_rates_that_fit() -> None:
    (line,) = inspect(pyramid([12, 24, 36], 65, before=[1] * 40)).warnings
    assert line.endswith("train with rates 9, 19, 28, which fit a 65x65 map, or feed an input of 82x82 or more")
    (line,) = inspect(pyramid([12, 12], 65, before=[1] * 12)).warnings
    assert line.endswith("so all see the same context; train with rates 9, 19, 28, which fit a 65x65 map")


def test_counts_of_a_layer() -> None:
    size: Size = (10, 12)
    padding: Padding = ((1, 1), (1, 1))
    conv = Layer("c", "conv", "Conv", ("x",), "y", size, size, (8, 6), (3, 3), padding=padding, groups=2, bias=True)
    assert (conv.macs, conv.parameters) == (10 * 12 * 9 * 4 * 6, 9 * 4 * 6 + 6)
    up = Layer("u", "transposed", "ConvTranspose", ("x",), "y", size, (20, 24), (8, 6), (2, 2), (2, 2))
    assert (up.macs, up.parameters, up.valid) == (10 * 12 * 4 * 8 * 6, 4 * 8 * 6, None)
    pool = Layer("p", "pool", "MaxPool", ("x",), "y", size, size, kernel=(3, 3))
    assert (pool.macs, pool.parameters) == (0, 0)
