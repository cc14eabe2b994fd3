"""Decode against its definition: a float64 oracle written from scratch, and torch where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

from edgeseg.decode import Grid, Wants, active_path, class_map, decode
from edgeseg.errors import InputError
from edgeseg.types import Region

TIE = 1e-5
"""Two scores closer than this, relative to the logits' scale, may be told apart differently by rounding."""


def noise(*shape: int, seed: int = 0, gain: float = 5.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * gain).astype(np.float32)


def hat(source: np.ndarray, n: int) -> np.ndarray:
    """(len(source), n) bilinear weights: a hat function around each logit."""
    return np.maximum(0.0, 1.0 - np.abs(np.clip(source, 0, n - 1)[:, None] - np.arange(n)))


def sources(n_in: int, n_out: int, align: bool, span: tuple[float, float, int] | None = None) -> np.ndarray:
    out = np.arange(n_out, dtype=np.float64)
    if span is None and align:
        return out * (n_in - 1) / max(n_out - 1, 1)
    offset, length, n_input = span or (0.0, n_out, n_out)
    position = (out + 0.5) * length / n_out + offset
    if align:
        return (position - 0.5) * ((n_in - 1) / (n_input - 1) if n_input > 1 else 0)
    return position * n_in / n_input - 0.5


def oracle_scores(logits: np.ndarray, size: tuple[int, int], grid: Grid = Grid()) -> np.ndarray:  # noqa: B008
    """float64 (C, H, W): dense, slow, nothing in common with the code under test."""
    region, (_, h, w) = grid.region, logits.shape
    spans = (None, None)
    if region is not None:
        spans = (
            (region.top, region.height, region.input_size[0]),
            (region.left, region.width, region.input_size[1]),
        )
    down = hat(sources(h, size[0], grid.align_corners, spans[0]), h)
    across = hat(sources(w, size[1], grid.align_corners, spans[1]), w)
    return down @ logits.astype(np.float64) @ across.T


def check(found: np.ndarray, scores: np.ndarray) -> None:
    """The best class, wherever rounding cannot decide; elsewhere one of those that tie."""
    best = scores.max(axis=0)
    won = np.take_along_axis(scores, found[None].astype(np.intp), axis=0)[0]
    assert (best - won).max() <= TIE * np.abs(scores).max()


SIZES = [
    ((32, 32), (512, 512)),
    ((32, 32), (37, 211)),
    ((7, 5), (7, 5)),
    ((9, 30), (4, 7)),
    ((40, 50), (13, 97)),
    ((1, 1), (6, 9)),
    ((1, 6), (11, 1)),
    ((2, 1), (1, 33)),
    ((3, 3), (1, 1)),
]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("small", "size"), SIZES)
@pytest.mark.parametrize("classes", [2, 21, 150, 255])
def test_is_the_argmax_of_bilinear_scores(classes, small, size, align_corners):
    logits = noise(classes, *small)
    found = class_map(logits, size, align_corners=align_corners)
    assert found.shape == size
    assert found.dtype == np.uint8
    check(found, oracle_scores(logits, size, Grid(align_corners)))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("small", "size"), SIZES)
def test_equals_torch_where_the_margin_is_above_rounding(small, size, align_corners):
    torch = pytest.importorskip("torch")
    logits = noise(21, *small, seed=1)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None], size=size, mode="bilinear", align_corners=align_corners
    )
    expected = resized[0].argmax(0).numpy()
    second, best = np.sort(oracle_scores(logits, size, Grid(align_corners)), axis=0)[-2:]
    clear = best - second > TIE * np.abs(logits).max()
    assert clear.mean() > 0.99
    assert np.array_equal(class_map(logits, size, align_corners=align_corners)[clear], expected[clear])


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "region",
    [
        Region(28.0, 0.0, 200.0, 256.0, (256, 256)),
        Region(0.0, 31.5, 256.0, 193.25, (256, 256)),
        Region(0.0, 0.0, 1.0, 1.0, (1, 1)),
        Region(-20.0, 5.0, 300.0, 20.0, (256, 256)),
    ],
)
def test_a_region_of_the_input_fills_the_frame(region, align_corners):
    logits, grid = noise(5, 16, 17, seed=2), Grid(align_corners, region)
    check(decode(logits, (90, 131), grid=grid).class_map, oracle_scores(logits, (90, 131), grid))


