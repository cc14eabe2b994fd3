"""The half-precision graph for strongly typed builders, judged by ONNX's own definition and by a real compiler."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="graphs are written with onnx")

from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeseg.bundle import Bundle
from edgeseg.calibration.encode import encode_tensorrt
from edgeseg.calibration.network import read_network
from edgeseg.calibration.observe import observe
from edgeseg.calibration.ranges import tabulate
from edgeseg.calibration.rounding import round_weights
from edgeseg.errors import ExportError
from edgeseg.loading import EMBEDDED
from edgeseg.surgery.half import half_graph, to_half, to_typed_fp16
from edgeseg.surgery.onnx_file import Runner, read_onnx
from edgeseg.testing import TINY, street_scene

FLOAT, HALF, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8


@functools.cache
def encoded(kept: tuple[str, ...] = ()) -> onnx.ModelProto:
    """TINY's tensorrt encoding at output stride 16."""
    pytest.importorskip("onnxruntime", reason="observation runs in ONNX Runtime")
    bundle = Bundle.open(TINY)
    network = read_network(bundle, bundle.variant(16, "fp32"))
    seen = observe(network, [street_scene(seed, (64, 96))[0] for seed in range(4)], 4)
    weights = {layer.name: round_weights(*network.weights(layer), seen.moments[layer.name]) for layer in network.layers}
    return encode_tensorrt(network, tabulate("tiny", seen, ()).methods["minmax"], weights, kept)


def graph_of(*nodes: onnx.NodeProto, opset: int = 17, kind: int = FLOAT, **constants: Any) -> onnx.ModelProto:
    """uint8 `pixels` (1, 4, 4, 3), cast to float `x`; `y` is the output."""
    cast = helper.make_node("Cast", ["pixels"], ["x"], to=FLOAT)
    graph = helper.make_graph(
        [cast, *nodes],
        "g",
        [helper.make_tensor_value_info("pixels", UINT8, [1, 4, 4, 3])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def answer(model: onnx.ModelProto, pixels: Any) -> Any:
    return ReferenceEvaluator(model).run(None, {model.graph.input[0].name: pixels})[0]


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def test_only_the_output_is_float32_and_answers_agree() -> None:
    kept = ("trunk.1.0",)  # as layers that stay in float do
    before, model = encoded(kept), to_typed_fp16(encoded(kept))
    assert [entry.version for entry in model.opset_import] == [19]
    assert model.graph.input[0].type.tensor_type.elem_type == UINT8
    assert [name for name, kind in kinds(model).items() if kind == FLOAT] == ["logits"]
    old, new = ({t.name: t for t in graph.initializer} for graph in (before.graph, model.graph))
    same = [name for name in old if old[name].data_type == TensorProto.INT8]
    assert len([name for name in same if name.endswith(".int8")]) == 6
    assert all(np.array_equal(*(numpy_helper.to_array(g[name]) for g in (old, new))) for name in same)
    frame = street_scene(9, (64, 96))[0][None]
    (exact,) = Runner(before, optimise=False).run({"pixels": frame}, ["logits"])
    half = answer(model, frame)
    assert half.dtype == np.float32
    # half precision rounds to 2^-11; an activation between two levels may become the other one
    assert np.sqrt(np.mean((half - exact) ** 2)) < 0.01 * np.sqrt(np.mean(exact**2))


def test_any_operator() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Constant", [], ["level"], value=numpy_helper.from_array(np.float32([[[0.5]]]))),
        helper.make_node("Mul", ["t", "level"], ["m"]),
        helper.make_node("Clip", ["m", "least", "most"], ["c"]),
        helper.make_node("Resize", ["c", "", "scales"], ["r"], mode="linear"),
        helper.make_node("Mul", ["scales", "scales"], ["scales4"]),  # computed, and float32 by Resize's definition
        helper.make_node("Resize", ["r", "", "scales4"], ["q"], mode="nearest"),
        helper.make_node("Shape", ["q"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["f"], value=numpy_helper.from_array(np.float32([0.25]))),
        helper.make_node("ReduceMax", ["q"], ["peak"], axes=[2, 3]),
        helper.make_node("Sum", ["q", "f", "peak"], ["s"]),
        helper.make_node("Split", ["s", "parts"], ["y", "rest"], axis=1),
    ]
    constants = {"least": np.float32(3), "most": np.float32(3.4e38), "scales": np.float32([1, 1, 2, 2])}
    model = graph_of(*nodes, **constants, parts=np.int64([1, 2]))
    typed = to_typed_fp16(model)
    singles = {name for name, kind in kinds(typed).items() if kind == FLOAT}
    assert singles == {"y", "scales.float32", "scales4.float32"}
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), np.uint8)
    np.testing.assert_allclose(answer(typed, pixels), answer(model, pixels), rtol=2**-9)


