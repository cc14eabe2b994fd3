"""Graphs cut and rewritten, each compared with the file it came from, in ONNX Runtime. Needs no torch."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="graphs are read with onnx")
pytest.importorskip("onnxruntime", reason="and judged by ONNX Runtime")

from onnx import TensorProto, helper, numpy_helper

from edgeseg import decode
from edgeseg.errors import ExportError, InputError
from edgeseg.sources.base import OnnxReading as Reading
from edgeseg.sources.onnx_source import OnnxSource, OnnxStage
from edgeseg.surgery.facts import learn, opset_of
from edgeseg.surgery.folding import fold
from edgeseg.surgery.layout import output_stride
from edgeseg.surgery.onnx_file import Runner, read_onnx, upgrade
from edgeseg.surgery.tail import cut_tail
from edgeseg.testing import street_scene
from edgeseg.types import Preprocess

SIZE = (32, 48)
PREPROCESS = Preprocess(SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FLOAT = TensorProto.FLOAT


def weights(*shape: int, seed: int = 0) -> Any:
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype("f4")


class File:
    """An ONNX file in the making: a strided convolution, then what a test adds, node by node."""

    def __init__(self, opset: int = 13, classes: int = 4, stride: int = 4, bias: bool = True) -> None:
        self.opset, self.nodes, self.tensors = opset, [], []
        self.inputs = [helper.make_tensor_value_info("image", FLOAT, [1, 3, *SIZE])]
        self.last = "image"
        shift = [self.const("b", weights(classes, 1).reshape(-1))] if bias else []
        self.add("Conv", self.const("w", weights(classes, 3, 3, 3)), *shift, pads=[1] * 4, strides=[stride] * 2)

    def const(self, name: str, value: Any) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, *inputs: str, n: int = 1, **settings: Any) -> File:
        made = [f"{kind.lower()}{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(n)]
        self.nodes.append(helper.make_node(kind, [self.last, *inputs], made, name=f"/{made[0]}", **settings))
        self.last = made[0]
        return self

    def resize(self, height: int = 32, width: int = 48, classes: int = 4, **settings: Any) -> File:
        sizes = self.const(f"sizes{len(self.nodes)}", np.array([1, classes, height, width], np.int64))
        defaults = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        return self.add("Resize", "", "", sizes, **defaults | settings)

    def model(self, *outputs: str, ir: int = 7, kind: int = FLOAT) -> onnx.ModelProto:
        ends = [helper.make_tensor_value_info(name, kind, None) for name in outputs or (self.last,)]
        graph = helper.make_graph(self.nodes, "g", self.inputs, ends, self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=ir)

    def save(self, folder: Path, *outputs: str, **settings: Any) -> Path:
        onnx.save(self.model(*outputs, **settings), folder / "net.onnx")
        return folder / "net.onnx"


@functools.cache
def scene(seed: int, size: tuple[int, int]) -> Any:
    return street_scene(seed, size)[0]


def imported(path: Path, dynamic_batch: bool = False, preprocess: Preprocess = PREPROCESS, **reading: Any) -> OnnxStage:
    """The file as export sees it, after checking it against the file itself on two scenes."""
    source = OnnxSource(path, preprocess, reading=Reading(**reading), dynamic_batch=dynamic_batch)
    (stage,) = source.stages(None)
    varied = preprocess.mean[0] > 0
    graph = stage.graph()
    onnx.checker.check_model(graph, full_check=True)
    assert [value.name for value in (*graph.graph.input, *graph.graph.output)] == ["pixels", "logits"]
    runner, size = Runner(graph), preprocess.input_size
    wants = decode.Wants(probabilities=stage.values == "probabilities")
    for seed in (0, 8):
        frame = scene(seed, size)
        (found,) = runner.run({"pixels": frame[None]}, ["logits"])
        assert found.shape == (1, *stage.logits_shape)
        assert found.dtype == np.float32
        verdict = stage.judge(frame, found[0])
        assert verdict.error <= 1e-3
        assert verdict.scale > 0.01
        mask = decode.decode(found[0], size, grid=decode.Grid(stage.align_corners), wants=wants).class_map
        assert np.mean(mask == verdict.class_map) >= 0.9999
        assert len(np.unique(mask)) > 1 or not varied, "a mask of one class proves nothing"
    return stage


def kinds(stage: OnnxStage) -> list[str]:
    return [node.op_type for node in stage.graph().graph.node]


@pytest.mark.parametrize("opset", [11, 13, 18, 19])
@pytest.mark.parametrize(
    ("mode", "corners"), [("half_pixel", False), ("pytorch_half_pixel", False), ("align_corners", True)]
)
def test_a_bilinear_upsampling_to_the_inputs_size_goes(opset: int, mode: str, corners: bool, tmp_path: Path) -> None:
    file = File(opset)
    if opset < 13:  # sizes and scales could not be left out, only be empty
        empty = file.const("empty", np.array([], np.float32))
        sizes = file.const("sizes", np.array([1, 4, *SIZE], np.int64))
        file.add("Resize", empty, empty, sizes, mode="linear", coordinate_transformation_mode=mode)
    else:
        file.resize(coordinate_transformation_mode=mode)
    stage = imported(file.save(tmp_path))
    assert (stage.output_stride, stage.cut.align_corners, stage.logits_shape) == (4, corners, (4, 8, 12))
    assert stage.cut.removed == ("Resize '/resize1'",)
    assert kinds(stage) == ["Cast", "Transpose", "Mul", "Add", "Conv"]


def test_scales_count_only_where_they_are_exact(tmp_path: Path) -> None:
    for scale, stride in ((4.0, 4), (4.05, 1)):  # 4.05 x 8 is floored to 32, with another geometry than 32 / 8
        file = File()
        scales = file.const("scales", np.array([1, 1, scale, scale], np.float32))
        file.add("Resize", "", scales, mode="linear")
        if scale == 4.0:
            assert imported(file.save(tmp_path)).output_stride == stride
        else:
            model = file.model()
            size = learn(model).shapes[file.last][2:]
            assert cut_tail(model, (size[0], size[1])).align_corners is None


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "nearest"},
        {"mode": "cubic"},
        {"coordinate_transformation_mode": "asymmetric"},
        {"coordinate_transformation_mode": "half_pixel", "antialias": 1},
    ],
)
def test_every_other_upsampling_stays(settings: dict[str, Any], tmp_path: Path) -> None:
    stage = imported(File(18).resize(**settings).save(tmp_path))
    assert (stage.output_stride, stage.cut.align_corners, stage.cut.removed) == (1, None, ())
    assert kinds(stage)[-1] == "Resize"


def test_an_upsampling_to_another_size_stays(tmp_path: Path) -> None:
    stage = imported(File().resize(16, 24).save(tmp_path))
    assert (stage.output_stride, stage.cut.removed) == (2, ())


def test_of_two_upsamplings_the_last_goes(tmp_path: Path) -> None:
    stage = imported(File().resize(16, 24, mode="nearest").resize().save(tmp_path))
    assert (stage.output_stride, stage.cut.removed) == (2, ("Resize '/resize2'",))
    assert kinds(stage)[-1] == "Resize"


def test_an_upsampling_to_the_same_size_is_nothing(tmp_path: Path) -> None:
    """U-Nets end in one, in case the input's size is odd."""
    stage = imported(File(stride=1).resize().save(tmp_path))
    assert (stage.output_stride, stage.cut.align_corners, kinds(stage)[-1]) == (1, None, "Conv")


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("activation", ["Softmax", "LogSoftmax", "Sigmoid"])
def test_activations_behind_the_upsampling_go(opset: int, activation: str, tmp_path: Path) -> None:
    """In opset 11 softmax over axis 1 means one over all of (C, h, w), which orders the classes alike."""
    settings = {} if activation == "Sigmoid" else {"axis": 1}
    file = File(opset)
    scales = file.const("scales", np.array([1, 1, 4, 4], np.float32))
    file.add("Resize", file.const("roi", np.array([], np.float32)), scales, mode="linear")
    stage = imported(file.add(activation, **settings).save(tmp_path))
    assert stage.cut.activation == {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}[activation]
    assert (stage.values, stage.output_stride, kinds(stage)[-1]) == ("logits", 4, "Conv")


