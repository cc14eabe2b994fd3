"""Shared by all tests: where real data lies, and a cache that is not the user's."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeseg.bundle import Answers, Bundle, describe_file, pack_golden
from edgeseg.bundle import write as write_bundle
from edgeseg.manifest import TOLERANCES, Calibration, Variant
from edgeseg.testing import TINY, street_scene
from edgeseg.types import Encoding, Image, Model

DATA = Path(os.environ.get("EDGESEG_DATA", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with CamVid and real weights; without it, the test is skipped and says so."""
    if not (DATA / "data" / "camvid").is_dir():
        pytest.skip(f"no data at {DATA}: set EDGESEG_DATA to the folder that holds data/camvid and models")
    return DATA


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def _built_cudart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("no C compiler for the fake libcudart: install gcc or clang")
    library = tmp_path_factory.mktemp("cudart") / "libcudart.so"  # each xdist worker has a folder of its own
    source = Path(__file__).with_name("fake_cudart.c")
    done = subprocess.run(
        [compiler, "-std=gnu11", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-pthread", source, "-o", library],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode and os.name == "nt":
        pytest.skip("the fake libcudart needs POSIX")
    assert not done.returncode, done.stderr
    return library


@pytest.fixture
def fake_cudart(_built_cudart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A libcudart on host memory, of this test alone, that `Cuda.load` finds; see fake_cudart.c for its settings."""
    library = tmp_path / "libcudart.so"  # another file is another library: its own state, its own reading of settings
    shutil.copy(_built_cudart, library)
    monkeypatch.setenv("EDGESEG_CUDART", str(library))
    return library


@pytest.fixture(scope="session")
def write_int8() -> Callable[..., Bundle]:
    """Writes a bundle again with int8 graphs beside the others, their golden answers simulated."""
    pytest.importorskip("onnxruntime")
    from edgeseg.calibration.verification import simulated_answers

    def write(base: Path, path: Path, graphs: dict[tuple[int, Encoding], bytes], ranges: bytes | None = None) -> Bundle:
        bundle = Bundle.open(base)
        manifest, size = bundle.manifest, bundle.manifest.preprocess.input_size
        variants = [*manifest.variants]
        answers: dict[tuple[int, Encoding], Answers] = {}
        for variant in variants:
            found = [bundle.golden(variant, index) for index in range(manifest.golden.frames)]
            answers[variant.output_stride, "float"] = [(one.logits, one.class_map) for one in found]
        files = {name: (base / name).read_bytes() for name in manifest.files}
        for (stride, encoding), graph in graphs.items():
            name = f"os{stride}-int8-{encoding}.onnx"
            files[name] = graph
            calibration = None if ranges is None else Calibration("ranges.json", "minmax")
            shape = bundle.variant(stride, "fp32").logits_shape
            variants.append(Variant(stride, "int8", encoding, name, shape, calibration=calibration))
            (path.parent / name).write_bytes(graph)
            model = Model(path.parent / name, "0" * 64, "int8", encoding, size, shape)
            answers[stride, encoding] = simulated_answers(model, manifest, [one.frame for one in found])
            (path.parent / name).unlink()
        files["golden.npz"] = pack_golden([one.frame for one in found], answers)
        if ranges is not None:
            files["ranges.json"] = ranges
        new = dataclasses.replace(
            manifest,
            variants=tuple(variants),
            files={name: describe_file(data) for name, data in files.items()},
            golden=dataclasses.replace(manifest.golden, tolerances=TOLERANCES),
        )
        return write_bundle(path, new, files, overwrite=True)

    return write


@pytest.fixture(scope="session")
def tiny_int8(tmp_path_factory: pytest.TempPathFactory, write_int8: Callable[..., Bundle]) -> Path:
    """TINY with int8 variants by ONNX Runtime's own quantizer: cpu at 8 and 16, tensorrt at 16. Not to be changed."""
    onnx = pytest.importorskip("onnx")
    quantization = pytest.importorskip("onnxruntime.quantization")
    folder = tmp_path_factory.mktemp("int8")

    class Scenes(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self.frames = iter([street_scene(seed, (64, 96))[0] for seed in range(20, 24)])

        def get_next(self) -> dict[str, Image] | None:
            return next(({"pixels": frame[None]} for frame in self.frames), None)

    graphs = {}
    kinds: list[tuple[int, Encoding]] = [(8, "cpu"), (16, "cpu"), (16, "tensorrt")]
    for stride, encoding in kinds:
        onnx.save(onnx.load(TINY / f"os{stride}-fp32.onnx"), folder / "float.onnx")
        signed = encoding == "tensorrt"
        quantization.quantize_static(
            folder / "float.onnx",
            folder / "int8.onnx",
            Scenes(),
            per_channel=True,
            activation_type=quantization.QuantType.QInt8 if signed else quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"ActivationSymmetric": signed},
        )
        graphs[stride, encoding] = (folder / "int8.onnx").read_bytes()
    ranges = json.dumps({"images": ["0" * 64], "guard_images": ["1" * 64]}).encode()
    return write_int8(TINY, folder / "tiny-int8.edgeseg", graphs, ranges).path