@pytest.mark.parametrize(("activation", "weight"), [(0.02, 1e-3), (3e-9, 2e-6), (1e-5, 3.3e-7), (1.0, 1e-12)])
def test_scales_that_half_precision_lacks(activation: float, weight: float) -> None:
    """Oracle: what the exact levels stand for, in float64."""
    levels = np.random.default_rng(1).integers(-127, 128, (5, 3, 1, 1)).astype(np.int8)
    scales = (weight * np.linspace(1, 2, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("QuantizeLinear", ["t", "step", "none"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "none"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "scales", "zeros"], ["dw"], axis=0),
        helper.make_node("Conv", ["d", "dw"], ["y"]),
    ]
    constants = {"step": np.float32(activation), "none": np.int8(0), "w": levels, "zeros": np.zeros(5, np.int8)}
    typed = to_typed_fp16(graph_of(*nodes, **constants, scales=scales))
    made = {tensor.name: numpy_helper.to_array(tensor) for tensor in typed.graph.initializer}
    assert made["step"].dtype == made["scales"].dtype == np.float16
    assert made["step"] == max(np.float16(activation), 2**-24)
    exact, steps = (scale.reshape(-1, 1, 1, 1).astype(np.float64) for scale in (scales, made["scales"]))
    error = np.abs(made["w"] * steps - levels * exact)
    assert np.all(error <= np.maximum(0.01 * np.abs(levels * exact), 0.5 * steps))
    if weight > 1e-4:
        assert np.array_equal(made["w"], levels)


def test_refusals() -> None:
    large = graph_of(helper.make_node("Add", ["x", "c"], ["y"]), c=np.float32([1, -7e4]))
    with pytest.raises(ExportError, match="constant 'c' reaches 70000, and half precision ends at 65504"):
        to_typed_fp16(large)
    floats = graph_of(helper.make_node("Add", ["x", "c"], ["y"]), c=np.float32([1]))
    floats.graph.input[0].type.tensor_type.elem_type = FLOAT
    with pytest.raises(ExportError, match="input 'pixels' is float32"):
        to_typed_fp16(floats)
    with pytest.raises(ExportError, match=r"g cannot be brought to opset 19: .*Foreign"):
        to_typed_fp16(graph_of(helper.make_node("Foreign", ["x"], ["y"], domain="some")))


def compiles(model: onnx.ModelProto) -> bool:
    """TensorRT-RTX parses and compiles ahead of time without a GPU; running a plan needs one."""
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx compiles for NVIDIA's GPUs on a CPU")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    parsed = parser.parse(model.SerializeToString())
    assert parsed, [str(parser.get_error(index)) for index in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    assert network.get_output(0).dtype == trt.float32
    return builder.build_serialized_network(network, config) is not None


@pytest.mark.parametrize("typed", [False, True])
def test_a_real_compiler_accepts_it(typed: bool) -> None:
    assert compiles(to_typed_fp16(encoded()) if typed else encoded())


def test_a_float_graph_computed_in_half_precision() -> None:
    """Oracle: the same graph in float32; the definition computes the half one literally."""
    path, frame = TINY / "os16-fp32.onnx", street_scene(9, (64, 96))[0][None]
    model, exact = onnx.load_from_string(half_graph(path)), answer(read_onnx(path), frame)
    found, halves = answer(model, frame), kinds(model)
    assert (found.dtype, [entry.version for entry in model.opset_import]) == (np.float32, [18])
    assert np.sqrt(np.mean((found - exact) ** 2)) < 1e-3 * np.sqrt(np.mean(exact**2))
    # pixels are scaled in float32, and nothing else is
    singles = {name for name, kind in halves.items() if kind == FLOAT}
    assert singles == {"_to_copy", "permute", "mul", "add", "scale.float32", "shift.float32", "logits"}
    nodes = {name: node for node in model.graph.node for name in node.output}
    assert all(halves[node.input[0]] == HALF for node in nodes.values() if node.op_type == "Conv")


def test_the_embedded_network_in_half_precision() -> None:
    pytest.importorskip("onnxruntime", reason="the network is too large for the definition")
    frame = street_scene(3, (360, 480))[0][None]
    path = EMBEDDED / "os16-fp32.onnx"
    model = onnx.load_from_string(half_graph(path))
    exact, found = (Runner(graph).run({"pixels": frame}, ["logits"])[0] for graph in (read_onnx(path), model))
    assert np.sqrt(np.mean((found - exact) ** 2)) < 1e-3 * np.sqrt(np.mean(exact**2))
    assert np.mean(found.argmax(axis=1) == exact.argmax(axis=1)) > 0.999
    assert compiles(model)


def test_pixels_moved_as_bytes_and_in_another_order() -> None:
    """Files that are given BGR, or uint8 before the cast: still scaled in float32, once cast for both readers."""
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["t"], ["f"], to=FLOAT),
        helper.make_node("Gather", ["f", "bgr"], ["g"], axis=1),
        helper.make_node("Div", ["g", "c"], ["d"]),
        helper.make_node("Relu", ["d"], ["r"]),
        helper.make_node("MaxPool", ["d"], ["p"], kernel_shape=[1, 1]),
        helper.make_node("Add", ["r", "p"], ["y"]),
    ]
    model = graph_of(*nodes, bgr=np.int64([2, 1, 0]), c=np.float32(57.3))
    del model.graph.node[0]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, [1, 3, 4, 4]))
    half = to_half(model)
    assert [node.op_type for node in half.graph.node].count("Cast") == 3
    found = kinds(half)
    assert [found[name] for name in "tfgdrpy"] == [UINT8, FLOAT, FLOAT, FLOAT, HALF, HALF, FLOAT]
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), np.uint8)
    np.testing.assert_allclose(answer(half, pixels), answer(model, pixels), rtol=2**-10)


def test_refusals_of_float_graphs(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"constant 'c' reaches 70000, .*: this network has no float16 form, use"):
        to_half(graph_of(helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Add", ["r", "c"], ["y"]),
                         c=np.float32(7e4)))  # fmt: skip
    with pytest.raises(ExportError, match="layer Foreign 'y' is no operator of ONNX's opset 17: use fp32"):
        to_half(graph_of(helper.make_node("Foreign", ["x"], ["y"], domain="some")))
    onnx.save(graph_of(helper.make_node("Relu", ["x"], ["y"])), tmp_path / "a.onnx")
    with pytest.raises(ExportError, match=r"a\.onnx has pixels uint8, y float, and a bundle's graph has pixels"):
        half_graph(tmp_path / "a.onnx")