def test_the_whole_input_as_region_changes_nothing():
    logits, whole = noise(5, 16, 16), Region(0, 0, 256, 256, (256, 256))
    assert np.array_equal(class_map(logits, (256, 256), region=whole), class_map(logits, (256, 256)))


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.97])
def test_one_channel_is_a_threshold_on_the_sigmoid(threshold):
    logits = noise(1, 8, 9, gain=3)
    found = decode(logits, (50, 61), wants=Wants(confidence=True, threshold=threshold))
    p = 1 / (1 + np.exp(-oracle_scores(logits, (50, 61))[0]))
    clear = np.abs(p - threshold) > 1e-6
    assert np.array_equal(found.class_map[clear], (p > threshold)[clear])
    assert np.abs(found.confidence - np.maximum(p, 1 - p)).max() < 1e-6
    assert np.array_equal(decode(logits, (50, 61), wants=Wants(threshold=threshold)).class_map, found.class_map)


def confidence_errors(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    found = decode(logits, size, wants=Wants(confidence=True))
    scores = oracle_scores(logits, size)
    expected = 1 / np.exp(scores - scores.max(axis=0)).sum(axis=0)
    assert found.confidence.dtype == np.float32
    assert np.array_equal(found.class_map, class_map(logits, size))
    return np.abs(found.confidence - expected)


@pytest.mark.parametrize("classes", [2, 21, 150, 255])
@pytest.mark.parametrize("gain", [0.0, 1.0, 4.0, 8.0, 300.0])
@pytest.mark.parametrize("size", [(70, 300), (216, 192), (5, 7)])
def test_confidence_is_the_largest_softmax_probability(classes, gain, size):
    logits = noise(classes, 9, 12, gain=gain)
    assert confidence_errors(logits, size).max() < max(1e-6, 6e-8 * np.abs(logits).max())


@pytest.mark.parametrize("classes", [2, 21, 150])
def test_confidence_survives_a_common_offset_and_many_small_terms(classes):
    """The offset is each pixel's own, as a network's may be; the small terms weigh as much as the best together."""
    offset = np.round(noise(1, 9, 12, gain=500))
    assert confidence_errors(np.round(noise(classes, 9, 12)) + offset, (200, 300)).max() < 1e-6
    few = noise(classes, 9, 12, gain=0.5) - np.float32(np.log(classes))
    few[classes // 2] = 0
    assert confidence_errors(few, (200, 300)).max() < 1e-6


def test_unsure_pixels_become_ignore():
    logits = noise(6, 9, 12, gain=2)
    sure = decode(logits, (70, 80), wants=Wants(confidence=True))
    found = decode(logits, (70, 80), wants=Wants(unknown_below=0.6, counts=True))
    unsure = sure.confidence < np.float32(0.6)
    assert unsure.any()
    assert not unsure.all()
    assert np.array_equal(found.class_map, np.where(unsure, 255, sure.class_map))
    assert found.counts[255] == unsure.sum()
    assert found.confidence is None


@pytest.mark.parametrize("labels", [None, (0, 1, 1, 255, 7, 0)])
@pytest.mark.parametrize("unknown_below", [None, 0.5])
@pytest.mark.parametrize("size", [(70, 301), (5, 6)])
def test_counts_are_of_the_labels_written(labels, unknown_below, size):
    logits = noise(6, 9, 12, gain=2)
    wants = Wants(counts=True, labels=labels, unknown_below=unknown_below)
    found = decode(logits, size, wants=wants)
    assert found.counts.dtype == np.int64
    assert np.array_equal(found.counts, np.bincount(found.class_map.ravel(), minlength=256))


def test_labels_rename_after_the_argmax():
    logits, labels = noise(4, 9, 12), (9, 255, 9, 0)
    found = decode(logits, (60, 70), wants=Wants(labels=labels)).class_map
    assert np.array_equal(found, np.array(labels, np.uint8)[class_map(logits, (60, 70))])
    one = decode(logits[:1], (60, 70), wants=Wants(labels=(255, 3))).class_map
    assert np.array_equal(one, np.where(class_map(logits[:1], (60, 70)) == 1, 3, 255))


def test_the_first_of_equal_classes_wins():
    logits = noise(3, 6, 6)
    logits[2] = logits[1]
    assert 2 not in class_map(logits, (50, 50))
    assert not class_map(np.zeros((9, 4, 4), np.float32), (20, 20)).any()


def test_nan_never_wins_and_infinity_does():
    logits = noise(3, 6, 6)
    logits[0, 2, 2] = np.nan
    logits[1, 4, 4] = np.inf
    logits[2, 0, 0] = -np.inf
    found = decode(logits, (6, 6), wants=Wants(confidence=True))
    assert found.class_map[2, 2] != 0
    assert found.class_map[4, 4] == 1
    assert found.class_map[0, 0] != 2
    assert np.isfinite(found.confidence).all()
    bounded = np.clip(np.where(np.isnan(logits), np.float32(-1e38), logits), np.float32(-1e38), np.float32(1e38))
    assert np.array_equal(class_map(logits, (40, 50)), class_map(bounded, (40, 50)))
    assert not class_map(np.full((4, 2, 2), np.nan, np.float32), (9, 9)).any()
    assert not class_map(np.full((1, 2, 2), np.nan, np.float32), (9, 9)).any()


def test_any_strides_and_float_types():
    logits, size = noise(5, 12, 14), (60, 77)
    expected = class_map(logits, size)
    channels_last = np.ascontiguousarray(logits.transpose(1, 2, 0)).transpose(2, 0, 1)
    flipped = np.ascontiguousarray(logits[::-1, ::-1, ::-1])[::-1, ::-1, ::-1]
    padded = np.zeros((10, 24, 20), np.float32)
    padded[::2, ::2, 3:17] = logits
    swapped = logits.astype(logits.dtype.newbyteorder())
    for same in (channels_last, flipped, padded[::2, ::2, 3:17], swapped, logits.astype(np.float64)):
        assert np.array_equal(class_map(same, size), expected)
    half = logits.astype(np.float16)
    assert np.array_equal(class_map(half, size), class_map(half.astype(np.float32), size))
    huge = np.array([1e300, -1e300]).reshape(2, 1, 1)
    assert not class_map(huge, (2, 2)).any()


def test_results_belong_to_the_caller():
    logits = noise(3, 4, 4)
    logits.flags.writeable = False
    first, second = class_map(logits, (8, 8)), class_map(logits, (8, 8))
    first[:] = 77
    assert 77 not in second
    assert 77 not in class_map(logits, (8, 8))


GOOD = np.zeros((3, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("logits", "size", "options", "said"),
    [
        (np.zeros((0, 4, 4), np.float32), (8, 8), {}, "0 classes"),
        (np.zeros((256, 4, 4), np.float32), (8, 8), {}, "256 classes"),
        (np.zeros((3, 0, 4), np.float32), (8, 8), {}, r"\(3, 0, 4\)"),
        (np.zeros((1, 3, 4, 4), np.float32), (8, 8), {}, r"logits\[0\]"),
        (np.zeros((4, 4), np.float32), (8, 8), {}, r"\(4, 4\)"),
        (np.zeros((3, 4, 4), np.int64), (8, 8), {}, "int64"),
        ([[[0.0]]], (8, 8), {}, "list"),
        (GOOD, (0, 8), {}, "height is 0"),
        (GOOD, (8, 2.5), {}, "width is 2.5"),
        (GOOD, (8, 8, 3), {}, r"\(8, 8, 3\)"),
        (GOOD, 8, {}, "size is 8"),
        (GOOD, (8, 8), {"threads": 0}, "threads is 0"),
        (GOOD, (8, 8), {"wants": Wants(unknown_below=1.5)}, "1.5"),
        (GOOD, (8, 8), {"wants": Wants(unknown_below=float("nan"))}, "nan"),
        (GOOD, (8, 8), {"wants": Wants(threshold=1.0)}, "1.0"),
        (GOOD, (8, 8), {"wants": Wants(threshold="high")}, "threshold is 'high'"),
        (GOOD, (8, 8), {"wants": Wants(unknown_below="low")}, "unknown_below is 'low'"),
        (GOOD, (8, 8), {"wants": Wants(confidence="yes")}, "confidence is 'yes'"),
        (GOOD, (8, 8), {"wants": Wants(counts=3)}, "counts is 3"),
        (GOOD, (8, 8), {"wants": Wants(labels=(0, 1))}, "2 entries for 3 classes"),
        (GOOD[:1], (8, 8), {"wants": Wants(labels=(0,))}, "1 entries for 2 classes"),
        (GOOD, (8, 8), {"wants": Wants(labels=(0, 1, 256))}, "256"),
        (GOOD, (8, 8), {"wants": Wants(labels=(0, 1, 1.5))}, "1.5"),
        (GOOD, (8, 8), {"grid": Grid(region=Region(0, 0, 0, 8, (8, 8)))}, "no area"),
        (GOOD, (8, 8), {"grid": Grid(region=Region(float("nan"), 0, 8, 8, (8, 8)))}, "finite"),
        (GOOD, (8, 8), {"grid": Grid(region=Region(0, 0, 8, 8, (0, 8)))}, "input_size"),
    ],
)
def test_refuses_what_it_cannot_use(logits, size, options, said):
    with pytest.raises(InputError, match=said) as caught:
        decode(logits, size, **options)
    assert "\n" not in str(caught.value)


def test_says_which_path_is_active():
    path = active_path()
    assert path.name in ("compiled", "numpy")
    assert path.why
