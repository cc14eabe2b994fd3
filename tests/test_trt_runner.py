"""The whole TensorRT runner against the names of six real versions, computing with ONNX Runtime on raw pointers."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import gc
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import edgeseg
from edgeseg import registry
from edgeseg.backends import trt_build
from edgeseg.backends.base import BuildOptions, Options
from edgeseg.backends.cudart import Cuda
from edgeseg.backends.engines import SUFFIX, EngineStore, read_key
from edgeseg.backends.ort import OrtBackend
from edgeseg.backends.trt_session import TensorRTSession
from edgeseg.benchmarks.grid import open_cell
from edgeseg.benchmarks.raw import open_raw
from edgeseg.benchmarks.results import Configuration
from edgeseg.bundle import Bundle, describe_file, write
from edgeseg.cli import main
from edgeseg.compiling import compile_bundle
from edgeseg.errors import BackendError, BackendMissing, DeviceError, EdgesegError, GoldenError, InputError
from edgeseg.loading import EMBEDDED, load_variant
from edgeseg.testing import TINY, BackendConformance, street_scene

from .fake_tensorrt import VERSIONS, _pack, _unpack, fake_tensorrt

FRAMES = [street_scene(seed, (90, 120))[0] for seed in range(3)]
STRONG = ("11.4",)


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def install(fake_cudart: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes `import tensorrt` find the fake of a version; in the end nothing of CUDA's may be left."""

    def put(version: str, **settings: Any) -> Any:
        module = fake_tensorrt(version, fake_cudart, **settings)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        return module

    return put


@pytest.fixture
def nothing_left(fake_cudart: Path) -> Iterator[None]:
    yield  # the library reads its settings when it is first opened, which is the test's affair
    gc.collect()
    assert ctypes.CDLL(str(fake_cudart)).fakeLive() == 0, "memory, streams, events or graphs are left"


def masks(segmenter: edgeseg.Segmenter, frames: list[Any] = FRAMES) -> list[bytes]:
    return [segmenter(frame).class_map.tobytes() for frame in frames]


def logits_of(segmenter: edgeseg.Segmenter, batch: Any) -> Any:
    return segmenter._open_session().run(batch)


