"""Frames to network input, against resampling written as plain float64 matrices."""

from __future__ import annotations

import re
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseg.errors import InputError
from edgeseg.preprocess import Preprocessor, letterbox
from edgeseg.types import Preprocess

Size = tuple[int, int]
ROUNDING = 1.01
"""OpenCV resamples in fixed point: one level beside float64 at the most."""
SHAPES: list[Size] = [
    (1, 1),
    (1, 500),
    (500, 1),
    (3, 2000),
    (64, 96),
    (128, 192),
    (65, 97),
    (100, 50),
    (7, 300),
    (48, 72),
    (192, 384),
]


def settings_of(size: Size = (64, 96), **options: Any) -> Preprocess:
    return Preprocess(size, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), **options)


def noise(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def linear(n_in: int, n_out: int) -> np.ndarray:
    """(n_out, n_in) weights: a hat function at the pixel centres' place, clamped at the border."""
    place = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(n_in)))


def mean(n_in: int, n_out: int) -> np.ndarray:
    """(n_out, n_in) weights: how much of each input pixel lies in the output pixel."""
    edges = np.arange(n_out + 1) * n_in / n_out
    low = np.maximum(edges[:-1, None], np.arange(n_in))
    high = np.minimum(edges[1:, None], np.arange(n_in) + 1)
    return np.maximum(0, high - low) * n_out / n_in


