"""Decode's two paths give the same bits, on any number of threads; a kernel that does not fit is refused."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseg import _native
from edgeseg._decode_numpy import RUN, Band, numpy_band, power
from edgeseg.decode import Decoded, Grid, Wants, _decode_with, decode, usable_cpus
from edgeseg.types import Region

ROWS, WHY = _native.kernel()
needs_kernel = pytest.mark.skipif(ROWS is None, reason=WHY)


def by_numpy(logits, size, grid=Grid(), wants=Wants(), threads=1) -> Decoded:  # noqa: B008
    return _decode_with(numpy_band, logits, size, grid=grid, wants=wants, threads=threads)


def by_kernel(logits, size, grid=Grid(), wants=Wants(), threads=1) -> Decoded:  # noqa: B008
    return _decode_with(
        functools.partial(_native.compiled_band, ROWS), logits, size, grid=grid, wants=wants, threads=threads
    )


def assert_same(a: Decoded, b: Decoded) -> None:
    assert np.array_equal(a.class_map, b.class_map)
    for one, other in ((a.confidence, b.confidence), (a.counts, b.counts)):
        assert (one is None) == (other is None)
        assert one is None or one.tobytes() == other.tobytes()


def smooth(classes: int, h: int, w: int, seed: int = 0) -> np.ndarray:
    """Like a network's: wide blobs, most cells uniform."""
    field = np.random.default_rng(seed).standard_normal((classes, h // 4 + 2, w // 4 + 2))
    return np.ascontiguousarray(np.kron(field, np.ones((4, 4)))[:, :h, :w] * 8, dtype=np.float32)


SPECIAL = np.array(
    [0, -0.0, 1, -1, 1e-45, -1e-45, 1e-39, 1e38, -1e38, 3e38, np.inf, -np.inf, np.nan, 1 + 1.2e-7, 1 - 6e-8], np.float32
)


@st.composite
def cases(draw):
    classes = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 21, 33, 255]))
    h, w = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["noise", "ties", "special", "close", "tiny", "spread", "masked"]))
    if kind == "ties":
        logits = rng.integers(-1, 2, (classes, h, w)).astype(np.float32)
    elif kind == "special":
        logits = rng.choice(SPECIAL, (classes, h, w))
    elif kind == "close":
        logits = (7 + rng.integers(-2, 3, (classes, h, w)) * np.float32(4.8e-7)).astype(np.float32)
    else:
        gain = {"noise": 3.0, "tiny": 1e-44, "spread": 200.0, "masked": 3.0}[kind]
        logits = (rng.standard_normal((classes, h, w)) * gain).astype(np.float32)
    if kind == "masked":
        logits[rng.integers(0, classes)] = -np.inf
    size = (draw(st.integers(1, 70)), draw(st.integers(1, 200)))
    region = draw(st.sampled_from([None, Region(3.0, -2.5, 40.0, 61.3, (48, 64)), Region(0, 0, 1, 1, (1, 1))]))
    labels = None
    if draw(st.booleans()):
        labels = tuple(int(v) for v in rng.integers(0, 256, 2 if classes == 1 else classes))
    wants = Wants(
        confidence=draw(st.booleans()),
        counts=draw(st.booleans()),
        unknown_below=draw(st.sampled_from([None, 0.0, 0.5, 1.0])),
        threshold=draw(st.sampled_from([0.5, 0.1, 0.9999])),
        labels=labels,
    )
    return logits, size, Grid(draw(st.booleans()), region), wants


@needs_kernel
@settings(max_examples=400, deadline=None)
@given(cases())
def test_both_paths_give_the_same_bits(case):
    logits, size, grid, wants = case
    expected = by_numpy(logits, size, grid, wants)
    assert_same(by_kernel(logits, size, grid, wants), expected)
    assert_same(by_kernel(logits, size, grid, wants, threads=3), expected)
    assert wants.counts == (expected.counts is not None)
    if wants.counts:
        assert np.array_equal(expected.counts, np.bincount(expected.class_map.ravel(), minlength=256))


@needs_kernel
@pytest.mark.parametrize("wants", [Wants(counts=True), Wants(confidence=True, unknown_below=0.4)])
@pytest.mark.parametrize("logits", [smooth(21, 32, 40), smooth(1, 32, 40), smooth(255, 9, 300)], ids=["21", "1", "255"])
@pytest.mark.parametrize("size", [(270, 481), (16, 33)])
def test_both_paths_give_the_same_bits_on_frames(logits, wants, size):
    assert_same(by_kernel(logits, size, wants=wants), by_numpy(logits, size, wants=wants))


