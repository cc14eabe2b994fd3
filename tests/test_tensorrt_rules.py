"""What TensorRT refuses: every rule beside the verdict of NVIDIA's own compiler, and what export and calibrate do."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="graphs are read with onnx")

from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node

import edgeseg
from edgeseg.errors import BackendError, CalibrationError
from edgeseg.loading import EMBEDDED
from edgeseg.surgery.tensorrt_rules import OPERATORS, by_rule, check, refuse
from edgeseg.testing import TINY

FLOAT, UINT8, INT8 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8
ROWS = np.random.default_rng(0)
WEIGHT = ROWS.normal(size=(4, 3, 3, 3)).astype(np.float32)
LEVELS = ROWS.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
HALVES, ZERO, ZEROS, SCALES = (
    np.float32([1, 1, 0.5, 0.5]),
    np.int8(0),
    np.zeros(4, np.int8),
    np.full(4, 0.1, np.float32),
)
TIMES = {"s": np.float32([1, 1, 2, 2])}


def graph_of(
    *nodes: onnx.NodeProto,
    opset: int = 18,
    shape: Any = (1, 8, 12, 3),
    domain: str = "",
    raw: bool = False,
    **stored: Any,
) -> onnx.ModelProto:
    """uint8 `pixels`, made float NCHW `x` unless `raw`; float `y` is the output."""
    front = [make_node("Cast", ["pixels"], ["f"], to=FLOAT), make_node("Transpose", ["f"], ["x"], perm=[0, 3, 1, 2])]
    graph = helper.make_graph(
        [*([] if raw else front), *nodes],
        "g",
        [helper.make_tensor_value_info("pixels", UINT8, list(shape))],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def pair(zero: bool = True, **settings: Any) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    rest = ["s", "z"] if zero else ["s"]
    return make_node("QuantizeLinear", ["x", *rest], ["q"], **settings), make_node(
        "DequantizeLinear", ["q", *rest], ["y"]
    )


def resize(**settings: Any) -> onnx.NodeProto:
    return make_node("Resize", ["x", "", "s"], ["y"], name="up", mode="linear", **settings)


def cast(source: str, kind: int = FLOAT, to: str = "y") -> onnx.NodeProto:
    return make_node("Cast", [source], [to], to=kind)


def weighted(*before: onnx.NodeProto, bias: bool = False) -> tuple[onnx.NodeProto, ...]:
    """A convolution of `x` with the weights `w.int8`, dequantized."""
    weight = make_node("DequantizeLinear", ["w.int8", "ws", "wz"], ["w"], axis=0)
    return *before, weight, make_node("Conv", ["x", "w", *(["b"] if bias else [])], ["y"])


def constant(**settings: Any) -> onnx.NodeProto:
    return make_node("Constant", [], ["c"], **settings)


INT8_CONV = {"w.int8": LEVELS, "ws": SCALES, "wz": ZEROS}
STEP = {"s": np.float32(0.1), "z": ZERO}
BRANCH = {
    f"{name}_branch": helper.make_graph(
        [make_node(op, ["x", *extra], [name])], name, [], [helper.make_tensor_value_info(name, FLOAT, None)]
    )
    for name, op, extra in (("then", "Det", []), ("else", "Relu", []))
}

REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "operator": (
        graph_of(make_node("Det", ["x"], ["y"], name="d")),
        "layer Det 'd' is an operator that TensorRT does not have: write the network with others",
    ),
    "domain": (
        graph_of(make_node("QLinearAdd", ["x"], ["y"], domain="com.microsoft"), domain="com.microsoft"),
        "layer QLinearAdd 'y' is an operator of domain 'com.microsoft' that TensorRT does not have: write the network",
    ),
    "branch": (
        graph_of(make_node("ReduceMax", ["x"], ["m"], keepdims=0), cast("m", TensorProto.BOOL, "c"),
                 make_node("If", ["c"], ["y"], **BRANCH)),
        "layer Det 'then' is an operator",
    ),
    "shape": (
        graph_of(make_node("Relu", ["x"], ["y"]), shape=("N", "h", 12, 3)),
        "input 'pixels' has shape (N, h, 12, 3), and only the batch may be open: export it for one size",
    ),
    "antialias": (
        graph_of(resize(antialias=1), s=HALVES), "layer Resize 'up' is antialiased: export it with antialias=False",
    ),
    "grid": (
        graph_of(resize(coordinate_transformation_mode="half_pixel_symmetric"), opset=19, **TIMES),
        "layer Resize 'up' has coordinates half_pixel_symmetric, which TensorRT does not have: use half_pixel",
    ),
    "crop": (
        graph_of(make_node("Resize", ["x", "r", "s"], ["y"], coordinate_transformation_mode="tf_crop_and_resize"),
                 r=np.float32([0] * 4 + [1] * 4), **TIMES),
        "has coordinates tf_crop_and_resize",
    ),
    "aspect": (
        graph_of(make_node("Resize", ["x", "", "", "z"], ["y"], keep_aspect_ratio_policy="not_larger"),
                 z=np.int64([1, 3, 16, 20])),
        "layer Resize 'y' keeps the aspect ratio by itself: give it the size",
    ),
    "transpose": (
        graph_of(make_node("Transpose", ["pixels"], ["t"]), cast("t"), raw=True),
        "layer Transpose 't' reads uint8 pixels: cast them to float first",
    ),
    "slice": (
        graph_of(make_node("Slice", ["pixels", "b", "e"], ["t"]), cast("t"), raw=True, b=np.int64([0]),
                 e=np.int64([1])),
        "layer Slice 't' reads uint8 pixels",
    ),
    "pixels' levels": (
        graph_of(make_node("DequantizeLinear", ["pixels", "s", "z"], ["y"]), raw=True, s=np.float32(1), z=np.uint8(0)),
        "layer DequantizeLinear 'y' reads uint8 pixels",
    ),
    "uint8 inside": (
        graph_of(cast("x", UINT8, "u"), cast("u")), "layer Cast 'u' makes uint8 inside the graph",
    ),
    "int16": (
        graph_of(cast("x", TensorProto.INT16, "u"), cast("u")),
        "layer Cast 'u' casts to int16, which TensorRT does not have: cast to int32 or float32",
    ),
    "uint64": (graph_of(cast("x", TensorProto.UINT64, "u"), cast("u")), "casts to uint64"),
    "text": (graph_of(cast("x", TensorProto.STRING, "u"), cast("u")), "casts to string"),
    "int16 stored": (
        graph_of(cast("c", to="n"), make_node("Add", ["x", "n"], ["y"]), c=np.int16(3)),
        "constant 'c' is int16, which TensorRT does not have: store it as int32 or float32",
    ),
    "int16 in a node": (
        graph_of(constant(value=numpy_helper.from_array(np.int16(3))), cast("c", to="n"),
                 make_node("Add", ["x", "n"], ["y"])),
        "layer Constant 'c' is int16",
    ),
    "text in a node": (graph_of(constant(value_string="a"), make_node("Relu", ["x"], ["y"])), "is a text or sparse"),
    "int32 bias": (
        graph_of(*weighted(make_node("DequantizeLinear", ["b.int32", "ws"], ["b"], axis=0), bias=True),
                 **INT8_CONV, **{"b.int32": np.ones(4, np.int32)}),
        "layer DequantizeLinear 'b' dequantizes int32: leave biases in float",
    ),
    "uint8 weights": (
        graph_of(*weighted(), **INT8_CONV | {"w.int8": LEVELS.astype(np.uint8), "wz": ZEROS.astype(np.uint8)}),
        "layer DequantizeLinear 'w' has levels in uint8: quantize to int8 around 0, as the tensorrt encoding does",
    ),
    "uint8 levels": (graph_of(*pair(), s=np.float32(1), z=np.uint8(128)), "QuantizeLinear 'q' has levels in uint8"),
    "zero point": (graph_of(*pair(), **STEP | {"z": np.int8(3)}), "has a zero point other than 0: quantize to int8"),
    "zero points": (graph_of(*weighted(), **INT8_CONV | {"wz": np.int8([0, 0, 3, 0])}), "has a zero point other"),
    "scale": (graph_of(*pair(), **STEP | {"s": np.float32(0)}), "QuantizeLinear 'q' has a scale that is not"),
    "int8 elsewhere": (
        graph_of(cast("c", to="n"), make_node("Add", ["x", "n"], ["y"]), c=np.int8(3)),
        "layer Cast 'n' reads the int8 constant 'c': dequantize it first",
    ),
    "dilated pooling": (
        graph_of(make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2])),
        "layer MaxPool 'y' is a dilated pooling: pool without dilation",
    ),
    "indices": (graph_of(make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2])), "has more than one output"),
    "dropout": (
        graph_of(make_node("Dropout", ["x", "r", "t"], ["y"]), r=np.float32(0.5), t=np.bool_(True)),
        "layer Dropout 'y' is in training mode: call eval() on the network before it is exported",
    ),
    "batch norm": (
        graph_of(make_node("BatchNormalization", ["x", *"cccc"], ["y", "m", "v"], training_mode=1),
                 c=np.ones(3, np.float32)),
        "layer BatchNormalization 'y' is in training mode",
    ),
    "scatter": (
        graph_of(make_node("ScatterND", ["x", "i", "u"], ["y"], reduction="add"), i=np.int64([[0]]),
                 u=np.ones((1, 3, 8, 12), np.float32)),
        "layer ScatterND 'y' reduces by add: scatter without a reduction",
    ),
    "axes": (
        graph_of(make_node("Shape", ["x"], ["s"], end=1), make_node("ReduceMean", ["x", "s"], ["y"])),
        "layer ReduceMean 'y' has axes that are computed: give constant ones",
    ),
}  # fmt: skip
TAKEN = {
    "int8": graph_of(*pair(), **STEP),
    "int8 weights": graph_of(*weighted(), **INT8_CONV),
    "batch": graph_of(make_node("Relu", ["x"], ["y"]), shape=("N", 8, 12, 3)),
    "double": graph_of(cast("x", TensorProto.DOUBLE, "d"), make_node("Add", ["d", "c"], ["e"]), cast("e"),
                       c=np.float64(3)),
    "uint8 stored": graph_of(cast("c", to="n"), make_node("Add", ["x", "n"], ["y"]), c=np.uint8(3)),
    "foreign name": graph_of(make_node("Gelu", ["x"], ["y"], domain="com.microsoft"), domain="com.microsoft"),
    "corners": graph_of(resize(coordinate_transformation_mode="align_corners"), **TIMES),
    "axes": graph_of(make_node("Resize", ["x", "", "s"], ["y"], axes=[2, 3]), s=np.float32([2, 2])),
    "activation": graph_of(make_node("HardSwish", ["x"], ["y"])),
    "shuffle": graph_of(make_node("Conv", ["x", "w"], ["c"]),
                        make_node("DepthToSpace", ["c"], ["y"], blocksize=2, mode="CRD"), w=WEIGHT),
    "constant axes": graph_of(constant(value_ints=[2, 3]), make_node("ReduceMean", ["x", "c"], ["y"])),
}  # fmt: skip


def compiles(model: onnx.ModelProto) -> bool:
    """The verdict of TensorRT-RTX, ahead of time; only a batch left open gets a profile, as in the backend."""
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx compiles for NVIDIA's GPUs on a CPU")

    class Silent(trt.ILogger):  # type: ignore[misc,name-defined]
        def log(self, severity: Any, text: str) -> None: ...

    builder = trt.Builder(logger := Silent())
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        return False
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    shape = tuple(network.get_input(0).shape)
    if shape[0] < 0 and min(shape[1:]) > 0:
        profile = builder.create_optimization_profile()
        profile.set_shape("pixels", *((count, *shape[1:]) for count in (1, 1, 4)))
        config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config) is not None


@pytest.mark.parametrize("name", REFUSED)
def test_a_rule_names_layer_and_remedy(name: str) -> None:
    model, said = REFUSED[name]
    assert any(said in str(finding) for finding in check(model)), [*map(str, check(model))]


@pytest.mark.parametrize("name", REFUSED)
def test_the_compiler_refuses_it_too(name: str) -> None:
    assert not compiles(REFUSED[name][0])


@pytest.mark.parametrize("name", TAKEN)
def test_what_the_compiler_takes_has_no_finding(name: str) -> None:
    assert check(TAKEN[name]) == ()
    assert compiles(TAKEN[name])


def test_by_document_only() -> None:
    """The compiler here takes these: opsets that are not promised, and uint8 levels around 0 as if they were int8."""
    assert "is written in opset 8, and TensorRT reads 9 to 25" in str(
        check(graph_of(make_node("Relu", ["x"], ["y"]), opset=8))[0]
    )
    for model in (graph_of(*pair(), s=np.float32(1), z=np.uint8(0)), graph_of(*pair(zero=False), s=np.float32(1))):
        assert "has levels in uint8" in str(check(model)[0])


def test_the_table_of_operators_is_the_parsers() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx compiles for NVIDIA's GPUs on a CPU")
    parser = trt.OnnxParser(trt.Builder(logger := trt.Logger()).create_network(0), logger)
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""} | OPERATORS
    assert {name for name in names if parser.supports_operator(name)} == OPERATORS - {"DeformConv"}


@pytest.mark.parametrize("bundle", [TINY, EMBEDDED], ids=lambda path: path.stem)
def test_own_graphs_have_no_finding(bundle: Path) -> None:
    from edgeseg.surgery.onnx_file import read_onnx

    for path in sorted(bundle.glob("*.onnx")):
        if not path.stem.endswith("-cpu"):
            assert check(read_onnx(path)) == check(onnx.load(path, load_external_data=False)) == ()
    cpu = [path for path in bundle.glob("*-cpu.onnx") if not check(onnx.load(path, load_external_data=False))]
    assert not cpu


def test_lines() -> None:
    twice = graph_of(make_node("Det", ["x"], ["a"]), make_node("Det", ["a"], ["b"]), resize(antialias=1), s=HALVES)
    found = check(twice)
    assert len(found) == 3
    first, second = by_rule(found)
    assert first.startswith("layer Det 'a' (and 1 more) is an operator")
    assert second == "layer Resize 'up' is antialiased: export it with antialias=False"
    with pytest.raises(BackendError, match=r"^os16\.onnx cannot run on TensorRT: layer Det .* \(1 more such rules\)$"):
        refuse(found, "os16.onnx", BackendError)
    refuse((), "os16.onnx")


@pytest.fixture(scope="module")
def antialiased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose network TensorRT refuses; exporting it says so."""
    pytest.importorskip("onnxruntime", reason="exports are checked in it")
    folder = tmp_path_factory.mktemp("antialiased")
    nodes = [
        make_node("Conv", ["images", "w"], ["c"], name="first", pads=[1] * 4),
        make_node("Resize", ["c", "", "s"], ["r"], name="down", mode="linear", antialias=1),
        make_node("Conv", ["r", "v"], ["scores"], name="last", pads=[1] * 4),
    ]
    images = helper.make_tensor_value_info("images", FLOAT, [1, 3, 32, 48])
    stored = {"w": WEIGHT, "s": HALVES, "v": WEIGHT.reshape(3, 4, 3, 3)}
    tensors = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    output = helper.make_tensor_value_info("scores", FLOAT, None)
    graph = helper.make_graph(nodes, "g", [images], [output], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "a.onnx")
    settings: dict[str, Any] = {"input_size": (32, 48), "classes": ["a", "b", "c"], "mean": (0, 0, 0), "std": (1, 1, 1)}
    with pytest.warns(RuntimeWarning, match="^backend tensorrt will refuse this network: layer Resize 'down' is antia"):
        return edgeseg.export(folder / "a.onnx", folder / "a.edgeseg", **settings).path


def test_calibrating_leaves_its_encodings_out_or_refuses(antialiased: Path, tmp_path: Path) -> None:
    from edgeseg.calibration.recipe import calibrate
    from edgeseg.images import write

    for seed in range(2):
        write(tmp_path / f"{seed}.png", np.random.default_rng(seed).integers(0, 256, (32, 48, 3), np.uint8))
    with pytest.warns(RuntimeWarning, match="its encodings are left out: layer Resize 'down' is antialiased") as told:
        made = calibrate(antialiased, tmp_path / "b.edgeseg", tmp_path)
    assert len(told) == 1
    assert [v.encoding for v in made.bundle.manifest.variants] == ["float", "cpu"]
    said = (
        r"^os2-fp32\.onnx cannot run on TensorRT: layer Resize 'down' is antialiased: export it with antialias=False$"
    )
    for encodings in (["tensorrt"], ["cpu", "tensorrt", "tensorrt_fp16"]):
        with pytest.raises(CalibrationError, match=said):
            calibrate(antialiased, tmp_path / "c.edgeseg", tmp_path, encodings=encodings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(antialiased, tmp_path / "c.edgeseg", tmp_path, encodings=["cpu"])
