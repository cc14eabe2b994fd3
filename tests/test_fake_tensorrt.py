"""The fake TensorRT is as strict as the real one: names, arguments, failures, memory."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseg.testing import TINY, street_scene

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from edgeseg.backends.base import Options
from edgeseg.backends.ort import OrtBackend
from edgeseg.types import Model

FAKE = Path(__file__).with_name("fake_tensorrt.py")
VERSIONS = ("8.5.3", "8.6.1", "10.3", "10.13", "10.16", "11.4")
GRAPH = TINY / "os16-fp32.onnx"
INT8 = TINY.with_name("camvid.edgeseg") / "os16-int8-tensorrt.onnx"


@pytest.fixture
def make(fake_cudart: Path) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location("fake_tensorrt", FAKE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.VERSIONS == VERSIONS
    return lambda version, **options: module.fake_tensorrt(version, fake_cudart, **options)


def logger_of(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.said.append(message)

    return Log()


def legacy(version: str) -> int:
    """Whether networks need EXPLICIT_BATCH, which is bit 0."""
    return int(version.startswith("8"))


class Job:
    """A network read from a file, and everything to build it with."""

    def __init__(self, trt: Any, path: Path = GRAPH, flags: tuple[str, ...] = (), network: int | None = None) -> None:
        self.trt, self.logger = trt, logger_of(trt)
        self.builder = trt.Builder(self.logger)
        self.network = self.builder.create_network(legacy(trt.__version__) if network is None else network)
        self.parser = trt.OnnxParser(self.network, self.logger)
        self.parsed = self.parser.parse_from_file(str(path))
        self.config = self.builder.create_builder_config()
        for flag in flags:
            self.config.set_flag(getattr(trt.BuilderFlag, flag))

    def plan(self) -> Any:
        return self.builder.build_serialized_network(self.network, self.config)


@pytest.fixture
def dynamic(tmp_path: Path) -> Path:
    model = onnx.load(GRAPH)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, tmp_path / "dynamic.onnx")
    return tmp_path / "dynamic.onnx"


def test_names_are_those_of_each_version(make: Callable[..., Any]) -> None:
    lists = {
        version: json.loads((FAKE.parent / "tensorrt_api" / f"{version}.json").read_text()) for version in VERSIONS
    }
    assert [lists[version]["version"].startswith(version) for version in VERSIONS] == [True] * 6
    ten, eleven, eight = make("10.3"), make("11.4"), make("8.5.3")
    for refused, text in (
        (lambda: ten.ICudaEngine.num_bindings, "TensorRT 10.3 has no ICudaEngine.num_bindings"),
        (lambda: eight.Builder.build_engine_with_config, "TensorRT 8.5.3 has no Builder.build_engine_with_config"),
        (lambda: eight.IProgressMonitor, "TensorRT 8.5.3 has no IProgressMonitor"),
        (lambda: eight.NetworkDefinitionCreationFlag.STRONGLY_TYPED, "no NetworkDefinitionCreationFlag.STRONGLY_TYPED"),
        (lambda: eleven.BuilderFlag.FP16, "TensorRT 11.4 has no BuilderFlag.FP16"),
        (lambda: eleven.NetworkDefinitionCreationFlag.EXPLICIT_BATCH, "has no NetworkDefinitionCreationFlag.EXPLICIT"),
        (lambda: Job(eleven).builder.platform_has_fast_fp16, "TensorRT 11.4 has no Builder.platform_has_fast_fp16"),
        (lambda: Job(eleven).parser.supports_model(b""), "TensorRT 11.4 has no OnnxParser.supports_model"),
        (lambda: setattr(Job(ten).config, "max_workspace_size", 1), "has no IBuilderConfig.max_workspace_size"),
        (lambda: setattr(Job(eight).config, "builder_optimization_level", 5), "no IBuilderConfig.builder_optimization"),
        (lambda: setattr(Job(ten).config, "progress_monitr", None), "has no IBuilderConfig.progress_monitr"),
        (lambda: setattr(Job(ten).builder, "num_DLA_cores", 1), "Builder.num_DLA_cores is read-only"),
        (lambda: Job(eleven).config.set_compute_capability, "has no IBuilderConfig.set_compute_capability"),
    ):
        with pytest.raises(AttributeError, match=text):
            refused()  # type: ignore[no-untyped-call]
    assert not hasattr(Job(eight).config, "hardware_compatibility_level")
    assert hasattr(Job(make("8.6.1")).config, "hardware_compatibility_level")
    assert (int(eight.BuilderFlag.TF32), int(ten.BuilderFlag.TF32)) == (7, 6)
    with pytest.raises(NotImplementedError, match=r"IBuilderConfig.get_preview_feature is real"):
        Job(ten).config.get_preview_feature(ten.PreviewFeature.PROFILE_SHARING_0806)


def test_arguments_are_those_of_each_version(make: Callable[..., Any]) -> None:
    trt = make("10.3")
    job = Job(trt)
    for wrong in (
        lambda: job.config.set_flag(0),
        lambda: job.config.set_flag(trt.BuilderFlag.FP16, True),
        lambda: job.config.set_memory_pool_limit(pool=trt.MemoryPoolType.WORKSPACE, size=1),
        lambda: job.builder.create_network(1.0),
        lambda: job.parser.parse_from_file(GRAPH),
        trt.Builder,
        lambda: trt.Builder(logger=None),
        trt.IBuilderConfig,
        lambda: setattr(job.config, "default_device_type", 1),
        lambda: 1 << trt.BuilderFlag.FP16,
    ):
        with pytest.raises(TypeError):
            wrong()  # type: ignore[no-untyped-call]
    job.config.set_memory_pool_limit(pool=trt.MemoryPoolType.WORKSPACE, pool_size=1 << 20)
    assert job.config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 1 << 20

    class Forgetful(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match="must be called"):
        Forgetful()


@pytest.mark.parametrize("version", VERSIONS)
def test_builds_and_runs_bit_identically_to_onnx_runtime(
    version: str, make: Callable[..., Any], fake_cudart: Path
) -> None:
    trt, cuda = make(version, threads=1), ctypes.CDLL(str(fake_cudart))
    plan = Job(trt).plan()
    assert bytes(plan) == bytes(Job(trt).plan())
    engine = trt.Runtime(logger_of(trt)).deserialize_cuda_engine(plan)
    pixels, logits = (engine.get_tensor_name(index) for index in range(engine.num_io_tensors))
    assert engine.get_tensor_mode(logits) == trt.TensorIOMode.OUTPUT
    assert engine.get_tensor_dtype(pixels) == trt.DataType.UINT8 == trt.uint8
    assert engine.get_tensor_shape(pixels) == (1, 64, 96, 3)
    context = engine.create_execution_context()
    frame = street_scene(3, (64, 96))[0][None].copy()
    found = np.zeros(tuple(context.get_tensor_shape(logits)), np.float32)
    stream = ctypes.c_void_p()
    assert cuda.cudaStreamCreateWithFlags(ctypes.byref(stream), 1) == 0
    assert context.set_tensor_address(pixels, frame.ctypes.data)
    assert not context.execute_async_v3(stream.value)
    assert not context.set_tensor_address("nothing", 1)
    assert context.set_tensor_address(logits, found.ctypes.data)
    assert context.execute_async_v3(stream.value)
    assert not found.any()  # it runs when the stream does
    assert context.set_tensor_address(logits, 0)  # and where it was to write when enqueued
    del engine
    assert cuda.cudaStreamSynchronize(stream) == 0
    model = Model(GRAPH, "0" * 64, "fp32", "float", (64, 96), (5, 4, 6))
    wanted = OrtBackend().open(model, "cpu", Options(threads=1), None).run(frame)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_cannot_be_built_is_refused_by_return_values(
    version: str, make: Callable[..., Any], dynamic: Path, tmp_path: Path
) -> None:
    trt = make(version)
    if legacy(version):
        job = Job(trt, network=0)
        assert not job.parsed
        assert "EXPLICIT_BATCH" in job.parser.get_error(0).desc()
    job = Job(trt, tmp_path / "none.onnx")
    assert (job.parsed, job.parser.num_errors, job.plan()) == (False, 1, None)
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    assert not Job(trt, tmp_path / "broken.onnx").parsed
    job = Job(trt, INT8.with_name("os16-int8-cpu.onnx"))
    assert not job.parsed
    assert "zero point" in job.parser.get_error(job.parser.num_errors - 1).desc()

    assert Job(trt, dynamic).plan() is None
    job = Job(trt, dynamic)
    profile = job.builder.create_optimization_profile()
    assert job.config.add_optimization_profile(profile) == -1
    with pytest.raises(ValueError, match="inconsistent"):
        profile.set_shape("pixels", (2, 64, 96, 3), (1, 64, 96, 3), (1, 64, 96, 3))
    profile.set_shape("pixels", (1, 64, 96, 3), (2, 64, 96, 3), (3, 64, 96, 3))
    assert job.config.add_optimization_profile(profile) == 0
    engine = trt.Runtime(job.logger).deserialize_cuda_engine(job.plan())
    context = engine.create_execution_context()
    assert tuple(engine.get_tensor_shape("logits")) == (-1, 5, 4, 6)
    assert context.infer_shapes() == ["pixels"]
    assert not context.set_input_shape("pixels", (4, 64, 96, 3))
    assert "does not satisfy any optimization profiles" in job.logger.said[-1]
    assert context.set_input_shape("pixels", (3, 64, 96, 3))
    assert context.get_tensor_shape("logits") == (3, 5, 4, 6)

    if not version.startswith("11"):
        assert Job(trt, INT8, ("FP16",)).plan() is None
        assert Job(trt, INT8, ("FP16", "INT8")).plan() is not None
    half = Job(trt, INT8.with_name("os16-int8-tensorrt-fp16.onnx"))
    assert half.parsed == (not legacy(version))  # float32 scales until then
    assert (half.plan() is not None) == version.startswith("11")
    if version == "10.3":
        strong = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        assert Job(trt, flags=("FP16",), network=strong).plan() is None
        assert Job(trt, network=strong).plan() is not None


def test_plans_of_others_are_refused(make: Callable[..., Any]) -> None:
    ten, later = make("10.3"), make("10.13")
    plan = bytes(Job(ten).plan())
    logger = logger_of(later)
    runtime = later.Runtime(logger)
    for bad in (b"", b"plan", plan[:-1], plan[:100] + b"!" + plan[101:], plan):
        assert runtime.deserialize_cuda_engine(bad) is None
    assert "Version tag does not match" in logger.said[-1]
    compatible = Job(ten, flags=("VERSION_COMPATIBLE",)).plan()
    assert runtime.deserialize_cuda_engine(compatible) is None
    runtime.engine_host_code_allowed = True
    assert runtime.deserialize_cuda_engine(compatible) is not None
    older = make("8.6.1")
    assert older.Runtime(older.Logger()).deserialize_cuda_engine(compatible) is None


def test_timing_cache_monitor_and_dla(make: Callable[..., Any]) -> None:
    trt = make("10.16", dla_cores=2)
    job = Job(trt, flags=("FP16",))
    assert job.config.create_timing_cache(b"foreign") is None
    cache = job.config.create_timing_cache(b"")
    assert job.config.set_timing_cache(cache, False)
    empty, plan = bytes(cache.serialize()), bytes(job.plan())
    full = bytes(job.config.get_timing_cache().serialize())
    assert len(full) > len(empty)
    assert bytes(job.config.create_timing_cache(full).serialize()) == full
    assert Job(make("10.13")).config.create_timing_cache(full) is None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc,name-defined]
        def __init__(self, steps: int) -> None:
            trt.IProgressMonitor.__init__(self)
            self.left, self.depth = steps, 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.depth += 1

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.left -= 1
            return self.left > 0

        def phase_finish(self, phase_name: str) -> None:
            self.depth -= 1

    for steps, done in ((3, False), (1000, True)):
        job.config.progress_monitor = monitor = Monitor(steps)
        assert (job.plan() is not None, monitor.depth) == (done, 0)
    job.config.default_device_type = trt.DeviceType.DLA
    job.config.DLA_core = 1
    assert job.plan() is None
    job.config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    on_dla = job.plan()
    assert bytes(on_dla) != plan
    assert trt.Runtime(job.logger).deserialize_cuda_engine(on_dla) is not None
    job.config.DLA_core = 2
    assert job.plan() is None


def test_crashes_where_the_real_one_does(make: Callable[..., Any], fake_cudart: Path) -> None:
    code = f"""
