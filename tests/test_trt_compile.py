"""NVIDIA's compiler on every network that edgeseg exports: TensorRT for RTX compiles ahead of time, without a GPU."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

onnx = pytest.importorskip("onnx", reason="int8 graphs are written with onnx")
trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx==1.7.1.116: NVIDIA's compiler")
torch = pytest.importorskip("torch", reason="torch is for export; its CPU build is here for Python 3.11 only")

from torch import nn

from edgeseg.backends.base import BuildOptions, Options
from edgeseg.backends.trt_build import BuildJob, Built, build
from edgeseg.backends.trt_layers import CONVOLUTION
from edgeseg.benchmarks.networks import calm
from edgeseg.bundle import Bundle, describe_file, write
from edgeseg.calibration import table
from edgeseg.calibration.encode import encode_tensorrt
from edgeseg.calibration.network import prepare, read_network
from edgeseg.calibration.ranges import Range
from edgeseg.calibration.rounding import round_weights
from edgeseg.calibration.writing import encoded
from edgeseg.cli import main
from edgeseg.errors import BackendError
from edgeseg.loading import EMBEDDED
from edgeseg.models import deeplabv3, unet
from edgeseg.sources.torch_source import TorchSource
from edgeseg.surgery.facts import copy
from edgeseg.surgery.half import to_half, to_typed_fp16
from edgeseg.surgery.means import with_pooled_means
from edgeseg.testing import TINY
from edgeseg.types import Encoding, Model, Precision, Preprocess

SIZE, HALF = (64, 96), (0.5, 0.5, 0.5)
TARGETS = ("sm_86", "sm_89")
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": lambda: deeplabv3("mobilenet_v2", num_classes=5),
    "mobilenet_v3": lambda: deeplabv3("mobilenet_v3_large", num_classes=5),
    "resnet50": lambda: deeplabv3("resnet50", num_classes=5),
    "plus": lambda: deeplabv3("mobilenet_v2", num_classes=5, decoder="plus"),
    "subpixel": lambda: deeplabv3("mobilenet_v2", num_classes=5, decoder="subpixel"),
    "unet": lambda: unet(num_classes=5, base_channels=16),
}
CASES = [*((name, stride) for name in NETWORKS if name != "unet" for stride in (8, 16, 32)), ("unet", 1)]
GRAPHS: list[tuple[Precision, Encoding]] = [
    ("fp32", "float"),
    ("fp16", "float"),
    ("int8", "tensorrt"),
    ("int8", "tensorrt_fp16"),
]
EVERYTHING = bool(os.environ.get("EDGESEG_EVERYTHING"))
"""Else the strides that differ from 16 in dilations only are compiled in one form: minutes less in CI."""


def exported(name: str, stride: int, *, dynamic_batch: bool = False) -> onnx.ModelProto:
    """The float graph that `edgeseg.export` writes; TensorRT 8 reads no mean in it otherwise than as a pooling."""
    network = NETWORKS[name]().eval()
    calm(network)
    source = TorchSource(network, Preprocess(SIZE, HALF, HALF), dynamic_batch=dynamic_batch)
    graph = with_pooled_means(next(source.stages(None if stride == 1 else (stride,))).graph())
    assert not any(node.op_type == "ReduceMean" for node in graph.graph.node)
    return graph


def written(graph: onnx.ModelProto, precision: Precision, encoding: Encoding) -> onnx.ModelProto:
    """The graph in this form. Any range will do, as the compiler does not look at it."""
    if precision == "fp32":
        return graph
    if precision == "fp16":
        return to_half(copy(graph))
    network = prepare(copy(graph))
    weights = {
        layer.name: round_weights(*network.weights(layer), None, second_order=False, correct_bias=False)
        for layer in network.layers
    }
    int8 = encode_tensorrt(network, defaultdict(lambda: Range(-4, 4, 4)), weights)
    return to_typed_fp16(int8) if encoding == "tensorrt_fp16" else int8


def with_any_batch(graph: onnx.ModelProto) -> onnx.ModelProto:
    """What an export with a dynamic batch differs by where nothing in the network speaks of the batch."""
    free = copy(graph)
    for value in (free.graph.input[0], free.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del free.graph.value_info[:]
    return free


def compiled(graph: onnx.ModelProto, precision: Precision, encoding: Encoding, **build_options: Any) -> Built:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        onnx.save(graph, path)
        dims = graph.graph.input[0].type.tensor_type.shape.dim
        size = (dims[1].dim_value, dims[2].dim_value)
        model = Model(path, "0" * 64, precision, encoding, size, (5, *size), dims[0].dim_value or None)
        options = BuildOptions(**{"targets": TARGETS, **build_options})
        return build(trt, BuildJob(model, Options(precision, build=options)))


def quantized(graph: onnx.ModelProto) -> list[str]:
    """The convolutions whose input and weights are levels."""
    levels = {name for node in graph.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return sorted(n.name for n in graph.graph.node if n.op_type == "Conv" and {*n.input[:2]} <= levels)


def int8_convolutions(built: Built) -> list[str]:
    return sorted(layer.name for layer in built.layers if (layer.kind, layer.precision) == (CONVOLUTION, "int8"))


def shapes_of(built: Built) -> list[tuple[str, str, str, int]]:
    """Layers without their names, which number the compiler's objects."""
    return [(layer.kind, layer.precision, layer.writes, layer.macs) for layer in built.layers]