def test_softmax_before_the_upsampling_stays(tmp_path: Path) -> None:
    """The mask of interpolated probabilities is another one than that of interpolated logits."""
    stage = imported(File().add("Softmax", axis=1).resize().save(tmp_path))
    assert (stage.values, stage.cut.activation, kinds(stage)[-1]) == ("probabilities", "none", "Softmax")
    assert stage.output_stride == 4


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_softmax_over_something_else_stays(axis: int) -> None:
    file = File().add("Softmax", axis=axis)
    cut = cut_tail(file.add("ArgMax", axis=1).model(kind=TensorProto.INT64), SIZE)
    assert cut.removed[0] == "ArgMax '/argmax2'"
    assert (len(cut.removed) == 2) == (axis == 1)


@pytest.mark.parametrize("keepdims", [0, 1])
def test_argmax_goes_with_all_that_surrounds_it(keepdims: int, tmp_path: Path) -> None:
    file = File().resize().add("Softmax", axis=1).add("ArgMax", axis=1, keepdims=keepdims)
    if keepdims:
        file.add("Squeeze", file.const("axes", np.array([0, 1])))
    stage = imported(file.add("Cast", to=TensorProto.UINT8).save(tmp_path, kind=TensorProto.UINT8))
    assert stage.cut.labels
    assert (stage.output_stride, stage.cut.activation, kinds(stage)[-1]) == (4, "softmax", "Conv")