@pytest.mark.parametrize("path", [by_numpy, pytest.param(by_kernel, marks=needs_kernel)])
@pytest.mark.parametrize("wants", [Wants(), Wants(confidence=True, counts=True)])
def test_threads_change_nothing(path, wants):
    logits = smooth(7, 20, 30)
    expected = path(logits, (301, 203), wants=wants)
    for threads in (2, 3, 4, 64):
        assert_same(path(logits, (301, 203), wants=wants, threads=threads), expected)


def test_concurrent_callers_get_their_own_results():
    frames = [smooth(5, 16, 16, seed) for seed in range(8)]
    wants = Wants(counts=True)
    expected = [decode(frame, (200, 220), wants=wants) for frame in frames]
    with ThreadPoolExecutor(4) as callers:
        for _ in range(5):
            jobs = [callers.submit(decode, frame, (200, 220), wants=wants, threads=2) for frame in frames]
            for job, one in zip(jobs, expected, strict=True):
                assert_same(job.result(), one)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_decodes_with_threads():
    logits = smooth(3, 16, 16)
    decode(logits, (256, 256), threads=2)
    child = os.fork()
    if child == 0:
        decode(logits, (256, 256), threads=2)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@needs_kernel
@pytest.mark.parametrize("rows", [1, RUN - 1, RUN, RUN + 1, 2 * RUN + 3])
@pytest.mark.parametrize("classes", [1, 2, 6, 23])
def test_both_paths_give_the_same_confidence_in_every_band(classes, rows):
    """Sequences start at a cell's first row, wherever the band of rows begins; every third cell here is steep."""
    logits = smooth(classes, 9, 13)
    logits[:, ::3, ::3] *= 20
    size, wants = (9 * rows, 13 * 5), Wants(confidence=True, unknown_below=0.7)
    expected = by_numpy(logits, size, wants=wants)

    def in_pieces(band: Band) -> Band:
        def write(first: int, last: int) -> None:
            for row in range(first, last, 7):
                band(row, min(row + 7, last))

        return write

    def pieces(plan, arrays):
        return in_pieces(_native.compiled_band(ROWS, plan, arrays))

    assert_same(_decode_with(pieces, logits, size, grid=Grid(), wants=wants, threads=1), expected)
    assert_same(by_kernel(logits, size, wants=wants, threads=3), expected)


def test_power_is_close_to_two_to_the_x():
    x = np.linspace(-119, 119, 100_001, dtype=np.float32)
    assert np.abs(power(x) / 2.0 ** x.astype(np.float64) - 1).max() < 1.1e-7
    assert power(np.zeros(1, np.float32))[0] == 1


def test_a_missing_kernel_leaves_the_numpy_path(tmp_path):
    rows, why = _native.load(tmp_path)
    assert rows is None
    assert str(tmp_path) in why
    assert "compiler" in why


def test_a_broken_kernel_is_refused(tmp_path):
    (tmp_path / f"_decode{EXTENSION_SUFFIXES[0]}").write_bytes(b"not a library")
    rows, why = _native.load(tmp_path)
    assert rows is None
    assert "cannot be loaded" in why


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_a_kernel_of_another_build_is_refused(tmp_path):
    built = tmp_path / f"_decode{EXTENSION_SUFFIXES[0]}"
    source = "int edgeseg_decode_abi(void) { return 1; } void edgeseg_decode_rows(void) {}"
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(built)]
    subprocess.run(command, input=source, text=True, check=True)
    rows, why = _native.load(tmp_path)
    assert rows is None
    assert "another build" in why


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_a_fresh_build_serves_and_has_no_warnings(tmp_path):
    source = Path(_native.__file__).with_name("_decode.c")
    if not source.exists():
        pytest.skip("installed without the source")
    built = tmp_path / f"_decode{EXTENSION_SUFFIXES[0]}"
    flags = ["-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, "-o", str(built), str(source)], check=True)
    rows, why = _native.load(tmp_path)
    assert why == str(built)
    logits = smooth(9, 12, 14)
    build = functools.partial(_native.compiled_band, rows)
    found = _decode_with(build, logits, (90, 100), grid=Grid(), wants=Wants(), threads=1)
    assert_same(found, by_numpy(logits, (90, 100)))


def test_counts_usable_cpus():
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)