@pytest.mark.parametrize(("name", "stride"), CASES)
def test_every_network_compiles(name: str, stride: int) -> None:
    """In every form, with batch 1 and any: all that is quantized, and only that, becomes an int8 convolution."""
    graph = exported(name, stride)
    if stride in (8, 32) and not EVERYTHING:
        form = written(graph, "int8", "tensorrt")
        assert int8_convolutions(compiled(form, "int8", "tensorrt")) == quantized(form) != []
        return
    # the decoder of "plus" resizes to (1, ...) where the batch is fixed: it is exported again
    free = exported(name, stride, dynamic_batch=True) if name == "plus" else with_any_batch(graph)
    for precision, encoding in GRAPHS:
        form = written(graph, precision, encoding)
        built = compiled(form, precision, encoding)
        convolutions = sum(node.op_type == "Conv" for node in form.graph.node)
        assert int8_convolutions(built) == quantized(form)
        assert len(quantized(form)) == (convolutions - 1 if precision == "int8" else 0)  # the classifier stays float
        if stride in (1, 16) and (EVERYTHING or encoding == "tensorrt"):
            assert compiled(form, precision, encoding).plan == built.plan
        any_batch = written(free, precision, encoding)
        assert int8_convolutions(compiled(any_batch, precision, encoding, max_batch=4)) == quantized(any_batch)


def test_plans_for_any_batch_differ_by_names_only() -> None:
    """Names in them number the compiler's objects by their addresses."""
    graph = exported("unet", 1, dynamic_batch=True)
    for precision, encoding in GRAPHS:
        form = written(graph, precision, encoding)
        first, second = (compiled(form, precision, encoding, max_batch=4) for _ in range(2))
        assert shapes_of(first) == shapes_of(second)
        assert abs(len(first.plan) - len(second.plan)) < 1000


def test_any_batch_is_the_only_difference() -> None:
    fixed, free = (exported("unet", 1, dynamic_batch=dynamic).graph for dynamic in (False, True))
    assert [(n.op_type, *n.attribute) for n in fixed.node] == [(n.op_type, *n.attribute) for n in free.node]


def test_the_embedded_bundle_compiles() -> None:
    bundle = Bundle.open(EMBEDDED)
    for variant in bundle.manifest.variants:
        if variant.encoding == "cpu":
            continue
        path = bundle.path / variant.file
        model = Model(path, "0" * 64, variant.precision, variant.encoding, (360, 480), variant.logits_shape)
        job = BuildJob(model, Options(variant.precision, build=BuildOptions(targets=TARGETS)))
        built = build(trt, job)
        wanted = quantized(onnx.load(path, load_external_data=False))
        assert len(wanted) == (0 if variant.encoding == "float" else 62)
        assert int8_convolutions(built) == wanted
        assert build(trt, job).plan == built.plan