def test_argmax_of_low_resolution_scores(tmp_path: Path) -> None:
    """The file upsamples nothing, so there is no mask of its own at the frame's size: its logits are upsampled."""
    stage = imported(File().add("ArgMax", axis=1).save(tmp_path, kind=TensorProto.INT64))
    assert (stage.output_stride, stage.cut.align_corners, stage.cut.labels) == (4, None, True)


@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize("threshold", [None, "Greater", "Round"])
def test_one_channel_with_sigmoid(squeezed: bool, threshold: str | None, tmp_path: Path) -> None:
    file = File(classes=1).resize(classes=1).add("Sigmoid")
    if squeezed:
        file.add("Squeeze", file.const("axes", np.array([1])))
    kind = FLOAT
    if threshold == "Greater":
        kind = TensorProto.BOOL
        file.add("Greater", file.const("half", np.float32(0.5)))
    elif threshold:
        file.add("Round")
    stage = imported(file.save(tmp_path, kind=kind))
    assert (stage.logits_shape, stage.output_stride, stage.cut.activation) == ((1, 8, 12), 4, "sigmoid")
    assert stage.cut.labels == bool(threshold)


def test_one_channel_with_sigmoid_before_the_upsampling(tmp_path: Path) -> None:
    stage = imported(File(classes=1).add("Sigmoid").resize(classes=1).save(tmp_path))
    assert (stage.values, kinds(stage)[-1]) == ("probabilities", "Sigmoid")


@pytest.mark.parametrize("opset", [8, 9, 10])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_upsample_of_old_files_stays_and_is_still_asymmetric(opset: int, mode: str, tmp_path: Path) -> None:
    """onnx's converter forgets it: without the repair the mask would differ, so the upgrade would be given up."""
    file = File(opset)
    if opset == 8:
        file.add("Upsample", mode=mode, scales=[1.0, 1.0, 4.0, 4.0])
    else:
        scales = file.const("scales", np.array([1, 1, 4, 4], np.float32))
        file.add("Upsample" if opset == 9 else "Resize", scales, mode=mode)
    stage = imported(file.save(tmp_path, ir=3 if opset == 8 else 4))
    assert (stage.output_stride, stage.cut.removed) == (1, ())
    assert kinds(stage)[-1] == "Resize"
    assert opset_of(stage.graph()) == 13


