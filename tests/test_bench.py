"""`edgeseg bench`: the grid on the tiny bundle, cameras, cold starts, and a machine that is busy otherwise."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from edgeseg import cli
from edgeseg.benchmarks import bench as benching
from edgeseg.benchmarks import sampling
from edgeseg.benchmarks.bench import bench
from edgeseg.benchmarks.results import (
    Configuration,
    Frames,
    Host,
    Latency,
    Measurement,
    Noise,
    Results,
    read,
    save,
)
from edgeseg.benchmarks.sampling import fixed_rate
from edgeseg.benchmarks.start import measure_start
from edgeseg.bundle import Bundle
from edgeseg.calibration.datasets import open_dataset
from edgeseg.commands.bench import _lines
from edgeseg.errors import BackendError, BundleError, EdgesegError, InputError
from edgeseg.result import Segmentation
from edgeseg.testing import TINY, street_scene
from edgeseg.types import Image

SMALL = (90, 160)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Three images with labels of the tiny bundle's five classes."""
    folder = tmp_path / "data"
    for kind in ("images", "labels"):
        (folder / kind / "val").mkdir(parents=True)
    for seed in range(3):
        frame, classes = street_scene(seed, SMALL)
        cv2.imwrite(str(folder / f"images/val/{seed}.png"), frame)
        cv2.imwrite(str(folder / f"labels/val/{seed}.png"), np.minimum(classes, 4))
    return folder


def test_the_grid_is_measured_in_rounds_and_survives_the_file(tmp_path: Path, tiny_int8: Path) -> None:
    steps = list[str]()
    found = bench(
        tiny_int8, backends=["ort"], frame_size=SMALL, seconds=0.5, starts=False, command="x", progress=steps.append
    )
    names = [one.configuration.name for one in found.measurements]
    assert names == [f"ort cpu {precision} os{stride}" for stride in (8, 16) for precision in ("fp32", "int8")]
    rounds = {len(one.latency.rounds_ns) for one in found.measurements if one.latency}
    assert len(rounds) == 1
    for one in found.measurements:
        latency = one.latency
        assert latency is not None
        samples = dataclasses.astuple(latency)[:6]
        assert {len(part) for part in samples} == rounds
        assert all(min(part) > 0 for part in samples[:5])
        parts = zip(latency.preprocess_ns, latency.network_ns, latency.decode_ns, strict=True)
        assert all(sum(part) <= whole for part, whole in zip(parts, latency.frame_ns, strict=True))
        assert latency.rounds_ns == tuple(sorted(latency.rounds_ns))
        assert latency.rounds_ns[-1] >= 0.4e9 or min(rounds) == 12
        assert latency.warmup >= 6
        assert one.runtime.startswith("onnxruntime")
        assert one.graph_bytes > 6000
        assert one.start is one.accuracy is None
    assert (found.frames.height, found.frames.width, found.frames.source) == (*SMALL, "drawn scenes 64 to 67")
    assert [set(picture.masks) for picture in found.samples] == [set(names)] * 3
    assert found.host.fixed["runtimes"].startswith("onnxruntime")
    assert any(step.startswith("round 12 of 12") for step in steps)
    save(found, tmp_path / "out.json")
    assert read(tmp_path / "out.json") == found


