"""Observation, ranges and rounding, each against a slow plain oracle in numpy float64."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="networks are read with onnx")

from edgeseg.bundle import Bundle
from edgeseg.calibration import observe as observing
from edgeseg.calibration.network import Layer, Network, read_network
from edgeseg.calibration.observe import Moments, Observation, Seen, observe
from edgeseg.calibration.ranges import METHODS, Range, Ranges, dumps, loads, tabulate
from edgeseg.calibration.rounding import LEVELS, round_weights
from edgeseg.errors import BundleError, ExportError
from edgeseg.geometry import Padding, output_size
from edgeseg.testing import TINY, street_scene

FRAMES = [street_scene(seed, (64, 96))[0] for seed in range(3)]


def layer(
    groups: int = 1,
    strides: tuple[int, int] = (1, 1),
    rates: tuple[int, int] = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
) -> Layer:
    return Layer("l", "n", "x", "y", "y", "w", "b", groups, strides, rates, padding, 1, False)


def patches(x: Any, one: Layer, kernel: tuple[int, int]) -> Any:
    """Every patch, float64 (groups, positions, K): plain loops over a padded map."""
    (top, bottom), (left, right) = one.padding
    wide = np.pad(x[0].astype(np.float64), ((0, 0), (top, bottom), (left, right)))
    rows, columns = (
        output_size(x.shape[2 + a], kernel[a], one.strides[a], one.padding[a], one.rates[a]) for a in (0, 1)
    )
    found = []
    for i in range(rows):
        for j in range(columns):
            r, c = i * one.strides[0], j * one.strides[1]
            patch = wide[:, r : r + kernel[0] * one.rates[0] : one.rates[0], :]
            found.append(patch[:, :, c : c + kernel[1] * one.rates[1] : one.rates[1]])
    return np.array(found).reshape(rows * columns, one.groups, -1).transpose(1, 0, 2)


@pytest.mark.parametrize(
    ("one", "kernel"),
    [
        (layer(), (1, 1)),
        (layer(strides=(2, 1), padding=((1, 0), (2, 1))), (3, 3)),
        (layer(groups=2, rates=(3, 2), padding=((3, 3), (2, 2))), (3, 3)),
        (layer(groups=4, strides=(2, 2), padding=((1, 1), (0, 1))), (3, 2)),
    ],
)
def test_moments_of_all_positions(one: Layer, kernel: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    moments = Moments(one, np.zeros((8, 4 // one.groups, *kernel), np.float32))
    maps = [rng.standard_normal((1, 4, 9, 11)).astype(np.float32) for _ in range(2)]
    for x in maps:
        moments.add(one, x, 1000, rng)
    every = np.concatenate([patches(x, one, kernel) for x in maps], axis=1)
    assert moments.count == every.shape[1]
    np.testing.assert_allclose(moments.mean, every.mean(axis=1), atol=1e-6)
    second = np.einsum("gpk,gpl->gkl", every, every) / every.shape[1]
    np.testing.assert_allclose(moments.second, second, atol=1e-6)


def test_drawn_positions_are_even_and_of_the_layer_at_hand() -> None:
    """What is drawn has the same expectation; another output stride's rates count for its own maps."""
    rng = np.random.default_rng(1)
    one, wide = layer(padding=((1, 1), (1, 1))), layer(rates=(2, 2), padding=((2, 2), (2, 2)))
    x = rng.standard_normal((1, 2, 12, 12)).cumsum(axis=3).astype(np.float32)
    moments = Moments(one, np.zeros((1, 2, 3, 3), np.float32))
    for _ in range(200):
        moments.add(one, x, 50, rng)
        moments.add(wide, x, 50, rng)
    assert moments.count == 20_000
    every = np.concatenate([patches(x, which, (3, 3)) for which in (one, wide)], axis=1)
    second = np.einsum("gpk,gpl->gkl", every, every) / every.shape[1]
    np.testing.assert_allclose(moments.second, second, atol=0.05 * np.abs(second).max())