@pytest.mark.parametrize("opset", [8, 9, 13])
def test_batch_norms_are_folded(opset: int, tmp_path: Path) -> None:
    for bias in (True, False):
        file = File(opset, bias=bias)
        norm = [file.const(name, weights(4, 1, seed=i).reshape(-1) ** 2 + 0.1) for i, name in enumerate("smv")]
        file.add("BatchNormalization", norm[0], norm[1], norm[1], norm[2], epsilon=1e-3)
        stage = imported(file.add("Relu").save(tmp_path))
        assert kinds(stage)[-2:] == ["Conv", "Relu"]


def test_a_batch_norm_stays_where_the_convolution_is_read_twice(tmp_path: Path) -> None:
    file = File()
    norm = [file.const(name, weights(4, 1, seed=i).reshape(-1) ** 2 + 0.1) for i, name in enumerate("smv")]
    conv = file.last
    file.add("BatchNormalization", norm[0], norm[1], norm[1], norm[2]).add("Add", conv)
    assert kinds(imported(file.save(tmp_path)))[-2:] == ["BatchNormalization", "Add"]


def test_initialisers_among_the_inputs(tmp_path: Path) -> None:
    file = File(8)
    file.inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in file.tensors]
    path = file.save(tmp_path, ir=3)
    assert len(onnx.load(path).graph.input) == 3
    stage = imported(path)
    assert stage.graph().ir_version >= 4
    assert opset_of(stage.graph()) == 13


def test_sizes_computed_in_the_graph(tmp_path: Path) -> None:
    """Shape, Slice, Concat and Constant nodes: what exporters write around a Resize."""
    file = File(11)
    conv = file.last
    file.nodes += [
        helper.make_node("Shape", [conv], ["shape"]),
        helper.make_node(
            "Slice", ["shape", file.const("zero", np.array([0])), file.const("two", np.array([2]))], ["nc"]
        ),
        helper.make_node("Constant", [], ["hw"], value=numpy_helper.from_array(np.array(SIZE))),
        helper.make_node("Concat", ["nc", "hw"], ["sizes"], axis=0),
        helper.make_node("Constant", [], ["none"], value=numpy_helper.from_array(np.array([], np.float32))),
    ]
    path = file.add("Resize", "none", "none", "sizes", mode="linear").save(tmp_path)
    for dynamic_batch in (False, True):
        assert kinds(imported(path, dynamic_batch)) == ["Cast", "Transpose", "Mul", "Add", "Conv"]


def test_an_if_that_always_takes_one_way_is_no_control_flow(tmp_path: Path) -> None:
    """TorchScript's squeeze(1): an If on the length of the axis."""
    file = File(classes=1).resize(classes=1).add("Sigmoid")
    source = file.last
    squeeze = helper.make_node("Squeeze", [source, "one"], ["squeezed"])
    keep = helper.make_node("Identity", [source], ["kept"])
    branches = {
        f"{name}_branch": helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(node.output[0], FLOAT, None)]
        )
        for name, node in (("then", squeeze), ("else", keep))
    }
    file.nodes += [
        helper.make_node("Shape", [source], ["shape"]),
        helper.make_node("Gather", ["shape", file.const("one", np.array([1]))], ["length"]),
        helper.make_node("Equal", ["length", "one"], ["is_one"]),
        helper.make_node("If", ["is_one"], ["mask"], name="/If", **branches),
    ]
    stage = imported(file.save(tmp_path, "mask"))
    assert (stage.output_stride, kinds(stage)[-1]) == (4, "Conv")


