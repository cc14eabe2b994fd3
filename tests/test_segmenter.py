"""A Segmenter from the outside: right masks, from any thread, in any order of calls."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

import edgeseg
from edgeseg.bundle import Bundle
from edgeseg.decode import class_map
from edgeseg.errors import BackendError, BundleError, DeviceError, GoldenError, InputError
from edgeseg.testing import TINY, street_scene

SIZES = [(64, 96), (360, 480), (75, 40), (481, 640)]
FRAMES = [street_scene(seed, (96, 128))[0] for seed in range(3)]
FRAMES = [cv2.resize(frame, (width, height)) for frame in FRAMES for height, width in SIZES]


@pytest.fixture(scope="module", params=["ort", "openvino"])
def segmenter(request: pytest.FixtureRequest) -> edgeseg.Segmenter:
    return edgeseg.load(TINY, backend=request.param)


def expected(frame: np.ndarray, output_stride: int = 16) -> np.ndarray:
    """The pipeline written down again from public pieces, with onnx.reference-checked logits from ONNX Runtime."""
    import onnxruntime

    bundle = Bundle.open(TINY)
    path = bundle.path / bundle.variant(output_stride, "fp32").file
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batch = cv2.resize(frame, (96, 64), interpolation=cv2.INTER_LINEAR)[None]
    logits = session.run(None, {"pixels": batch})[0][0]
    return class_map(logits, frame.shape[:2])


@pytest.mark.parametrize("index", range(len(FRAMES)))
def test_mask_at_the_frames_own_size(segmenter: edgeseg.Segmenter, index: int) -> None:
    frame = FRAMES[index]
    result = segmenter(frame)
    assert result.class_map.dtype == np.uint8
    assert result.class_map.shape == frame.shape[:2]
    assert np.mean(result.class_map == expected(frame)) > 0.9999
    assert segmenter(np.ascontiguousarray(frame[..., ::-1]), color="bgr").class_map.tobytes() == (
        result.class_map.tobytes()
    )


def test_golden_masks(segmenter: edgeseg.Segmenter) -> None:
    bundle = Bundle.open(TINY)
    golden = bundle.golden(bundle.variant(16, "fp32"))
    np.testing.assert_array_equal(segmenter(golden.frame).class_map, golden.class_map)


def test_eight_threads_one_segmenter(segmenter: edgeseg.Segmenter) -> None:
    right = [segmenter(frame).class_map for frame in FRAMES]
    start = threading.Barrier(8)

    def work(number: int) -> bool:
        start.wait()
        order = np.random.default_rng(number).permutation(np.repeat(np.arange(len(FRAMES)), 5))
        return all(np.array_equal(segmenter(FRAMES[i]).class_map, right[i]) for i in order)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_results_do_not_share_memory(segmenter: edgeseg.Segmenter) -> None:
    first = segmenter(FRAMES[0])
    kept = first.class_map.copy()
    segmenter(255 - FRAMES[0])
    np.testing.assert_array_equal(first.class_map, kept)


def test_map_is_in_order_and_takes_few_ahead(segmenter: edgeseg.Segmenter) -> None:
    taken = 0

    def frames() -> object:
        nonlocal taken
        for frame in FRAMES * 3:
            taken += 1
            yield frame

    for index, result in enumerate(segmenter.map(frames())):  # type: ignore[arg-type]
        assert taken <= index + 3
        np.testing.assert_array_equal(result.class_map, segmenter(FRAMES[index % len(FRAMES)]).class_map)
    assert index + 1 == len(FRAMES) * 3


def test_map_raises_a_frames_error_in_its_turn(segmenter: edgeseg.Segmenter) -> None:
    frames = [FRAMES[0], FRAMES[1], FRAMES[2][..., 0], FRAMES[3]]
    results = segmenter.map(frames)
    next(results)
    next(results)
    with pytest.raises(InputError, match="grey"):
        next(results)


@pytest.mark.parametrize("ahead", [1, 3])
def test_map_holds_no_result_back(segmenter: edgeseg.Segmenter, ahead: int) -> None:
    """A camera that gives its next frame only after the last result was seen would hang, were one held back."""
    seen = threading.Semaphore(1)

    def camera() -> Iterator[np.ndarray]:
        for frame in FRAMES:
            assert seen.acquire(timeout=20), "the result is being held back until the next frame"
            yield frame

    count = 0
    for result in segmenter.map(camera(), ahead=ahead):
        assert result.class_map.shape == FRAMES[count].shape[:2]
        count += 1
        seen.release()
    assert count == len(FRAMES)


@pytest.mark.parametrize("ahead", [1, 4])
def test_a_camera_that_fails_loses_no_finished_frame(segmenter: edgeseg.Segmenter, ahead: int) -> None:
    def camera() -> Iterator[np.ndarray]:
        yield from FRAMES[:3]
        raise OSError("unplugged")

    results = segmenter.map(camera(), ahead=ahead)
    for frame in FRAMES[:3]:
        assert next(results).class_map.shape == frame.shape[:2]
    with pytest.raises(OSError, match="unplugged"):
        next(results)


def test_map_and_batch_take_what_one_frame_takes(segmenter: edgeseg.Segmenter) -> None:
    one = segmenter(FRAMES[1], confidence=True, counts=True, unknown_below=0.5)
    for (other,) in (
        list(segmenter.map(FRAMES[1:2], confidence=True, counts=True, unknown_below=0.5)),
        segmenter.batch(FRAMES[1:2], confidence=True, counts=True, unknown_below=0.5),
    ):
        np.testing.assert_array_equal(other.class_map, one.class_map)
        np.testing.assert_array_equal(other.confidence, one.confidence)  # type: ignore[arg-type]
        assert other.pixel_counts == one.pixel_counts
    with pytest.raises(InputError, match="ahead is 0"):
        segmenter.map(FRAMES, ahead=0)


def test_overlay_keeps_the_frames_channel_order(segmenter: edgeseg.Segmenter) -> None:
    rgb = FRAMES[1]
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    overlay = segmenter(bgr, color="bgr").overlay(bgr)
    np.testing.assert_array_equal(overlay[..., ::-1], segmenter(rgb).overlay(rgb))


def test_it_says_what_it_is(segmenter: edgeseg.Segmenter) -> None:
    assert segmenter.input_size == (64, 96)
    assert segmenter.output_stride == 16
    assert [info.name for info in segmenter.classes] == ["ground", "wall", "sky", "plant", "thing"]
    assert "64x96, 5 classes" in repr(segmenter)
    assert repr(segmenter(FRAMES[0])).startswith("<Segmentation 64x96, 5 classes")


def test_map_can_be_left_early(segmenter: edgeseg.Segmenter) -> None:
    before = threading.active_count()
    for _ in segmenter.map(iter(FRAMES * 100)):
        break
    assert threading.active_count() <= before + 2


def test_batch_equals_single_calls(segmenter: edgeseg.Segmenter) -> None:
    results = segmenter.batch(FRAMES, counts=True)
    for frame, result in zip(FRAMES, results, strict=True):
        np.testing.assert_array_equal(result.class_map, segmenter(frame).class_map)
        assert sum((result.pixel_counts or {}).values()) == result.class_map.size
    assert segmenter.batch([]) == []


def test_confidence_counts_and_unknown(segmenter: edgeseg.Segmenter) -> None:
    frame = FRAMES[1]
    plain = segmenter(frame)
    assert plain.confidence is None
    assert plain.pixel_counts is None
    result = segmenter(frame, confidence=True, counts=True)
    assert result.confidence is not None
    assert result.pixel_counts is not None
    assert 1 / 5 - 1e-6 <= result.confidence.min() <= result.confidence.max() <= 1
    names = [info.name for info in result.classes]
    counted = {name: int(np.sum(result.class_map == index)) for index, name in enumerate(names)}
    assert result.pixel_counts == counted
    limit = float(np.median(result.confidence))
    unsure = segmenter(frame, unknown_below=limit)
    np.testing.assert_array_equal(unsure.class_map, np.where(result.confidence < limit, 255, result.class_map))


def test_subset_and_merged_classes() -> None:
    frame = FRAMES[1]
    with edgeseg.load(TINY, backend="ort") as segmenter:
        full = segmenter(frame).class_map
    present = [int(index) for index in np.unique(full)]
    names = [info.name for info in Bundle.open(TINY).manifest.classes]
    kept = names[present[0]]
    with edgeseg.load(TINY, backend="ort", classes=[kept]) as segmenter:
        np.testing.assert_array_equal(segmenter(frame).class_map, np.where(full == present[0], present[0], 255))
    groups = {"first": names[:2], "second": names[3]}
    with edgeseg.load(TINY, backend="ort", classes=groups) as segmenter:
        result = segmenter(frame, counts=True)
    wanted = np.full_like(full, 255)
    wanted[full <= 1], wanted[full == 3] = 0, 1
    np.testing.assert_array_equal(result.class_map, wanted)
    assert [info.name for info in result.classes] == ["first", "second"]
    assert result.pixel_counts is not None
    assert result.pixel_counts["first"] == int(np.sum(wanted == 0))


def test_timings_account_for_the_whole_call(segmenter: edgeseg.Segmenter) -> None:
    result = segmenter(FRAMES[1])
    times = result.times
    assert 0 < times.preprocess_ns + times.network_ns + times.decode_ns <= times.total_ns
    assert segmenter.timings.frames >= 1
    assert segmenter.timings.network_ns > 0


def test_closed_says_so() -> None:
    with edgeseg.load(TINY, backend="ort") as segmenter:
        segmenter(FRAMES[0])
    segmenter.close()
    with pytest.raises(BackendError, match="closed"):
        segmenter(FRAMES[0])


def test_choice_is_told() -> None:
    assert edgeseg.load(TINY).choice == (
        "openvino on cpu, fp32, output stride 16 (first that works of openvino, ort for cpu)"
    )
    assert (
        edgeseg.load(TINY, backend="ort", output_stride=8).choice
        == "ort on cpu, fp32, output stride 8 (backend as asked)"
    )


def test_wrong_requests_name_what_there_is() -> None:
    with pytest.raises(BundleError, match="no output stride 4: it has 8, 16"):
        edgeseg.load(TINY, output_stride=4)
    with pytest.raises(BundleError, match=r"int8: it has 8 fp32, 16 fp32; .*edgeseg calibrate"):
        edgeseg.load(TINY, precision="int8")
    with pytest.raises(InputError, match="fp64"):
        edgeseg.load(TINY, precision="fp64")  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="toaster"):
        edgeseg.load(TINY, device="toaster")
    with pytest.raises(InputError, match="no class 'car'"):
        edgeseg.load(TINY, classes=["car"])
    with pytest.raises(InputError, match="threads is -1"):
        edgeseg.load(TINY, threads=-1)
    with pytest.raises(BundleError, match="no bundle at"):
        edgeseg.load("/no/where")


def test_a_runtime_that_computes_something_else_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden frame at load, against a backend whose answers are finite, plausible and wrong."""
    from edgeseg import registry
    from edgeseg.testing import FakeBackend

    monkeypatch.setattr(FakeBackend, "self_test", True)
    monkeypatch.setitem(registry.BUILTIN, "fake", registry._Entry("edgeseg.testing", "FakeBackend", "", ""))
    monkeypatch.setitem(registry.AUTO_ORDER, "cpu", ("fake", "ort"))
    with pytest.raises(GoldenError, match=r"fake 1 on none does not compute what torch did"):
        edgeseg.load(TINY, backend="fake")
    with pytest.warns(RuntimeWarning, match="fell back from fake to ort"), edgeseg.load(TINY) as segmenter:
        assert segmenter.info.backend == "ort"
    with edgeseg.load(TINY, backend="fake", self_test=False) as segmenter:
        assert segmenter.info.backend == "fake"


def test_the_cache_is_used_and_never_needed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = edgeseg.load(TINY, backend="openvino", cache=cache)(FRAMES[0]).class_map
    blobs = [path for path in cache.rglob("*") if path.is_file()]
    assert blobs
    again = edgeseg.load(TINY, backend="openvino", cache=cache)(FRAMES[0]).class_map
    assert blobs == [path for path in cache.rglob("*") if path.is_file()]
    none = edgeseg.load(TINY, backend="openvino", cache=None)(FRAMES[0]).class_map
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, none)
    # as a power cut leaves it: the right length, a page of zeros (OpenVINO loads it and computes something else)
    for path in blobs:
        data = bytearray(path.read_bytes())
        at = len(data) // 2
        data[at : at + 16384] = bytes(len(data[at : at + 16384]))
        path.write_bytes(data)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        healed = edgeseg.load(TINY, backend="openvino", cache=cache)(FRAMES[0]).class_map
    np.testing.assert_array_equal(first, healed)
    assert all("damaged" in str(warning.message) for warning in told)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="is a file: name a directory"):
        edgeseg.load(TINY, cache=tmp_path / "file")