@pytest.fixture(scope="module")
def tiny() -> tuple[Network, Observation]:
    pytest.importorskip("onnxruntime", reason="observation runs in ONNX Runtime")
    bundle = Bundle.open(TINY)
    network = read_network(bundle, bundle.variant(16, "fp32"))
    return network, observe(network, iter(FRAMES), len(FRAMES), seed=3)


def test_extremes_are_exact_and_samples_bounded(
    tiny: tuple[Network, Observation], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeseg.surgery.onnx_file import Runner

    network, seen = tiny
    names = list(seen.seen)
    assert seen.images == len(FRAMES)
    assert {layer.source for layer in network.layers} <= set(names)
    assert not {layer.made for layer in network.layers if layer.made != layer.output} & set(names)
    values = [Runner(network.model, also=names).run({"pixels": frame[None]}, names) for frame in FRAMES]
    for index, name in enumerate(names):
        every = np.concatenate([value[index].reshape(-1) for value in values])
        assert (seen.seen[name].low, seen.seen[name].high) == (every.min(), every.max())
        assert np.isin(seen.seen[name].samples, every).all()
    monkeypatch.setattr(observing, "_SAMPLES_PER_TENSOR", 300)
    monkeypatch.setattr(observing, "_POSITIONS_PER_LAYER", 30)
    few, again, other = (observe(network, FRAMES, 3, seed=seed) for seed in (3, 3, 4))
    assert max(len(one.samples) for one in few.seen.values()) == 300
    assert max(one.count for one in few.moments.values()) == 30
    name = network.layers[1].name
    assert np.array_equal(few.moments[name].second, again.moments[name].second)
    assert all(np.array_equal(few.seen[n].samples, again.seen[n].samples) for n in names)
    assert not np.array_equal(few.moments[name].second, other.moments[name].second)


def test_strides_share_moments(tiny: tuple[Network, Observation]) -> None:
    bundle = Bundle.open(TINY)
    shared: dict[str, Moments] = {}
    parts = []
    for stride in (8, 16):
        network = read_network(bundle, bundle.variant(stride, "fp32"))
        parts.append(observe(network, FRAMES, 3, shared_by=2).moments)
        observe(network, FRAMES, 3, moments=shared, shared_by=2)
    for name, both in shared.items():
        counts = [part[name].count for part in parts]
        assert both.count == sum(counts)
        mean = sum(part[name].mean * count for part, count in zip(parts, counts, strict=True)) / sum(counts)
        np.testing.assert_allclose(both.mean, mean, rtol=1e-9)


def test_what_is_not_finite_is_refused(tiny: tuple[Network, Observation]) -> None:
    network = tiny[0]
    broken = onnx.ModelProto()
    broken.CopyFrom(network.model)
    bias = next(tensor for tensor in broken.graph.initializer if tensor.name == network.layers[2].bias)
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(bias.dims, np.nan, np.float32), bias.name))
    with pytest.raises(ExportError, match="is not finite on calibration image 1"):
        observe(dataclasses.replace(network, model=broken), FRAMES, 3)


def sampled(values: Any) -> Seen:
    values = np.asarray(values, np.float32)
    return Seen(float(values.min()), float(values.max()), values)


DISTRIBUTIONS = {
    "relu": sampled(np.maximum(np.random.default_rng(0).standard_normal(6000), 0)),
    "signed": sampled(np.random.default_rng(1).standard_normal(6000) ** 3 + 0.5),
    "outlier": sampled([*np.random.default_rng(2).random(5999), 60.0]),
    "rare": sampled([*np.zeros(20_000), -2.0]),
    "zero": sampled(np.zeros(50)),
}