def test_dropout_and_identity_go(tmp_path: Path) -> None:
    stage = imported(File().add("Dropout").add("Identity").add("Relu").save(tmp_path))
    assert kinds(stage)[-2:] == ["Conv", "Relu"]


def test_channels_last(tmp_path: Path) -> None:
    """As converters write TensorFlow's: transposed at both ends."""
    file = File()
    file.inputs = [helper.make_tensor_value_info("image", FLOAT, ["batch", *SIZE, 3])]
    file.nodes[0].input[0] = "nchw"
    file.nodes.insert(0, helper.make_node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2]))
    path = file.resize().add("Transpose", perm=[0, 2, 3, 1]).add("Softmax", axis=-1).save(tmp_path)
    stage = imported(path)
    assert (stage.logits_shape, stage.cut.activation, kinds(stage)[-1]) == ((4, 8, 12), "softmax", "Conv")
    assert kinds(stage)[:2] == ["Cast", "Mul"]
    assert kinds(imported(path, dynamic_batch=True))[-1] == "Conv"


def test_scores_left_channels_last_are_turned(tmp_path: Path) -> None:
    file = File().add("Transpose", perm=[0, 2, 3, 1]).add("Add", "shift")
    file.const("shift", np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    stage = imported(file.save(tmp_path))
    assert (stage.logits_shape, kinds(stage)[-1]) == ((4, 8, 12), "Transpose")


@pytest.mark.parametrize("behind_relu", [False, True])
def test_bgr(behind_relu: bool, tmp_path: Path) -> None:
    """The flip goes into the first convolution; where another layer is first, it is a Gather."""
    file = File()
    if behind_relu:
        file.nodes[0].input[0] = "relu"
        file.nodes.insert(0, helper.make_node("Relu", ["image"], ["relu"]))
    uneven = Preprocess(SIZE, (0.1, 0.2, 0.6), (0.1, 0.3, 0.5))
    path = file.resize().save(tmp_path)
    stage = imported(path, preprocess=uneven, color="bgr")
    assert ("Gather" in kinds(stage)) == behind_relu
    frame = street_scene(0, SIZE)[0][None]
    turned, plain = Runner(stage.graph()), Runner(imported(path, preprocess=uneven).graph())
    assert not np.allclose(turned.run({"pixels": frame}, ["logits"]), plain.run({"pixels": frame}, ["logits"]))


def test_a_file_that_takes_0_to_255(tmp_path: Path) -> None:
    raw = Preprocess(SIZE, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
    stage = imported(File().resize().save(tmp_path), preprocess=raw)
    assert kinds(stage) == ["Cast", "Transpose", "Conv"]


def test_half_precision_inside_still_gives_float32(tmp_path: Path) -> None:
    file = File().resize().add("Cast", to=TensorProto.FLOAT16)
    stage = imported(file.save(tmp_path, kind=TensorProto.FLOAT16))
    assert (stage.output_stride, kinds(stage)[-1]) == (4, "Conv")
    file = File().add("Cast", to=TensorProto.FLOAT16).add("Relu")
    assert kinds(imported(file.save(tmp_path, kind=TensorProto.FLOAT16)))[-2:] == ["Relu", "Cast"]


def test_another_output_can_be_named(tmp_path: Path) -> None:
    file = File()
    low = file.last
    path = file.resize().save(tmp_path, low, file.last)
    assert imported(path).cut.removed == ()
    assert imported(path, output=file.last).cut.removed == ("Resize '/resize1'",)


def test_names_of_the_files_own_make_way(tmp_path: Path) -> None:
    """A file may call its input `logits` and an inner tensor `pixels`."""
    model = File().add("Relu").add("Neg").resize().model()
    for node in model.graph.node:
        node.input[:] = [{"image": "logits", "relu1": "pixels"}.get(name, name) for name in node.input]
        node.output[:] = [{"relu1": "pixels"}.get(name, name) for name in node.output]
    model.graph.input[0].name = "logits"
    onnx.save(model, tmp_path / "net.onnx")
    assert imported(tmp_path / "net.onnx").output_stride == 4


def test_weights_beside_the_file(tmp_path: Path) -> None:
    model = File().resize().model()
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=0)
    assert imported(tmp_path / "net.onnx").output_stride == 4
    (tmp_path / "net.bin").write_bytes(b"short")
    with pytest.raises(ExportError, match="weights that cannot be read"):
        read_onnx(tmp_path / "net.onnx")
    (tmp_path / "net.bin").unlink()
    with pytest.raises(ExportError, match=r"'net.bin', which is not beside it"):
        read_onnx(tmp_path / "net.onnx")
    outside = tmp_path / "inner"
    outside.mkdir()
    loaded = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    loaded.graph.initializer[0].external_data[0].value = "../net.bin"
    (outside / "net.onnx").write_bytes(loaded.SerializeToString())
    with pytest.raises(ExportError, match="outside its folder: refused"):
        read_onnx(outside / "net.onnx")


def test_dynamic_batch(tmp_path: Path) -> None:
    file = File().resize()
    file.inputs = [helper.make_tensor_value_info("image", FLOAT, ["n", 3, "h", "w"])]
    graph = imported(file.save(tmp_path), dynamic_batch=True).graph()
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    frames = np.stack([street_scene(seed, SIZE)[0] for seed in range(3)])
    assert Runner(graph).run({"pixels": frames}, ["logits"])[0].shape == (3, 4, 8, 12)
    bound = File().add("Reshape", "shape")
    bound.const("shape", np.array([1, 4, 8, 12]))
    with pytest.raises(ExportError, match="single frames only"):
        imported(bound.save(tmp_path), dynamic_batch=True)


def test_nothing_changes_its_argument() -> None:
    model = File().resize().add("Identity").model()
    before = model.SerializeToString(deterministic=True)
    fold(model, learn(model))
    cut_tail(model, SIZE)
    upgrade(model, lambda: {"image": np.zeros((1, 3, *SIZE), np.float32)})
    assert model.SerializeToString(deterministic=True) == before


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    path = File().resize().save(tmp_path)
    first, second = (imported(path).graph().SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_output_strides() -> None:
    assert output_stride((513, 513), 65, 65) == 8
    assert output_stride((33, 33), 5, 5) == 8
    assert output_stride((60, 90), 10, 15) == 6
    assert output_stride((32, 48), 9, 13) is None


def branch(name: str) -> onnx.GraphProto:
    node = helper.make_node("Relu", ["conv0"], [name])
    return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, FLOAT, None)])