def test_labelled_images_are_the_frames_and_tell_accuracy(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeseg.benchmarks.bench._RATE_S", 0.1)
    found = bench(
        TINY, output_strides=[8], backends=["ort", "simulate"], frame_size=SMALL, images=labelled, seconds=0.2,
        starts=False, rates=[50.0],
    )  # fmt: skip
    for one in found.measurements:
        assert one.accuracy is not None
        assert one.accuracy.images == 3
        assert one.accuracy.reference == "ort cpu fp32 os8"
        assert one.accuracy.agreement > 0.999
        assert [rate.hz for rate in one.rates] == [50]
    raw = {one.configuration.backend: len(one.latency.raw_ns) for one in found.measurements if one.latency}
    assert raw["ort"] > 0
    assert raw["simulate"] == 0  # it has no raw runner
    assert all(picture.label for picture in found.samples)
    assert found.frames.source == f"3 images of {labelled}, resized"
    low, high = found.measurements[0].accuracy.interval  # the same on both
    assert f"mIoU on 3 labelled images, ± {(high - low) / 2:.1f} or less at 95 %" in list(_lines(found))


def test_int8_judged_on_its_own_images_is_called_flattered(
    labelled: Path, tiny_int8: Path, tmp_path: Path, write_int8: Callable[..., Bundle]
) -> None:
    images = open_dataset(labelled, classes=Bundle.open(TINY).manifest.classes)
    first, second, _ = images.digests()
    ranges = json.dumps({"images": [first], "guard_images": [second]}).encode()
    graphs = {(16, "cpu"): (tiny_int8 / "os16-int8-cpu.onnx").read_bytes()}
    path = write_int8(TINY, tmp_path / "own.edgeseg", graphs, ranges).path
    for precision in ("int8", "fp32"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = bench(path, output_strides=[16], backends=["ort"], precisions=[precision], frame_size=SMALL,
                          images=images, seconds=0.1, starts=False)  # fmt: skip
        said = "Accuracy in int8 is flattered: 2 of the 3 images were used to calibrate it."
        assert [str(one.message) for one in caught] == [said] * (precision == "int8")
        assert found.method.startswith(said) == (precision == "int8")


def test_what_cannot_be_opened_says_so_beside_what_can() -> None:
    found = bench(TINY, output_strides=[16], backends=["ort"], precisions=["fp32", "fp16"], frame_size=SMALL,
                  seconds=0.1, starts=False)  # fmt: skip
    good, bad = found.measurements
    assert good.latency is not None
    assert bad.latency is None
    assert bad.failure == "backend ort computes fp32 or int8 on the CPU, not fp16: choose precision fp32"


@pytest.mark.parametrize(
    ("arguments", "kind", "told"),
    [
        ({"backends": ["gpu"]}, BackendError, "unknown backend 'gpu'"),
        ({"backends": []}, InputError, "backends is empty"),
        ({"output_strides": [4]}, BundleError, "no output stride 4: it has 8, 16"),
        ({"precisions": ["int8"]}, BundleError, "no output stride 8 in int8"),
        ({"precisions": ["int4"]}, InputError, "precision is 'int4': choose among"),
        ({"precisions": ["fp16"]}, BackendError, "nothing could be measured: backend ort computes fp32 or int8"),
        ({"threads": -1}, InputError, "threads is -1"),
        ({"seconds": float("nan")}, InputError, "seconds is nan"),
        ({"rates": [0.0]}, InputError, r"rate is 0.0: give frames per second"),
        ({"frame_size": (0, 5)}, InputError, r"frame_size is \(0, 5\)"),
        ({"images": "nowhere"}, InputError, "nowhere is missing"),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments: dict[str, object], kind: type[EdgesegError], told: str) -> None:
    with pytest.raises(kind, match=told) as caught:
        bench(TINY, **{"backends": ["ort"], "frame_size": SMALL, "starts": False, **arguments})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


class Sleeper:
    """A segmenter that takes so long and does nothing."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.seen = seconds, list[int]()

    def __call__(self, frame: Image) -> Segmentation | None:
        self.seen.append(int(frame[0, 0, 0]))
        time.sleep(self.seconds)
        return None


def test_a_slow_segmenter_misses_frames_and_always_takes_the_newest() -> None:
    frames = [np.full((1, 1, 3), index, np.uint8) for index in range(100)]
    slow = Sleeper(0.035)
    found = fixed_rate(slow, frames, 100, 0.5)  # type: ignore[arg-type]
    assert slow.seen.pop(0) == 0  # to warm up
    assert found.frames == 50
    assert found.missed == 50 - len(found.age_ns) == 50 - len(slow.seen)
    assert 30 <= found.missed < 50  # of four frames three, or more where the machine is busy, which ages show too
    assert slow.seen == sorted(set(slow.seen))
    assert min(found.age_ns) >= 35e6  # and what it waited for the one before, up to a period
    fast = fixed_rate(Sleeper(0.001), frames, 10, 0.5)  # type: ignore[arg-type]
    assert fast.frames == 5
    assert fast.missed <= 2  # none but for pauses of a tenth of a second
    assert min(fast.age_ns) >= 1e6
    # slower than all the camera's time: the next frame that it would take comes later, and no old one is kept for it
    stuck = fixed_rate(Sleeper(0.3), frames, 100, 0.2)  # type: ignore[arg-type]
    assert (stuck.frames, stuck.missed, len(stuck.age_ns)) == (20, 19, 1)
    assert 300e6 <= stuck.age_ns[0] < 400e6


def test_energy_is_of_the_frames_that_were_metered(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Sleeper(0.01)

    class Meter:
        name = "of the processor"

        def covers(self, device: str) -> bool:
            return device == "cpu"

        def millijoules(self, work: Callable[[], object]) -> float:
            assert slow.seen  # after a lead-in
            slow.seen.clear()
            work()
            return 600.0

    monkeypatch.setattr(benching, "_ENERGY_S", 0.1)
    frames = [np.zeros((1, 1, 3), np.uint8)] * 2
    for device in ("cpu", "gpu"):
        configuration = Configuration("any", device, 16, "fp32", "float")
        found = benching._energy(slow, frames, Meter(), configuration, lambda step: None)  # type: ignore[arg-type]
        assert found == (600 / len(slow.seen) if device == "cpu" else None)


def test_a_cold_start_is_measured_in_processes_of_their_own() -> None:
    found = measure_start(TINY, Configuration("ort", "cpu", 16, "fp32", "float"), SMALL)
    assert min(dataclasses.astuple(found)) > 0
    assert 20e6 < found.peak_bytes < 1e9
    with pytest.raises(BackendError, match=r"does not start in a process of its own: .*fp16") as caught:
        measure_start(TINY, Configuration("ort", "cpu", 16, "fp16", "float"), SMALL)
    assert "\n" not in str(caught.value)


@pytest.fixture
def busy() -> Iterator[None]:
    """A process that keeps a CPU busy."""
    with subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE) as one:
        assert one.stdout is not None
        one.stdout.readline()
        yield
        one.kill()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc")
def test_a_disturbed_run_is_called_noisy(busy: None) -> None:
    found = bench(TINY, output_strides=[16], backends=["ort"], frame_size=SMALL, seconds=1, starts=False)
    assert found.noise.noisy
    assert any(reason.startswith("other processes used") for reason in found.noise.reasons), found.noise


def test_the_command_prints_a_table_and_writes_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    arguments = ["bench", str(TINY), "--backend", "ort", "--frames", "90x160", "--seconds", "1", "--no-start"]
    assert cli.main([*arguments, "--output-stride", "16", "--json", str(out), "--report", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny, network 64x96, drawn scenes 64 to 67, 90x160, on ")
    assert re.split(r"  +", lines[1].strip())[-7:] == ["pre", "net", "dec", "raw", "whole/raw", "fps", "MB"]
    assert lines[2].startswith("ort cpu fp32 os16 ")
    assert lines[-2:] == [f"written to {out}", f"written to {page}"]
    assert lines[-3].startswith(("steady: differences above ", "this machine is too noisy for a 3% claim: "))
    assert read(out).measurements[0].configuration.name == "ort cpu fp32 os16"
    assert page.stat().st_size > 10_000


@pytest.mark.parametrize(("frames", "late"), [(44, ["p90", "max"]), (100, ["p99"])])
def test_a_row_is_a_line_of_a_terminal(frames: int, late: list[str]) -> None:
    rng = np.random.default_rng(frames)
    parts = [tuple((rng.uniform(0.8, 1.2, frames) * mean).astype(int)) for mean in (130e6, 1e6, 120e6, 2e6, 118e6)]
    latency = Latency(*parts, tuple(range(frames)), 6)
    configuration = Configuration("openvino", "cpu", 32, "int8", "cpu")
    one = Measurement(configuration, macs=1, graph_bytes=19_600_000, latency=latency)
    results = Results(
        "camvid", "", (360, 480), {}, Frames(1080, 1920, "drawn", ""), Host({}), Noise(0, False), "", "", "", (one,)
    )
    _, heads, row, *rest = _lines(results)
    assert re.split(r"  +", heads.strip())[1:-6] == [*late, "pre"]
    assert len(heads) == len(row) <= 120
    cells, values = re.split(r"  +", row), sorted(latency.frame_ns)
    ranks = [39, 43] if late == ["p90", "max"] else [98]
    assert cells[2 : 2 + len(late)] == [f"{values[rank] / 1e6:.1f}" for rank in ranks]
    assert rest[0].startswith("p90 and max instead of p99: 44 frames each") == (frames == 44)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--json", "nowhere/x.json"], "cannot write nowhere/x.json: there is no folder nowhere"),
        (["--report", "."], "cannot write .: it is a folder"),
        (["--json", str(TINY / "manifest.json")], "manifest.json exists, perhaps a run to compare with: "),
        (["--split", "val"], "are about --data: give that too"),
        (["--seconds", "nan"], "not a finite number"),
        (["--precision", ","], "precisions is empty"),
        (["--rate", "fast"], "'fast' is not a list of numbers"),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", str(TINY), "--backend", "ort", *arguments]) == 1
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_an_interrupted_run_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling, "sample", interrupt)
    out = tmp_path / "out.json"
    assert (
        cli.main(["bench", str(TINY), "--backend", "ort", "--frames", "90x160", "--no-start", "--json", str(out)])
        == 130
    )
    assert capsys.readouterr().err.strip() == "edgeseg: interrupted"
    assert not out.exists()