def oracle(frame: np.ndarray, size: Size, interpolation: str) -> np.ndarray:
    down, across = (
        (mean if interpolation == "area" and n_in > n_out else linear)(n_in, n_out)
        for n_in, n_out in zip(frame.shape[:2], size, strict=True)
    )
    return np.einsum("yi,ijc,xj->yxc", down, frame.astype(np.float64), across, optimize=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("interpolation", ["bilinear", "area"])
def test_stretch_is_the_resampling_it_says(shape: Size, interpolation: str) -> None:
    frame = noise(*shape)
    found = Preprocessor(settings_of(interpolation=interpolation)).prepare(frame)
    assert found.shape == (1, 64, 96, 3)
    assert found.dtype == np.uint8
    # where one axis shrinks and the other grows, the result is rounded twice
    mixed = interpolation == "area" and (shape[0] - 64) * (shape[1] - 96) < 0
    assert np.abs(found[0] - oracle(frame, (64, 96), interpolation)).max() <= ROUNDING + 0.5 * mixed


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("interpolation", ["bilinear", "area"])
@pytest.mark.parametrize("size", [(64, 96), (33, 17), (1, 1)])
def test_letterbox_is_a_resampled_frame_in_a_border(shape: Size, interpolation: str, size: Size) -> None:
    frame, preprocess = noise(*shape), settings_of(size, fit="letterbox", interpolation=interpolation, pad=7)
    found = Preprocessor(preprocess).prepare(frame)[0]
    region = letterbox(shape, preprocess)
    box = (0, 0, *size) if region is None else (region.top, region.left, region.height, region.width)
    top, left, height, width = (int(value) for value in box)
    assert (top, left, height, width) == box, "whole pixels"
    inside = found[top : top + height, left : left + width]
    assert inside.shape == (height, width, 3)
    mixed = interpolation == "area" and (shape[0] - height) * (shape[1] - width) < 0
    assert np.abs(inside - oracle(frame, (height, width), interpolation)).max() <= ROUNDING + 0.5 * mixed
    border = np.ones(size, bool)
    border[top : top + height, left : left + width] = False
    assert (found[border] == 7).all()


@settings(max_examples=300, deadline=None)
@given(*[st.tuples(st.integers(1, 4000), st.integers(1, 4000))] * 2)
def test_letterbox_geometry(frame: Size, size: Size) -> None:
    """Inside the input, touching two opposite sides, centred, and within half a pixel of the frame's aspect ratio."""
    region = letterbox(frame, settings_of(size, fit="letterbox"))
    height, width = size if region is None else (region.height, region.width)
    scale = min(size[0] / frame[0], size[1] / frame[1])
    assert height == size[0] or width == size[1]
    assert abs(height - max(1, frame[0] * scale)) <= 0.5 + 1e-9
    assert abs(width - max(1, frame[1] * scale)) <= 0.5 + 1e-9
    if region is not None:
        assert region.input_size == size
        assert 0 <= region.top <= size[0] - height - region.top <= region.top + 1
        assert 0 <= region.left <= size[1] - width - region.left <= region.left + 1


@pytest.mark.parametrize("shape", [(192, 384), (320, 97), (192, 50), (64 * 7, 96), (128, 384), (196, 384)])
def test_reading_fewer_rows_changes_nothing(shape: Size) -> None:
    frame = noise(*shape)
    whole = cv2.resize(frame, (96, 64), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(Preprocessor(settings_of()).prepare(frame)[0], whole)


def test_no_region_where_the_frame_fills_the_input() -> None:
    assert Preprocessor(settings_of()).region((10, 500)) is None
    assert Preprocessor(settings_of(fit="letterbox")).region((128, 192)) is None


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (31, 400)])
def test_region_says_where_a_pixel_comes_to_lie(shape: Size) -> None:
    """A bright spot's centre of mass, carried over by the region alone, is where it is found."""
    preprocess = settings_of((256, 256), fit="letterbox", interpolation="area", pad=0)
    frame = np.zeros((*shape, 3), np.uint8)
    top, left, side = shape[0] // 5, shape[1] // 3, 16
    frame[top : top + side, left : left + side] = 255
    preprocessor = Preprocessor(preprocess)
    found = preprocessor.prepare(frame)[0, ..., 0].astype(np.float64)
    region = preprocessor.region(shape)
    assert region is not None
    rows, columns = ((np.arange(256) + 0.5) @ found.sum(axis) / found.sum() for axis in (1, 0))
    assert abs(rows - (region.top + (top + side / 2) * region.height / shape[0])) < 0.05
    assert abs(columns - (region.left + (left + side / 2) * region.width / shape[1])) < 0.05


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
@pytest.mark.parametrize("interpolation", ["bilinear", "area"])
@pytest.mark.parametrize("shape", SHAPES)
def test_memory_layout_and_channel_order_do_not_matter(fit: str, interpolation: str, shape: Size) -> None:
    frame = noise(*shape)
    preprocess = settings_of(fit=fit, interpolation=interpolation)
    expected = Preprocessor(preprocess).prepare(frame).copy()
    wide = np.zeros((shape[0] * 2, shape[1] * 3, 5), np.uint8)
    wide[::2, ::3, 1:4] = frame
    layouts = {
        "strided": wide[::2, ::3, 1:4],
        "upside down twice": np.ascontiguousarray(frame[::-1])[::-1],
        "mirrored twice": np.ascontiguousarray(frame[:, ::-1])[:, ::-1],
        "channels swapped twice": np.ascontiguousarray(frame[..., ::-1])[..., ::-1],
        "planes": np.ascontiguousarray(frame.transpose(2, 0, 1)).transpose(1, 2, 0),
        "columns first": np.asfortranarray(frame),
    }
    preprocessor = Preprocessor(preprocess)
    for name, layout in layouts.items():
        np.testing.assert_array_equal(layout, frame)
        layout.flags.writeable = False
        np.testing.assert_array_equal(preprocessor.prepare(layout), expected, name)
        np.testing.assert_array_equal(preprocessor.prepare(layout[..., ::-1], "bgr"), expected, f"{name}, bgr")
    np.testing.assert_array_equal(frame, noise(*shape), "the frame was written to")


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_a_frame_of_the_input_size_passes_unchanged(color: Any) -> None:
    frame = noise(64, 96)
    found = Preprocessor(settings_of(interpolation="area")).prepare(frame, color)
    np.testing.assert_array_equal(found[0], frame if color == "rgb" else frame[..., ::-1])
    assert not np.shares_memory(found, frame)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([*SHAPES, (64, 95), (63, 96)]), st.booleans()), min_size=2, max_size=8))