def control_flow() -> File:
    file = File().add("ReduceMean").add("Cast", to=TensorProto.BOOL)
    return file.add("If", then_branch=branch("yes"), else_branch=branch("no"))


def wide(*shape: Any, kind: int = FLOAT) -> File:
    file = File()
    file.inputs = [helper.make_tensor_value_info("image", kind, shape)]
    return file


def two_inputs() -> File:
    file = File().add("Add", "extra")
    file.inputs.append(helper.make_tensor_value_info("extra", FLOAT, [1, 4, 8, 12]))
    return file


def quantised() -> File:
    return File().add("QuantizeLinear", "scale").add("DequantizeLinear", "scale")


def labels_resized() -> File:
    file = File().add("ArgMax", axis=1, keepdims=1).add("Cast", to=FLOAT)
    return file.resize(classes=1, mode="nearest")


def private() -> File:
    return File().add("FusedThing", domain="com.vendor")


@pytest.mark.parametrize(
    ("file", "reading", "told"),
    [
        (control_flow(), {}, "layer If '/if3' is control flow"),
        (private(), {}, "layer FusedThing '/fusedthing1' is of the operator set 'com.vendor'"),
        (File().add("Mish"), {}, "layer Mish '/mish1' is no operator of ONNX opset 13"),
        (two_inputs(), {}, "the file has 2 inputs ('image', 'extra')"),
        (wide(1, 4, 32, 48), {}, "input 'image' has 4 channels"),
        (wide(1, 32, 48), {}, "input 'image' has shape 1x32x48"),
        (wide(1, 3, 64, 48), {}, "the file is fixed to 64x48 and the size asked for is 32x48"),
        (wide(2, 3, 32, 48), {}, "fixed to batches of 2"),
        (wide(1, 3, 32, 48, kind=TensorProto.UINT8), {}, "input 'image' is uint8"),
        (wide(1, 3, 32, 48, kind=TensorProto.FLOAT16), {}, "input 'image' is float16: bring"),
        (File(), {"layout": "NHWC"}, "has 48 channels"),
        (File(), {"output": "scores"}, "no layer makes 'scores': the outputs are 'conv0'"),
        (File().add("ReduceMax", axes=[1], keepdims=0), {}, "holds only the largest scores, made by ReduceMax"),
        (File().add("Cast", to=TensorProto.INT32), {}, "whole numbers by Cast '/cast1'"),
        (labels_resized(), {}, "is a class map made by ArgMax '/argmax1' before the end"),
        (File(classes=1).add("Sigmoid").add("Greater", "limit"), {}, "compares a probability with 0.3"),
        (File().add("Greater", "zero"), {}, "thresholds 4 channels one by one"),
        (File().add("Flatten"), {}, "'flatten1' has shape 1x384: scores (N, classes, h, w) are needed"),
        (
            File().add("Slice", "zeros", "threes", "axes"),
            {},
            "3x12 logits for a 32x48 input: they must cover it evenly",
        ),
        (quantised(), {}, "layer QuantizeLinear '/quantizelinear1' holds numbers already quantised"),
        (File().add("Add", "misfit"), {}, "what layer Add '/add1' makes depends on the image, or does not fit"),
        (File().add("NonZero"), {}, "what layer NonZero '/nonzero1' makes"),
        (File(7), {}, "opset 7, and 8 to"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_refusals_are_one_line(file: File, reading: dict[str, Any], told: str, tmp_path: Path) -> None:
    used = {name for node in file.nodes for name in node.input}
    values: dict[str, Any] = {"limit": np.float32(0.3), "zero": np.float32(0), "scale": np.float32(0.1),
              "zeros": np.array([0]), "threes": np.array([3]), "axes": np.array([2]),
              "misfit": np.zeros((1, 4, 8, 5), np.float32)}  # fmt: skip
    for name in used & set(values):
        file.const(name, values[name])
    with pytest.raises(ExportError) as caught:
        imported(file.save(tmp_path), **reading)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 a zip file", b"\x08\x0agarbage" * 20])
def test_files_that_are_none(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=r"cannot read|is not an ONNX file") as caught:
        read_onnx(path)
    assert "\n" not in str(caught.value)


def test_one_stride_is_all_a_file_has(tmp_path: Path) -> None:
    source = OnnxSource(File().save(tmp_path), PREPROCESS)
    assert [stage.output_stride for stage in source.stages([4])] == [4]
    for strides in ([8], [4, 8]):
        with pytest.raises(InputError, match="this one 4: leave out 8"):
            list(source.stages(strides))


def test_an_upgrade_that_changes_the_numbers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model = File(9).model()

    def wrong(model: Any, target: int) -> Any:
        other = File(13).add("Relu").model()
        other.graph.output[0].name = "conv0"
        other.graph.node[0].output[0], other.graph.node[1].input[0], other.graph.node[1].output[0] = "a", "a", "conv0"
        return other

    monkeypatch.setattr("edgeseg.surgery.onnx_file.version_converter.convert_version", wrong)
    feeds = {"image": np.random.default_rng(0).standard_normal((1, 3, *SIZE)).astype("f4")}
    assert opset_of(upgrade(model, lambda: feeds)) == 9