def error(values: Any, low: float, high: float) -> float:
    """Mean squared error of 256 levels from low to high, of which one is zero."""
    step = (high - low) / 255
    zero = round(-low / step)
    return float(np.mean((np.clip(np.round(values / step), -zero, 255 - zero) * step - values) ** 2))


def divergence(counts: list[float], bins: int) -> float:
    """Migacz's algorithm, slide by slide: the kept bins with what is clipped, against themselves in 128 levels."""
    reference = counts[:bins]
    reference[-1] += sum(counts[bins:])
    candidate = [0.0] * bins
    for level in range(128):
        members = [i for i in range(bins) if i * 128 // bins == level]
        filled = [i for i in members if counts[i]]
        for i in filled:
            candidate[i] = sum(counts[j] for j in members) / len(filled)
    p, q = [c / sum(reference) for c in reference], [c / sum(candidate) for c in candidate]
    return sum(a * math.log(a / max(b, 1e-12)) for a, b in zip(p, q, strict=True) if a > 0)


def test_rules() -> None:
    table = tabulate("g", Observation(1, DISTRIBUTIONS, {}), ("a" * 64,))
    assert tuple(table.methods) == METHODS
    for name, seen in DISTRIBUTIONS.items():
        values = np.sort(seen.samples.astype(np.float64))
        found = {method: table.methods[method][name] for method in METHODS}
        low, high = min(seen.low, 0), max(seen.high, 0)
        widest = Range(*(pytest.approx(value, rel=1e-6) for value in (low, high, max(-low, high))))
        assert found["minmax"] == widest
        if name in ("zero", "rare"):  # nearly nothing is left inside any share: the extremes then
            assert found["percentile-99.9"] == found["percentile-99.99"] == widest
            continue
        for share in (99.9, 99.99):
            got = found[f"percentile-{share}"]
            cut = values[math.floor((1 - share / 100) * 5999)], values[math.ceil(share / 100 * 5999 - 1e-9)]
            assert got.low == pytest.approx(min(cut[0], 0), rel=1e-5)
            assert got.high == pytest.approx(max(cut[1], 0), rel=1e-5)
            magnitude = np.sort(np.abs(values))[math.ceil(share / 100 * 5999 - 1e-9)]
            assert got.limit == pytest.approx(magnitude, rel=1e-5)
        # least squares: nothing on a grid three times finer is better by a twentieth
        grid = np.geomspace(1, 1e-2, 80)
        lows = [low * share for share in grid] if low else [0.0]
        best = min(error(values, a, high * b) for a in lows for b in grid)
        assert error(values, found["mse"].low, found["mse"].high) <= 1.05 * best
    name = "signed"
    seen = DISTRIBUTIONS[name]
    magnitudes = np.abs(seen.samples)
    counts = list(map(float, np.histogram(magnitudes[magnitudes > 0], 2048, (0, magnitudes.max()))[0]))
    kept = min(range(128, 2049, 16), key=lambda bins: divergence(counts, bins))
    limit = float(magnitudes.max()) * kept / 2048
    assert table.methods["entropy"][name].limit == pytest.approx(limit, rel=1e-6)
    outlier = table.methods
    assert outlier["entropy"]["outlier"].high < 10 < outlier["minmax"]["outlier"].high


def test_tables_as_json() -> None:
    table = dataclasses.replace(
        tabulate("os16", Observation(1, DISTRIBUTIONS, {}), ("a" * 64,)), guard_images=("b" * 64,)
    )
    data = dumps(table)
    assert loads(data, "t") == table
    assert dumps(loads(data, "t")) == data
    assert loads(dumps(Ranges("g", {})), "t").images == ()
    for broken, message in [
        (b"\xff", "t is not a table of ranges"),
        (b"[]", "t is not a table of ranges"),
        (data.replace(b'"low": 0.0', b'"low": "x"', 1), "is not a table of ranges .*low"),
        (data.replace(b'"low": 0.0', b'"low": NaN', 1), "finite"),
        (data.replace(b'"low": 0.0', b'"low": 1.5', 1), "impossible range.*low=1.5"),
        (data.replace(b'"format": 1', b'"format": 2', 1), "has format 2, this edgeseg reads 1"),
    ]:
        assert broken != data
        with pytest.raises(BundleError, match=message):
            loads(broken, "t")


def moments_of(x: Any, groups: int, kernel: tuple[int, int]) -> tuple[Moments, Any]:
    """Moments of all of `x`, (1, I, h, w), and the patches behind them."""
    one = layer(groups)
    moments = Moments(one, np.zeros((groups, x.shape[1] // groups, *kernel), np.float32))
    moments.add(one, x, 1 << 20, np.random.default_rng(0))
    return moments, patches(x, one, kernel)


def outputs(weights: Any, every: Any) -> Any:
    """float64 (groups, O / groups, positions)."""
    return np.einsum("gok,gpk->gop", weights.reshape(len(every), -1, every.shape[2]).astype(np.float64), every)


@pytest.mark.parametrize(
    ("groups", "channels", "kernel"), [(1, 24, (1, 1)), (1, 6, (3, 3)), (2, 8, (3, 3)), (8, 8, (3, 3))]
)
@pytest.mark.parametrize("per_channel", [True, False])
def test_second_order_rounding(
    groups: int, channels: int, kernel: tuple[int, int], per_channel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observing, "_MOST_DEPTH", 40)  # the second case is taken apart
    rng = np.random.default_rng(5)
    # neighbours and channels are alike, as in images
    mixed = np.einsum("ij,jhw->ihw", rng.random((channels, 3)), rng.standard_normal((3, 20, 24)).cumsum(1).cumsum(2))
    x = (mixed + 0.1 * rng.standard_normal(mixed.shape))[None].astype(np.float32)
    moments, every = moments_of(x, groups, kernel)
    weight = rng.standard_normal((16, channels // groups, *kernel)).astype(np.float32)
    weight[3] = 0
    weight[5] *= 1e-25
    bias = rng.standard_normal(16).astype(np.float32)
    exact, mean_error = outputs(weight, every), {}
    for second_order in (False, True):
        found = round_weights(weight, bias, moments, per_channel=per_channel, second_order=second_order)
        assert found.values.dtype == np.int8
        assert found.values.shape == weight.shape
        assert found.scale.shape == found.bias.shape == (16,)
        assert np.abs(found.values.astype(int)).max() == LEVELS
        assert not found.values[[3, 5]].any()
        assert len(set(found.scale)) == (1 if not per_channel else 15)
        made = outputs(found.values * found.scale.reshape(-1, 1, 1, 1).astype(np.float64), every)
        # the bias makes up for the mean
        moved = (found.bias - bias).astype(np.float64).reshape(groups, -1)
        size = np.abs(exact).mean()
        np.testing.assert_allclose((made - exact).mean(axis=2) + moved, 0, atol=1e-5 * size)
        mean_error[second_order] = np.mean((made - exact) ** 2)
    assert mean_error[True] < 0.5 * mean_error[False]


def test_rounding_to_nearest() -> None:
    """Where inputs are independent and alike, and where nothing was observed, nearest is best."""
    rng = np.random.default_rng(6)
    weight = rng.standard_normal((7, 5, 3, 3)).astype(np.float32)
    bias = np.ones(7, np.float32)
    moments = Moments(layer(), weight)
    moments._second, moments.count = 3.0 * np.eye(45)[None], 1
    levels = weight / (np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / LEVELS)
    for given in (moments, None):
        found = round_weights(weight, bias, given)
        assert np.abs(found.values - levels).max() <= 0.5 + 1e-4
        assert np.array_equal(found.bias, bias)
    dead = Moments(layer(), weight)  # an input that is always zero
    dead.count = 1
    assert np.abs(round_weights(weight, bias, dead).values - levels).max() <= 0.5 + 1e-4