def test_layers_left_in_float_are_not_counted() -> None:
    bundle = Bundle.open(EMBEDDED)
    network = read_network(bundle, bundle.variant(16, "fp32"))
    found = table.read(bundle, {16: network})[16]
    names = [layer.name for layer in network.layers if not layer.is_head]
    for kept in ([], names[7:8], names[::3]):
        graph = encoded(found, "tensorrt", "minmax", kept)
        counted = int8_convolutions(compiled(to_typed_fp16(graph), "int8", "tensorrt_fp16"))
        assert counted == quantized(graph)
        assert len(counted) == len(names) - len(kept)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Compiled once, found for one of its targets, and again for another that it was not compiled for."""
    arguments = ["compile", "--backend", "tensorrt", "--output-stride", "32", "--cache", str(tmp_path), "--json"]

    def run(targets: str, *more: str) -> dict[str, Any]:
        assert main([*arguments, "--for", targets, *more]) == 0
        (one,) = json.loads(capsys.readouterr().out)["compiled"]
        return dict(one)

    first = run("sm_86,sm_89", "--precision", "int8")
    assert (first["built"], first["proven"], first["places"]) == (True, False, ["sm_86", "sm_89"])
    assert sum(layer["precision"] == "int8" for layer in first["layers"] if layer["macs"]) == 62
    assert not run("SM89,8.9", "--precision", "int8")["built"]
    assert run("sm_120", "--precision", "int8")["built"]
    assert run("sm_86", "--precision", "fp16")["built"]
    for wrong in ("", "sm_86,,", "orin"):
        assert main([*arguments, "--for", wrong]) == 1
        assert "give compute capabilities as sm_86,sm_89" in capsys.readouterr().err
    assert main([*arguments, "--for", "sm_75", "--precision", "int8"]) == 1
    assert "compiled nothing of os32-int8-tensorrt-fp16.onnx in int8 for sm_75" in capsys.readouterr().err
    assert main([*arguments, "--for", "sm_87"]) == 1
    assert "no compute capability 'sm_87'" in capsys.readouterr().err
    assert main([*arguments, "--for", "sm_86", "--hardware-compatible"]) == 1
    assert "has no option hardware_compatible" in capsys.readouterr().err


def test_the_remedy_is_told_beside_the_compilers_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bundle whose graph TensorRT refuses: the layer by name, and what to do."""
    bundle = Bundle.open(TINY)
    files = {name: (TINY / name).read_bytes() for name in bundle.manifest.files}
    graph = onnx.load(TINY / "os16-fp32.onnx", load_external_data=False)
    relu = next(node for node in graph.graph.node if node.op_type == "Relu")
    relu.op_type, relu.name = "Det", "odd one"
    files["os16-fp32.onnx"] = graph.SerializeToString()
    named = {name: describe_file(data) for name, data in files.items()}
    path = write(tmp_path / "odd.edgeseg", dataclasses.replace(bundle.manifest, files=named), files).path
    command = ["compile", str(path), "--backend", "tensorrt", "--for", "sm_86", "--output-stride", "16"]
    assert main([*command, "--cache", str(tmp_path / "cache")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "os16-fp32.onnx" in said
    assert "odd one" in said
    assert not list(tmp_path.rglob("*.engine"))


def test_what_is_refused() -> None:
    bundle = Bundle.open(EMBEDDED)
    path = bundle.path / "os16-int8-cpu.onnx"
    model = Model(path, "0" * 64, "int8", "cpu", (360, 480), (11, 45, 60))
    with pytest.raises(
        BackendError, match=r"cannot run os16-int8-cpu\.onnx: layer pixels\S* \(DequantizeLinear\): .*UINT8"
    ):
        build(trt, BuildJob(model, Options("int8", build=BuildOptions(targets=TARGETS))))
    graph = onnx.load(bundle.path / "os16-fp32.onnx")
    with pytest.raises(BackendError, match=r"no compute capability 'sm_87' .* compiles for sm_75, .*, sm_121"):
        compiled(graph, "fp32", "float", targets=("sm_86", "sm_87"))
    with pytest.raises(BackendError, match=r"cannot compile graph\.onnx \(with a workspace of 1 MB\): .*OutOfMemory"):
        compiled(graph, "fp32", "float", workspace_bytes=1 << 20)