@pytest.mark.parametrize("integrated", ["0", "1"])
@pytest.mark.parametrize("stride", [8, 16])
def test_masks_are_those_of_onnx_runtime(
    version: str,
    stride: int,
    integrated: str,
    install: Callable[..., Any],
    nothing_left: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_CUDART_INTEGRATED", integrated)
    install(version)
    with edgeseg.load(TINY, backend="ort", output_stride=stride) as oracle:
        wanted = masks(oracle)
        exact = logits_of(oracle, Bundle.open(TINY).golden(oracle.variant).frame[None])
    with edgeseg.load(TINY, backend="tensorrt", device="gpu", output_stride=stride, cache=None) as segmenter:
        assert masks(segmenter) == wanted
        assert masks(segmenter) == wanted  # now from the CUDA graph
        found = logits_of(segmenter, Bundle.open(TINY).golden(segmenter.variant).frame[None])
        assert found.tobytes() == exact.tobytes()
        assert segmenter.info.details["memory"] == ("mapped" if integrated == "1" else "pinned")
        assert segmenter.info.runtime.startswith(f"TensorRT {version}")


def test_int8_runs_bit_for_bit(version: str, install: Callable[..., Any]) -> None:
    install(version)
    bundle = Bundle.open(EMBEDDED, verify=False)
    variant = bundle.variant(32, "int8", "tensorrt")
    wanted = masks(load_variant(bundle, variant, backend="simulate"), FRAMES[:1])
    with load_variant(bundle, variant, backend="tensorrt", device="gpu") as segmenter:
        assert masks(segmenter, FRAMES[:1]) == wanted
        assert segmenter.info.precision == "int8"


def test_fp16_is_a_flag_or_a_graph(version: str, install: Callable[..., Any], tmp_path: Path) -> None:
    install(version)
    with edgeseg.load(TINY, backend="tensorrt", device="gpu", precision="fp16", cache=tmp_path) as segmenter:
        found = masks(segmenter)
    halves = list(tmp_path.rglob("*.half.onnx"))
    assert len(halves) == (version in STRONG)
    if not halves:  # by a flag, which the fake takes note of and computes in float32
        assert found == masks(edgeseg.load(TINY, backend="ort"))
        return
    model = dataclasses.replace(Bundle.open(TINY).model(Bundle.open(TINY).variant(16, "fp32")), path=halves[0])
    with edgeseg.load(TINY, backend="ort") as oracle:
        oracle._session = OrtBackend().open(model, "cpu", Options(), None)
        assert found == masks(oracle)


def test_a_damaged_half_graph_is_written_again(install: Callable[..., Any], tmp_path: Path) -> None:
    install("11.4")
    settings: dict[str, Any] = {"backend": "tensorrt", "device": "gpu", "precision": "fp16", "cache": tmp_path}
    wanted = masks(edgeseg.load(TINY, **settings))
    (half,) = tmp_path.rglob("*.half.onnx")
    whole = half.read_bytes()
    half.write_bytes(whole[:-100])
    for engine in tmp_path.rglob("*.engine"):
        engine.unlink()
    assert masks(edgeseg.load(TINY, **settings)) == wanted
    assert half.read_bytes() == whole


class TestConformance(BackendConformance):
    @pytest.fixture(autouse=True)
    def _installed(self, install: Callable[..., Any]) -> None:
        install("10.3")

    device = "gpu.0"

    def make_backend(self) -> Any:
        return registry.get("tensorrt")


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TINY for any batch size: the first dimension of its graphs a symbol."""
    bundle = Bundle.open(TINY)
    files = {name: (TINY / name).read_bytes() for name in bundle.manifest.files}
    variants = []
    for variant in bundle.manifest.variants:
        model = onnx.load(TINY / variant.file, load_external_data=False)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "N"
        del model.graph.value_info[:]
        files[variant.file] = model.SerializeToString()
        variants.append(dataclasses.replace(variant, batch=None))
    named = {name: describe_file(data) for name, data in files.items()}
    manifest = dataclasses.replace(bundle.manifest, variants=tuple(variants), files=named)
    return write(tmp_path_factory.mktemp("dynamic") / "dynamic.edgeseg", manifest, files).path


def test_any_batch_up_to_the_largest(
    version: str, install: Callable[..., Any], nothing_left: None, dynamic: Path
) -> None:
    install(version)
    wanted = masks(edgeseg.load(TINY, backend="ort"))
    build = BuildOptions(max_batch=3)
    with edgeseg.load(dynamic, backend="tensorrt", device="gpu", build=build) as segmenter:
        for count in (3, 3, 3, 1, 2, 2, 2, 3, 1):  # graphs are captured, launched and dropped on the way
            assert [one.class_map.tobytes() for one in segmenter.batch(FRAMES[:count])] == wanted[:count]
        many = [one.class_map.tobytes() for one in segmenter.batch([*FRAMES, *FRAMES, FRAMES[0]])]
        assert many == [*wanted, *wanted, wanted[0]]  # in runs of three
        assert masks(segmenter) == wanted


def test_a_static_graph_has_its_own_batch(install: Callable[..., Any]) -> None:
    install("10.3")
    edgeseg.load(TINY, backend="tensorrt", device="gpu").close()  # what is in the cache changes nothing
    with pytest.raises(BackendError, match="made for batch 1, not for up to 4: export it with --dynamic-batch"):
        edgeseg.load(TINY, backend="tensorrt", device="gpu", build=BuildOptions(max_batch=4))


@pytest.mark.parametrize(
    "wrong",
    [{"max_batch": 0}, {"max_batch": None}, {"max_batch": "2"}, {"workspace_bytes": 1000}, {"workspace_bytes": 1 << 70},
     {"workspace_bytes": 2e6}, {"optimization_level": 6}, {"optimization_level": True}, {"targets": "sm_86"},
     {"targets": ("SM86",)}, {"targets": (86,)}],
)  # fmt: skip
def test_build_options_make_sense(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(InputError, match=f"^{name} is .*: give "):
        BuildOptions(**wrong)


class OnGpu:
    """A tensor in the fake GPU's memory, as torch and cupy show theirs."""

    def __init__(self, cudart: Path, pixels: Any) -> None:
        cuda = Cuda.load(cudart)
        self._memory, stream = cuda.device_memory(pixels.nbytes), cuda.stream()
        cuda.copy(self._memory.pointer, pixels.ctypes.data, pixels.nbytes, stream)
        cuda.synchronize(stream)
        cuda.destroy_stream(stream)
        self.shape, self.dtype = pixels.shape, pixels.dtype
        address = {"data": (self._memory.pointer, False), "version": 3, "strides": None, "stream": None}
        self.__cuda_array_interface__ = {"shape": pixels.shape, "typestr": "|u1", **address}


@pytest.mark.parametrize("integrated", ["0", "1"])
def test_frames_on_the_gpu(
    integrated: str,
    version: str,
    install: Callable[..., Any],
    fake_cudart: Path,
    nothing_left: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_CUDART_INTEGRATED", integrated)
    install(version)
    golden = Bundle.open(TINY).golden(Bundle.open(TINY).variant(16, "fp32"))
    with edgeseg.load(TINY, backend="tensorrt", device="gpu") as segmenter:
        wanted = segmenter(golden.frame).class_map
        there = OnGpu(fake_cudart, golden.frame)
        for _ in range(3):
            np.testing.assert_array_equal(segmenter(there).class_map, wanted)  # type: ignore[arg-type]
        dark = OnGpu(fake_cudart, np.zeros_like(golden.frame))
        assert not np.array_equal(segmenter(dark).class_map, wanted)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"lies on a GPU, uint8 of shape \(32, 48, 3\), rgb: give "):
            segmenter(OnGpu(fake_cudart, golden.frame[::2, ::2].copy()))  # type: ignore[arg-type]
    with edgeseg.load(TINY, backend="ort") as segmenter, pytest.raises(InputError, match="ort on cpu reads the host's"):
        segmenter(there)  # type: ignore[arg-type]
    del there, dark


def test_removed_calls_fail(install: Callable[..., Any]) -> None:
    """The lists bite: each of these was right in some version, and the runner may use none of them everywhere."""
    for version, use in (
        ("10.3", lambda trt: trt.ICudaEngine.num_bindings),
        ("10.3", lambda trt: trt.IBuilderConfig.max_workspace_size),
        ("11.4", lambda trt: trt.BuilderFlag.FP16),
        ("11.4", lambda trt: trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH),
        ("8.5.3", lambda trt: trt.IProgressMonitor),
    ):
        with pytest.raises(AttributeError, match=f"TensorRT {version} has no "):
            use(install(version))


@pytest.mark.parametrize(
    ("version", "removed"),
    [("10.3", "execute_async_v2"), ("11.4", "set_binding_shape"), ("8.5.3", "get_debug_state")],
)
def test_a_runner_that_used_a_removed_call_fails(
    version: str, removed: str, install: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(version)
    monkeypatch.setattr(TensorRTSession, "_enqueue", lambda self, count: getattr(self._context, removed)(self._stream))
    with pytest.raises(AttributeError, match=f"TensorRT {version} has no IExecutionContext.{removed}"):
        edgeseg.load(TINY, backend="tensorrt", device="gpu")


def test_options_reach_the_builder_or_are_refused(version: str, install: Callable[..., Any]) -> None:
    install(version, dla_cores=1)
    every = {"optimization_level": 5, "hardware_compatible": True, "version_compatible": True}
    for name, value in every.items():
        build = BuildOptions(workspace_bytes=1 << 24, **{name: value})  # type: ignore[arg-type]
        if version == "8.5.3":
            with pytest.raises(BackendError, match=f"TensorRT 8.5.3.* has no option {name}"):
                edgeseg.load(TINY, backend="tensorrt", device="gpu", build=build)
        else:
            with edgeseg.load(TINY, backend="tensorrt", device="gpu", build=build) as segmenter:
                assert masks(segmenter) == masks(edgeseg.load(TINY, backend="ort"))
    with pytest.raises(BackendError, match=r"compiles for the GPU of its own machine, not for sm_86"):
        edgeseg.load(TINY, backend="tensorrt", device="gpu", build=BuildOptions(targets=("sm_86",)))
    with pytest.raises(BackendError, match="backend ort takes no build options"):
        edgeseg.load(TINY, backend="ort", build=BuildOptions(max_batch=2))


def test_the_dla(version: str, install: Callable[..., Any]) -> None:
    install(version, dla_cores=1)
    assert "dla.0" in [device.name for device in registry.get("tensorrt").devices()]
    with edgeseg.load(TINY, backend="tensorrt", device="dla.0") as segmenter:
        assert segmenter.info.precision == "fp16"  # it computes nothing finer
        assert segmenter.info.device == "dla.0"
    with pytest.raises(BackendError, match="a DLA computes fp16 and int8, not fp32"):
        edgeseg.load(TINY, backend="tensorrt", device="dla.0", precision="fp32")
    if version not in STRONG:
        bundle = Bundle.open(EMBEDDED, verify=False)
        with pytest.raises(BackendError, match="takes no explicit quantization"):
            load_variant(bundle, bundle.variant(32, "int8", "tensorrt"), backend="tensorrt", device="dla.0")
    with pytest.raises(DeviceError, match=r"no device dla\.1 .*: this machine has dla\.0 to dla\.0"):
        edgeseg.load(TINY, backend="tensorrt", device="dla.1")
    with pytest.raises(DeviceError, match=r"no device 'gpu\.3' here: there is gpu\.0"):
        edgeseg.load(TINY, backend="tensorrt", device="gpu.3")
    with pytest.raises(DeviceError, match="runs on gpu, gpu"):
        edgeseg.load(TINY, backend="tensorrt", device="npu")


def engines(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(f"*{SUFFIX}") if path.parent.name != "timing"]


def test_the_second_load_builds_nothing(
    version: str, install: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = install(version)
    load: Any = functools.partial(edgeseg.load, TINY, backend="tensorrt", device="gpu", cache=tmp_path)
    wanted = masks(load())
    (engine,) = engines(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("edgeseg.backends.trt.build", pytest.fail)
        assert masks(load()) == wanted
    load(output_stride=8)
    assert len(engines(tmp_path)) == 2
    assert engine.exists()
    other = next(one for one in VERSIONS if one != trt.__version__[: len(one)])
    install(other)  # another TensorRT: another engine, the first one kept
    load()
    assert len(engines(tmp_path)) == 3


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:300] + bytes([data[300] ^ 4]) + data[301:],
        lambda data: b"not an engine at all",
        lambda data: b"",
        lambda data: data + data,
    ],
)
def test_a_damaged_engine_is_built_again(
    harm: Callable[[bytes], bytes], install: Callable[..., Any], tmp_path: Path
) -> None:
    install("10.3", crash_on_corrupt=True)
    load: Any = functools.partial(edgeseg.load, TINY, backend="tensorrt", device="gpu", cache=tmp_path)
    wanted = masks(load())
    (engine,) = engines(tmp_path)
    whole = engine.read_bytes()
    engine.write_bytes(harm(whole))
    with pytest.warns(RuntimeWarning, match="unusable .*: it is built again"):
        assert masks(load()) == wanted
    assert engine.read_bytes() == whole


def test_an_engine_that_computes_something_else_is_built_again(install: Callable[..., Any], tmp_path: Path) -> None:
    """Whole, well signed, and wrong: the golden frame tells."""
    install("10.3")
    load: Any = functools.partial(edgeseg.load, TINY, backend="tensorrt", device="gpu", cache=tmp_path)
    wanted = masks(load())
    change_plan(tmp_path, scaled)
    with pytest.warns(RuntimeWarning, match="recompiled os16-fp32.onnx: what .* held was damaged"):
        assert masks(load()) == wanted


@pytest.mark.parametrize("foreign", [lambda plan: plan[:-1], lambda plan: b"another maker's plan", "other version"])
def test_an_engine_that_tensorrt_refuses_is_built_again(
    foreign: Any, install: Callable[..., Any], tmp_path: Path
) -> None:
    load: Any = functools.partial(edgeseg.load, TINY, backend="tensorrt", device="gpu", cache=tmp_path)
    install("10.13")
    load()
    (other,) = engines(tmp_path)
    another = EngineStore(other.parent).find(read_key(other))
    other.unlink()
    install("10.3")
    wanted = masks(load())
    change_plan(tmp_path, (lambda plan: another) if foreign == "other version" else foreign)
    with pytest.warns(RuntimeWarning, match=r"the engine of os16-fp32.onnx .* is unusable .*: it is built again"):
        assert masks(load()) == wanted
    assert masks(load()) == wanted  # and kept


def change_plan(cache: Path, change: Callable[[bytes], Any]) -> None:
    """Replace what a cache holds by another plan, well packed."""
    (engine,) = engines(cache)
    store, key = EngineStore(engine.parent), read_key(engine)
    plan = store.find(key)
    assert plan is not None
    store.add(key, change(plan))


def scaled(plan: bytes) -> bytes:
    """The plan of a network whose convolutions' weights are double."""
    opened = _unpack(plan)
    assert opened is not None
    model = onnx.load_from_string(opened[1])
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4:
            value = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value * 2, tensor.name))
    return _pack(opened[0], model.SerializeToString(deterministic=True))