import ctypes, sys; sys.path.insert(0, {str(FAKE.parent)!r})
from fake_tensorrt import Crash, fake_tensorrt
trt = fake_tensorrt("11.4", {str(fake_cudart)!r}, crash_on_corrupt=True)
logger = trt.Logger()
try:
    trt.Builder(logger)
except TypeError as error:
    assert "nullptr" in str(error)
    try:
        trt.Runtime(logger)
    except Crash as crash:
        sys.exit(str(crash))
trt.Runtime(logger).deserialize_cuda_engine(b"corrupt")
"""
    run = [sys.executable, "-c", code]
    assert subprocess.run(run, check=False, capture_output=True).returncode == -6
    environment = {"FAKE_CUDART_ERROR": "35"}
    done = subprocess.run(run, check=False, capture_output=True, text=True, env=environment)
    assert "Runtime() without a CUDA driver is a segmentation fault" in done.stderr


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_deleted_context_is_seen_in_the_results(make: Callable[..., Any], fake_cudart: Path) -> None:
    trt, cuda = make("10.13"), ctypes.CDLL(str(fake_cudart))
    context = trt.Runtime(logger_of(trt)).deserialize_cuda_engine(Job(trt).plan()).create_execution_context()
    frame, found = np.zeros((1, 64, 96, 3), np.uint8), np.zeros((1, 5, 4, 6), np.float32)
    for name, array in (("pixels", frame), ("logits", found)):
        assert context.set_tensor_address(name, array.ctypes.data)
    stream = ctypes.c_void_p()
    assert cuda.cudaStreamCreateWithFlags(ctypes.byref(stream), 1) == 0
    assert context.execute_async_v3(stream.value)
    del context
    assert cuda.cudaStreamSynchronize(stream) == 0
    assert np.isnan(found).all()