def test_one_buffer_serves_frames_of_every_shape(sequence: list[tuple[Size, bool]]) -> None:
    """Nothing of an earlier frame shows, in the border least of all."""
    preprocess = settings_of(fit="letterbox")
    shared = Preprocessor(preprocess)
    for number, (shape, bgr) in enumerate(sequence):
        frame = noise(*shape, seed=number)
        color: Any = "bgr" if bgr else "rgb"
        np.testing.assert_array_equal(shared.prepare(frame, color), Preprocessor(preprocess).prepare(frame, color))


def test_a_frame_that_fills_the_input_leaves_nothing_in_the_next_border() -> None:
    preprocess = settings_of(fit="letterbox", pad=0)
    shared, narrow = Preprocessor(preprocess), np.zeros((50, 50, 3), np.uint8)
    shared.prepare(narrow)
    shared.prepare(np.full((64, 96, 3), 255, np.uint8))
    assert not shared.prepare(narrow).any()


def test_the_buffer_is_reused() -> None:
    preprocessor = Preprocessor(settings_of())
    assert preprocessor.prepare(noise(5, 5)) is preprocessor.prepare(noise(9, 9))


def test_a_refused_frame_leaves_the_next_one_right() -> None:
    preprocess = settings_of(fit="letterbox")
    preprocessor, frame = Preprocessor(preprocess), noise(50, 50)
    expected = preprocessor.prepare(frame).copy()
    with pytest.raises(InputError):
        preprocessor.prepare(frame.astype(np.float32))
    np.testing.assert_array_equal(preprocessor.prepare(frame), expected)


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (np.zeros((5, 7), np.uint8), "grey, shape (5, 7): repeat it"),
        (np.zeros((5, 7, 1), np.uint8), "grey, shape (5, 7, 1)"),
        (np.zeros((5, 7, 4), np.uint8), "four channels, shape (5, 7, 4): drop alpha"),
        (np.zeros((5, 7, 2), np.uint8), "shape (5, 7, 2)"),
        (np.zeros((3, 5, 7), np.uint8), "shape (3, 5, 7): one frame is (height, width, 3)"),
        (np.zeros((1, 5, 7, 3), np.uint8), "shape (1, 5, 7, 3)"),
        (np.zeros((0, 7, 3), np.uint8), "shape (0, 7, 3)"),
        (np.zeros((5, 0, 3), np.uint8), "shape (5, 0, 3)"),
        (np.zeros((), np.uint8), "shape ()"),
        (np.zeros((5, 7, 3), np.float32), "float32: scale it to 0..255"),
        (np.zeros((5, 7, 3), np.uint16), "uint16"),
        (np.zeros((5, 7, 3), np.int8), "int8"),
        (np.zeros((5, 7, 3), bool), "bool"),
        (np.zeros((5, 7, 3), object), "object"),
        ([[[0, 0, 0]]], "list: give a numpy"),
        (None, "NoneType: give a numpy"),
        ("frame.jpg", "str: give a numpy"),
    ],
)
def test_what_is_no_frame_is_refused_in_one_line(frame: Any, says: str) -> None:
    for fit in ("stretch", "letterbox"):
        with pytest.raises(InputError, match=re.escape(says)) as caught:
            Preprocessor(settings_of(fit=fit)).prepare(frame)
        assert "\n" not in str(caught.value)


def test_grey_and_alpha_advice_works() -> None:
    grey, alpha = noise(5, 7)[..., 0], np.dstack([noise(5, 7), noise(5, 7)[..., 0]])
    preprocessor = Preprocessor(settings_of())
    preprocessor.prepare(np.dstack([grey] * 3))
    preprocessor.prepare(alpha[..., :3])


@pytest.mark.parametrize("color", ["BGR", "rgba", "", None, 3])
def test_unknown_color(color: Any) -> None:
    with pytest.raises(InputError, match="choose 'rgb' or 'bgr'"):
        Preprocessor(settings_of()).prepare(noise(5, 7), color)