def test_a_wrong_build_is_dropped_and_not_repeated(
    install: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime is to blame: what else the cache holds of this network stays."""
    install("10.3")
    load: Any = functools.partial(edgeseg.load, TINY, backend="tensorrt", device="gpu", cache=tmp_path)
    load()
    (good,) = engines(tmp_path)
    built, real = [], trt_build.build

    def wrong(*arguments: Any, **named: Any) -> Any:
        built.append(1)
        made = real(*arguments, **named)
        return dataclasses.replace(made, plan=scaled(made.plan))

    monkeypatch.setattr("edgeseg.backends.trt.build", wrong)
    with pytest.raises(GoldenError):
        load(precision="fp16")
    assert engines(tmp_path) == [good]
    assert built == [1]


def test_an_engine_tuned_otherwise_serves(install: Callable[..., Any], tmp_path: Path) -> None:
    """Compiled with little memory, found without saying so; who asks for a tuning gets it."""
    install("10.3")
    load: Any = functools.partial(edgeseg.load, TINY, backend="tensorrt", device="gpu", cache=tmp_path)
    load(build=BuildOptions(workspace_bytes=1 << 24, optimization_level=1))
    assert load().kept.found
    assert load(build=BuildOptions(optimization_level=1)).kept.found
    assert not load(build=BuildOptions(optimization_level=5)).kept.found
    assert not load(build=BuildOptions(hardware_compatible=True)).kept.found
    assert not load(build=BuildOptions(version_compatible=True)).kept.found
    install("10.13")  # a newer one of the same major version
    assert load(build=BuildOptions(version_compatible=True)).kept.found
    assert not load().kept.found


INTERRUPTED = """
import contextlib, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs begin with it ignored
sys.path.insert(0, sys.argv[1])
from tests.fake_tensorrt import fake_tensorrt
from edgeseg.backends import trt
from edgeseg.cli import main
told = []

def interrupt(step):
    told.append(step)
    if len(told) == 2:  # the first is told before the build
        os.kill(os.getpid(), signal.SIGINT)

@contextlib.contextmanager
def status():
    yield interrupt

trt.status = status
sys.modules["tensorrt"] = fake_tensorrt("10.3", os.environ["EDGESEG_CUDART"])
code = main(["compile", sys.argv[2], "--backend", "tensorrt", "--cache", sys.argv[3]])
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
sys.exit(code if len(told) == 2 else f"it went on: {told}")
"""


def test_ctrl_c_ends_a_build(fake_cudart: Path, tmp_path: Path) -> None:
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, root, str(TINY), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.strip()) == (130, "edgeseg: interrupted")
    assert not engines(tmp_path)


def test_the_threads_gpu_is_left_as_it_was(
    install: Callable[..., Any], fake_cudart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CUDART_DEVICES", "2")
    install("10.3")
    with edgeseg.load(TINY, backend="tensorrt", device="gpu.1") as segmenter:
        assert Cuda.load(fake_cudart).current() == 0
        assert masks(segmenter) == masks(edgeseg.load(TINY, backend="ort"))
        assert Cuda.load(fake_cudart).current() == 0


def test_without_tensorrt_the_install_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    for arguments in (
        ["compile", str(TINY), "--backend", "tensorrt", "--for", "sm_86"],
        ["compile", str(TINY), "--backend", "tensorrt", "--device", "dla.0"],
        ["segment", "-o", "x.png", "--bundle", str(TINY), "--backend", "tensorrt"],
        ["verify", str(TINY), "--backend", "tensorrt"],
    ):
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert "backend tensorrt needs the package tensorrt: on a Jetson it comes with JetPack" in said
    assert "needs the package" in registry.status("tensorrt").reason


@pytest.mark.parametrize("content", ["", "import no_such_library", "raise OSError('libnvinfer.so.10: cannot open')"])
def test_a_broken_tensorrt_is_said_so(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # so that what is imported below is gone afterwards
    del sys.modules["tensorrt"]
    monkeypatch.setenv("EDGESEG_TENSORRT", "tensorrt")
    with pytest.raises(BackendMissing, match=r"the package tensorrt is here but cannot be used \(.*\): "):
        edgeseg.load(TINY, backend="tensorrt")
    monkeypatch.setenv("EDGESEG_TENSORRT", "yes")
    with pytest.raises(BackendError, match="EDGESEG_TENSORRT is 'yes': set it to tensorrt or tensorrt_rtx"):
        edgeseg.load(TINY, backend="tensorrt")


def test_no_driver_is_said_before_any_tensorrt_object(
    install: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Crash, which the fake raises where the real one ends the process, would pass every `except`."""
    monkeypatch.setenv("FAKE_CUDART_ERROR", "35")
    install("8.6.1")
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        edgeseg.load(TINY, backend="tensorrt", device="gpu")
    for arguments in (
        ["segment", "-o", "x.png", "--bundle", str(TINY), "--backend", "tensorrt", "--device", "gpu"],
        ["compile", str(TINY), "--backend", "tensorrt", "--device", "gpu"],
        ["verify", str(TINY), "--backend", "tensorrt", "--device", "gpu"],
    ):
        assert main(arguments) == 1
        assert "no NVIDIA driver" in "".join(capsys.readouterr())
    (device,) = registry.get("tensorrt").devices()
    assert "no NVIDIA driver" in device.reason


@pytest.mark.parametrize(
    "call",
    ["cudaMalloc:1", "cudaMalloc:2", "cudaHostAlloc:1", "cudaHostAlloc:2", "cudaStreamCreateWithFlags:1",
     "cudaMemcpyAsync:1", "cudaMemcpyAsync:2", "cudaStreamSynchronize:1", "cudaSetDevice:2"],
)  # fmt: skip
def test_a_failing_call_is_one_line_and_leaks_nothing(
    call: str, install: Callable[..., Any], nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CUDART_FAIL", call)
    install("10.3")
    with pytest.raises(BackendError, match=r"^CUDA cannot .*\(error \d+\)$"):
        edgeseg.load(TINY, backend="tensorrt", device="gpu", cache=None)


@pytest.mark.parametrize(
    "call", ["cudaStreamBeginCapture:1", "cudaStreamEndCapture:1", "cudaGraphInstantiateWithFlags:1"]
)
def test_without_graphs_it_enqueues(
    call: str, install: Callable[..., Any], nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = masks(edgeseg.load(TINY, backend="ort"))
    monkeypatch.setenv("FAKE_CUDART_FAIL", call)
    install("10.3")
    with edgeseg.load(TINY, backend="tensorrt", device="gpu") as segmenter:
        assert masks(segmenter) == wanted
        assert masks(segmenter) == wanted


def test_threads_take_turns(install: Callable[..., Any], nothing_left: None) -> None:
    install("10.3")
    wanted = masks(edgeseg.load(TINY, backend="ort"))
    with edgeseg.load(TINY, backend="tensorrt", device="gpu") as segmenter:
        found: list[list[bytes]] = []
        threads = [threading.Thread(target=lambda: found.append(masks(segmenter))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [wanted] * 4
        assert [one.class_map.tobytes() for one in segmenter.map(FRAMES)] == wanted


@pytest.mark.parametrize(("version", "device", "precision"), [("8.5.3", "gpu", "fp32"), ("11.4", "dla.0", "fp16")])
def test_the_engine_alone(
    version: str, device: str, precision: str, install: Callable[..., Any], nothing_left: None, tmp_path: Path
) -> None:
    """What benchmarks call raw: the session's engine by TensorRT's own calls, without another build."""
    install(version, dla_cores=1)
    bundle, configuration = Bundle.open(TINY), Configuration("tensorrt", device, 16, precision, "float")
    opened = open_cell(bundle, configuration, FRAMES[0], tmp_path).contender
    assert opened is not None
    assert len(engines(tmp_path)) == 1
    raw: Any = opened.raw
    batches = [street_scene(seed, (64, 96))[0][None] for seed in range(2)]
    wanted = [logits_of(opened.segmenter, batch).tobytes() for batch in batches]
    graph, like, kept = bundle.file(opened.segmenter.variant.file), opened.segmenter.info, opened.segmenter.kept
    opened.segmenter.close()  # it has a context, memory and a stream of its own
    for batch, logits in zip(batches, wanted, strict=True):
        raw.feed(batch)
        for _ in range(2):
            raw()
            assert raw.logits().tobytes() == logits
    assert open_raw(graph, like, batches[0]) is None  # nothing was kept
    change_plan(tmp_path, lambda plan: plan[:-1])
    with pytest.raises(BackendError, match=rf"TensorRT {version}.* alone cannot load the engine again: .*magic"):
        open_raw(graph, like, batches[0], kept)
    engines(tmp_path)[0].unlink()
    with pytest.raises(BackendError, match=r"cannot read the engine .*\.engine again"):
        open_raw(graph, like, batches[0], kept)
    del raw, opened


def test_closed_is_closed(install: Callable[..., Any], nothing_left: None) -> None:
    install("10.3")
    session = registry.get("tensorrt").open(
        Bundle.open(TINY).model(Bundle.open(TINY).variant(16, "fp32")), "gpu", Options(), None
    )
    session.close()
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run(np.zeros((1, 64, 96, 3), np.uint8))


def test_compile_and_verify(
    version: str, install: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(version)
    arguments = ["compile", str(TINY), "--backend", "tensorrt", "--device", "gpu", "--cache", str(tmp_path), "--json"]
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)["compiled"]
    assert [(one["output_stride"], one["built"], one["proven"]) for one in first] == [(8, True, True), (16, True, True)]
    assert main(arguments) == 0
    assert [one["built"] for one in json.loads(capsys.readouterr().out)["compiled"]] == [False, False]
    assert main(["verify", str(TINY), "--backend", "tensorrt", "--device", "gpu"]) == 0
    assert main(["cache", "list", "--cache", str(tmp_path)]) == 0
    assert "tensorrt" in capsys.readouterr().out


def test_bad_requests_are_refused(install: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="backend openvino does not compile for sm_86"):
        compile_bundle(TINY, backend="openvino", build=BuildOptions(targets=("sm_86",)))
    install("10.3")
    with pytest.raises(BackendError, match="nothing was kept of what backend ort compiled"):
        compile_bundle(TINY, backend="ort")
    with pytest.raises(EdgesegError, match="no output stride 32"):
        compile_bundle(TINY, backend="tensorrt", device="gpu", output_strides=[32])
