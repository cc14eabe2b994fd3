"""Networks made ready for int8 and written in it: the same answers in ONNX Runtime, OpenVINO and ONNX's definition."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="graphs are written with onnx")
pytest.importorskip("onnxruntime", reason="and judged by ONNX Runtime")

from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeseg import registry
from edgeseg.backends.base import Options
from edgeseg.backends.execution import Execution
from edgeseg.calibration.encode import encode_cpu, encode_tensorrt
from edgeseg.calibration.network import Network, prepare
from edgeseg.calibration.observe import observe
from edgeseg.calibration.placement import place
from edgeseg.calibration.ranges import Range, tabulate
from edgeseg.calibration.rounding import IntWeights, round_weights
from edgeseg.errors import ExportError
from edgeseg.surgery.facts import attributes, opset_of
from edgeseg.surgery.half import to_typed_fp16
from edgeseg.surgery.onnx_file import Runner
from edgeseg.surgery.pixels import Entry, from_pixels
from edgeseg.testing import street_scene
from edgeseg.types import Color, Model, Preprocess

SIZE = (32, 48)
HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FRAMES = [street_scene(seed, SIZE)[0] for seed in range(6)]


class Net:
    """A float network of `image`, (N, 3, 32, 48), in the making."""

    def __init__(self, opset: int = 19) -> None:
        self.opset, self.nodes, self.tensors = opset, [], []
        self.rng = np.random.default_rng(7)

    def const(self, value: Any, name: str = "") -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(value), name or f"k{len(self.tensors)}"))
        return str(self.tensors[-1].name)

    def add(self, kind: str, *inputs: str, **settings: Any) -> str:
        made = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [made], **settings))
        return made

    def conv(self, x: str, shape: tuple[int, ...], bias: bool = True, **settings: Any) -> str:
        weight = self.rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        inputs = [self.const(weight.astype(np.float32), f"network.layer{len(self.nodes)}.weight")]
        if bias:
            inputs.append(self.const(0.1 * self.rng.standard_normal(shape[0]).astype(np.float32)))
        return self.add("Conv", x, *inputs, **settings)

    def relu6(self, x: str) -> str:
        return self.add("Clip", x, self.const(np.float32(0)), self.const(np.float32(6)))

    def model(
        self, logits: str, mean: Any = HALF, std: Any = HALF, color: Color = "rgb", batch: int | None = 1
    ) -> onnx.ModelProto:
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = ["logits" if name == logits else name for name in names]
        ends = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", None, None, None])]
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, *SIZE])
        graph = helper.make_graph(self.nodes, "net", [image], ends, self.tensors)
        whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        model = from_pixels(whole, Entry("image", "NCHW"), Preprocess(SIZE, mean, std), color=color, batch=batch)
        model.graph.output[0].CopyFrom(ends[0])  # with its shape
        return model


def answer(model: onnx.ModelProto, frame: Any = FRAMES[5], optimise: bool = False) -> Any:
    pixels = frame if frame.ndim == 4 else frame[None]
    return Runner(model, optimise=optimise).run({"pixels": pixels}, ["logits"])[0]


def openvino(model: onnx.ModelProto, frame: Any = FRAMES[5]) -> Any:
    ov = pytest.importorskip("openvino", reason="OpenVINO judges the cpu encoding too")
    core = ov.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return compiled(frame[None])[0]


def learnt(network: Network, frames: Any = FRAMES[:5]) -> tuple[Mapping[str, Range], dict[str, IntWeights]]:
    seen = observe(network, frames, len(frames))
    weights = {layer.name: round_weights(*network.weights(layer), seen.moments[layer.name]) for layer in network.layers}
    return tabulate("net", seen, ()).methods["minmax"], weights


def rms(value: Any) -> float:
    return float(np.sqrt(np.mean(np.square(value, dtype=np.float64))))


@pytest.mark.parametrize(
    ("mean", "std", "color", "zero"),
    [
        (HALF, HALF, "rgb", 128),
        (*IMAGENET, "rgb", 114),
        (*IMAGENET, "bgr", 114),
        ((0.0,) * 3, (1.0,) * 3, "rgb", 0),
        ((0.0,) * 3, (1 / 255,) * 3, "bgr", 0),
        ((0.5, 0.5, 0.5), IMAGENET[1], "rgb", 128),
    ],
)
def test_pixels_become_whole_numbers(mean: Any, std: Any, color: Color, zero: int) -> None:
    for pads in (0, 1):
        net = Net(13)
        model = net.model(net.conv("image", (4, 3, 3, 3), pads=[pads] * 4), mean, std, color)
        network = prepare(model)
        assert network.zero == zero
        entry = Runner(network.model, also=[network.entry]).run({"pixels": FRAMES[0][None]}, [network.entry])[0]
        assert np.array_equal(entry, FRAMES[0][None].transpose(0, 3, 1, 2).astype(np.float32) - zero)
        difference = np.abs(answer(network.model) - answer(model))
        inside = difference[..., pads : difference.shape[2] - pads, pads : difference.shape[3] - pads]
        assert inside.max() < 1e-4
        # at the border a padded pixel is `zero` and not its channel's mean
        weight = np.abs(network.weights(network.layers[0])[0]).sum(axis=(2, 3))
        off = np.abs(255 * np.array(mean if color == "rgb" else mean[::-1]) - zero)
        assert np.all(difference.max(axis=(0, 2, 3)) <= weight @ off + 1e-4)
        assert np.all(off <= (0.5 if len(set(mean)) == 1 else 11.1))


def test_other_beginnings_stay_as_they_are() -> None:
    net = Net()
    pooled = Net()
    models = [
        net.model(net.conv("image", (3, 1, 3, 3), group=3)),
        pooled.model(pooled.conv(pooled.add("MaxPool", "image", kernel_shape=[2, 2]), (4, 3, 1, 1)), color="bgr"),
    ]
    for model in models:
        network = prepare(model)
        assert (network.entry, network.zero) == (None, None)
        assert np.array_equal(answer(network.model), answer(model))


def test_everything_has_its_own_name_weights_and_bias() -> None:
    net = Net(18)
    first = net.conv("image", (4, 3, 3, 3), bias=False)
    weight, bias = net.const(np.ones((4, 4, 1, 1), np.float32)), net.const(np.arange(4, dtype=np.float32))
    one, two = net.add("Conv", first, weight, bias), net.add("Conv", first, weight, bias)
    shifted = net.add("Add", net.add("Conv", two, weight), bias + "x")
    net.const(np.ones((4, 1, 1), np.float32), bias + "x")
    means = net.add("ReduceMean", one, net.const(np.array([3, -2])))
    model = net.model(net.conv(net.add("Add", shifted, means), (2, 4, 1, 1)))
    network = prepare(model)
    assert len(network.layers) == 5
    for get in ("name", "node", "weight", "bias"):
        assert len({getattr(layer, get) for layer in network.layers}) == 5
    assert network.layers[0].name == "layer0"
    assert "GlobalAveragePool" in {node.op_type for node in network.model.graph.node}
    assert [layer.is_head for layer in network.layers] == [False] * 4 + [True]
    np.testing.assert_allclose(answer(network.model), answer(model), atol=1e-4)
    bare = Net()
    without = bare.model(bare.add("Relu", "image"))
    with pytest.raises(ExportError, match="net has no convolution with constant weights"):
        prepare(without)


def test_a_head_keeps_its_floats_whatever_follows() -> None:
    net = Net()
    x = net.add("Softmax", net.conv(net.add("Relu", net.conv("image", (4, 3, 1, 1))), (3, 4, 1, 1)), axis=1)
    network = prepare(net.model(x))
    assert [layer.is_head for layer in network.layers] == [False, True]


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_padding_in_numbers(mode: str) -> None:
    for stride, kernel, rate in ((1, 4, 1), (2, 3, 1), (3, 5, 2 if mode == "VALID" else 1)):  # as ONNX Runtime has it
        net = Net()
        conv = net.conv("image", (2, 3, kernel, kernel), auto_pad=mode, strides=[stride] * 2, dilations=[rate] * 2)
        network = prepare(net.model(conv))
        layer = network.layers[0]
        (top, bottom), (left, right) = layer.padding
        assert (layer.strides, layer.rates) == ((stride,) * 2, (rate,) * 2)
        twin = onnx.ModelProto()
        twin.CopyFrom(network.model)
        node = next(node for node in twin.graph.node if node.op_type == "Conv")
        del node.attribute[:]
        for name, value in (
            ("pads", [top, left, bottom, right]), ("strides", [stride] * 2), ("dilations", [rate] * 2)
        ):  # fmt: skip
            node.attribute.append(helper.make_attribute(name, value))
        shape = answer(twin).shape
        assert layer.macs == np.prod(shape[2:]) * 2 * 3 * kernel**2
        np.testing.assert_allclose(answer(network.model), answer(twin), atol=1e-5)


def upsampled(kernel: int, bias: bool = True, clamp: str = "", **settings: Any) -> onnx.ModelProto:
    """A transposed convolution, by `settings` or with its kernel as stride, and an activation between two layers."""
    net = Net()
    outputs = int(net.rng.integers(1, 6))
    # pooled first: pixels stay as they are, and so does every number
    x = net.conv(net.add("MaxPool", "image", kernel_shape=[10 + kernel, 20]), (4, 3, 1, 1))
    shape = settings.pop("shape", (4, outputs, kernel, kernel))
    channels = shape[1] * settings.get("group", 1)
    inputs = [net.const(net.rng.standard_normal(shape).astype(np.float32), "network.up.weight")]
    if bias:
        inputs.append(net.const(net.rng.standard_normal(channels).astype(np.float32)))
    x = net.add("ConvTranspose", x, *inputs, **{"strides": [kernel] * 2, **settings})
    if clamp:
        x = net.relu6(x) if clamp == "Clip" else net.add(clamp, x)
    return net.model(net.conv(x, (2, channels, 1, 1)))


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize(("bias", "clamp"), [(True, ""), (False, "Relu"), (True, "Clip")])
def test_upsampling_becomes_tiles(kernel: int, bias: bool, clamp: str) -> None:
    model = upsampled(kernel, bias, clamp)
    network = prepare(model)
    wanted = ["Conv", *([clamp] if clamp else []), "DepthToSpace", "Conv"]
    assert [node.op_type for node in network.model.graph.node][-len(wanted) :] == wanted
    assert [layer.name for layer in network.layers][1] == "up"
    np.testing.assert_allclose(answer(network.model), answer(model), atol=1e-5)
    ranges, weights = learnt(network)
    exact, signed = answer(model), encode_tensorrt(network, ranges, weights)
    half = ReferenceEvaluator(to_typed_fp16(signed)).run(None, {"pixels": FRAMES[5][None]})[0]
    cpu = encode_cpu(network, ranges, weights)
    assert not {"Relu", "Clip"} & {node.op_type for node in cpu.graph.node}
    for value in (answer(cpu), openvino(cpu), answer(cpu, optimise=True), answer(signed), half):
        assert rms(value - exact) < 0.05 * rms(exact)


@pytest.mark.parametrize(
    "settings",
    [
        {"strides": [1, 1]},
        {"strides": [3, 2]},
        {"pads": [1, 0, 0, 0]},
        {"output_padding": [1, 1], "strides": [2, 2]},
        {"dilations": [2, 1]},
        {"group": 2},
        {"shape": (4, 2, 2, 3), "strides": [2, 3]},
        {"auto_pad": "SAME_UPPER"},
        {"output_shape": [41, 57]},
    ],
)
def test_other_upsampling_stays_as_it_is(settings: dict[str, Any]) -> None:
    model = upsampled(2, **settings)
    network = prepare(model)
    assert [node.op_type for node in network.model.graph.node][-2:] == ["ConvTranspose", "Conv"]
    assert len(network.layers) == 2
    np.testing.assert_array_equal(answer(network.model), answer(model))


def deep(opset: int = 19, batch: int | None = 1, mean: Any = HALF, std: Any = HALF) -> Network:
    """All that segmentation networks are made of: depthwise, residual, pooling branch, concat, resize."""
    net = Net(opset)
    x = net.relu6(net.conv("image", (8, 3, 3, 3), pads=[1] * 4, strides=[2, 2]))
    y = net.relu6(net.conv(x, (8, 1, 3, 3), pads=[2] * 4, dilations=[2, 2], group=8))
    x = net.add("Relu", net.add("Add", x, net.conv(y, (8, 8, 1, 1))))
    x = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    wide = net.conv(x, (6, 8, 3, 3), auto_pad="SAME_UPPER")
    means = net.add("ReduceMean", x, **({"axes": [2, 3]} if opset < 18 else {}))
    if opset >= 18:
        net.nodes[-1].input.append(net.const(np.array([2, 3])))
    spread = net.add("Relu", net.conv(means, (4, 8, 1, 1)))
    spread = net.add("Expand", spread, net.const(np.array([1, 1, SIZE[0] // 4, SIZE[1] // 4])))
    x = net.add("Concat", net.relu6(net.conv(x, (6, 8, 1, 1))), wide, spread, axis=1)
    x = net.add("Resize", x, "", net.const(np.float32([1, 1, 2, 2])), mode="linear")
    x = net.add("Relu", net.conv(x, (8, 16, 3, 3), pads=[1] * 4))
    return prepare(net.model(net.conv(x, (4, 8, 1, 1)), mean, std, batch=batch))


def constants_of(model: onnx.ModelProto) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def check_cpu(model: onnx.ModelProto, int8_layers: int) -> None:
    """The promises of the cpu encoding, node by node."""
    constants, made = constants_of(model), {name: node for node in model.graph.node for name in node.output}
    activations = 0
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert constants[node.input[2]].dtype == np.uint8
            assert constants[node.input[1]].shape == ()  # else ONNX Runtime adds in float
        if node.op_type == "Conv" and node.input[1] in made:
            source, weight, bias = (made[name] for name in node.input)
            while source.op_type == "Transpose":
                source = made[source.input[0]]
            values, scale = (constants[name] for name in weight.input[:2])
            assert values.dtype == np.int8
            assert values.min() >= -127
            assert attributes(weight)["axis"] == attributes(bias)["axis"] == 0
            assert scale.shape == (len(values),)
            assert constants[bias.input[0]].dtype == np.int32
            assert np.array_equal(constants[bias.input[1]], constants[source.input[1]] * scale)
            activations += 1
    assert activations == int8_layers


@pytest.mark.parametrize(("mean", "std"), [(HALF, HALF), IMAGENET])
def test_cpu_encoding(mean: Any, std: Any) -> None:
    network = deep(mean=mean, std=std)
    ranges, weights = learnt(network)
    model = encode_cpu(network, ranges, weights)
    check_cpu(model, len(network.layers) - 1)
    kinds = [node.op_type for node in model.graph.node]
    assert not {"Relu", "Clip"} & set(kinds)  # levels clamp, those of what goes into a wider Concat too
    exact, plain = answer(network.model), answer(model)
    assert rms(plain - exact) < 0.03 * rms(exact)
    defined = ReferenceEvaluator(model).run(None, {"pixels": FRAMES[5][None]})[0]
    for value in (defined, answer(model, optimise=True), openvino(model)):
        # a value half way between two levels is rounded either way, and what follows takes it further
        assert rms(value - plain) < 0.03 * rms(exact)
        assert np.abs(value - plain).max() < 0.05 * np.abs(exact).max()


def test_placement() -> None:
    network = deep()
    ranges, _ = learnt(network)
    nodes = {node.name: node for node in network.model.graph.node}
    placement = place(network, ranges)
    levels = placement.levels
    concat = next(node for node in nodes.values() if node.op_type == "Concat")
    resized = next(node for node in nodes.values() if node.op_type == "Resize").output[0]
    narrow, wide, spread = concat.input
    assert len({levels[name] for name in (wide, concat.output[0], resized)}) == 1
    assert levels[resized].low == pytest.approx(ranges[wide].low, abs=float(levels[resized].scale))
    assert levels[narrow].low == levels[spread].low == 0  # else no levels would clamp as their activations do
    added = next(node for node in nodes.values() if node.op_type == "Add").output[0]
    assert added not in levels  # the activation behind it has them, all 255 above zero
    assert levels[next(node for node in nodes.values() if added in node.input).output[0]].zero == 0
    assert network.entry not in levels
    assert "logits" not in levels
    head = network.layers[-1]
    assert head.is_head
    assert head.node not in placement.int8_nodes
    for level in levels.values():
        assert level.low <= 0 <= level.high


def test_layers_kept_in_float_read_and_write_floats() -> None:
    network = deep()
    ranges, weights = learnt(network)
    exact = answer(network.model)
    for kept in ([layer.name] for layer in network.layers):
        model = encode_cpu(network, ranges, weights, kept)
        made = {name: node for node in model.graph.node for name in node.output}
        node = next(n for n in model.graph.node if n.name == next(x.node for x in network.layers if x.name in kept))
        assert kept == [network.layers[-1].name] or made[node.input[0]].op_type != "DequantizeLinear"
        assert node.input[1] not in made
        assert rms(answer(model) - exact) < 0.03 * rms(exact)
        signed = encode_tensorrt(network, ranges, weights, kept)
        assert rms(answer(signed) - exact) < 0.05 * rms(exact)
    every = [layer.name for layer in network.layers]
    np.testing.assert_allclose(answer(encode_cpu(network, ranges, weights, every)), exact, atol=1e-5)


def test_any_batch() -> None:
    network = deep(batch=None)
    ranges, weights = learnt(network)
    for model in (encode_cpu(network, ranges, weights), encode_tensorrt(network, ranges, weights)):
        both = answer(model, np.stack(FRAMES[4:]))
        assert np.array_equal(both[0], answer(model, FRAMES[4])[0])
        assert np.array_equal(both[1], answer(model, FRAMES[5])[0])


def test_odd_channels() -> None:
    """A dead channel under a bias of any size, and a tensor that is always zero."""
    for bias in (0.3, -20.0, 1e9):
        net = Net()
        weight = net.rng.standard_normal((3, 3, 1, 1)).astype(np.float32)
        weight[1] = 0
        x = net.add("Conv", "image", net.const(weight), net.const(np.float32([0, bias, 1])))
        zeros = net.add("Relu", net.add("Conv", "image", net.const(0 * weight), net.const(-np.ones(3, np.float32))))
        x = net.add("Concat", x, net.conv(zeros, (2, 3, 1, 1)), axis=1)
        model = net.model(net.add("Conv", x, net.const(np.eye(5, dtype=np.float32)[..., None, None])))
        network = prepare(model)
        ranges, weights = learnt(network)
        exact = answer(network.model)
        reach = exact.max() - exact.min()
        for made in (answer(encode_cpu(network, ranges, weights)), answer(encode_tensorrt(network, ranges, weights))):
            assert np.abs(made - exact).max() <= 0.02 * reach
            assert np.abs(made[:, 1] - bias).max() <= 0.5 * reach / 127 + 1e-6


def test_tensorrt_encoding() -> None:
    for opset in (13, 17, 19):
        network = deep(opset)
        ranges, weights = learnt(network)
        model = encode_tensorrt(network, ranges, weights)
        onnx.checker.check_model(model, full_check=True)
        assert opset_of(model) == min(opset, 17)
        assert model.ir_version <= 8
        constants, made = constants_of(model), {name: node for node in model.graph.node for name in node.output}
        behind: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                behind.setdefault(name, []).append(node)
        for node in model.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                zero = constants[node.input[2]]
                assert zero.dtype == np.int8
                assert not zero.any()
                after = "DequantizeLinear" if node.op_type == "QuantizeLinear" else "Conv"
                assert {one.op_type for one in behind[node.output[0]]} == {after}
        convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
        assert sum(node.input[1] in made for node in convolutions) == len(network.layers) - 1
        assert all(constants[node.input[2]].dtype == np.float32 for node in convolutions)
        exact = answer(network.model)
        assert rms(answer(model) - exact) < 0.05 * rms(exact)


def test_what_opset_17_lacks() -> None:
    def tail(kind: str, *constants: Any, **settings: Any) -> onnx.ModelProto:
        net = Net(18)
        x = net.add("Relu", net.conv("image", (4, 3, 1, 1)))
        inputs = ["" if value is None else net.const(value) for value in constants]
        network = prepare(net.model(net.conv(net.add(kind, x, *inputs, **settings), (2, 4, 1, 1))))
        model = encode_tensorrt(network, *learnt(network))
        np.testing.assert_allclose(answer(model), answer(network.model), atol=0.05)
        return model

    assert opset_of(tail("ReduceMax", np.array([2]))) == 17
    assert opset_of(tail("Resize", None, np.float32([1, 1, 2, 2]), antialias=0, mode="linear")) == 17
    with pytest.raises(ExportError, match=r"layer Resize 'Resize.*' needs opset 18"):
        tail("Resize", None, np.float32([1, 1, 0.5, 0.5]), antialias=1, mode="linear")
    old = Net(12)
    network = prepare(old.model(old.conv(old.add("Relu", old.conv("image", (4, 3, 1, 1))), (2, 4, 1, 1))))
    with pytest.raises(ExportError, match="opset 12, and scales per channel begin with 13"):
        encode_cpu(network, *learnt(network))


def test_a_unet_is_int8_throughout(tmp_path: Path) -> None:
    """Skips, transposed convolutions and a crop, since half of 62 is odd; all but the head."""
    torch = pytest.importorskip("torch", reason="the network is torch's")
    pytest.importorskip("openvino", reason="OpenVINO judges the cpu encoding too")
    from edgeseg.models import unet
    from edgeseg.tracing import PixelNetwork, trace

    size = (62, 96)
    torch.manual_seed(0)
    module = unet(num_classes=4, base_channels=8)
    for value in module.parameters():
        if value.ndim == 4:  # torch's own make a mask of one class
            torch.nn.init.kaiming_normal_(value)
    network = prepare(trace(PixelNetwork(module, Preprocess(size, HALF, HALF)).eval(), size, "unet"))
    assert "Slice" in {node.op_type for node in network.model.graph.node}
    first, second, frame = (street_scene(seed, size)[0] for seed in range(3))
    ranges, weights = learnt(network, [first, second])
    mask = answer(network.model, frame).argmax(axis=1)
    assert np.bincount(mask.ravel()).max() < 0.8 * mask.size
    path = tmp_path / "unet.onnx"
    onnx.save(encode_cpu(network, ranges, weights), path)
    logits = [answer(encode_tensorrt(network, ranges, weights), frame)]
    for backend in ("ort", "openvino"):
        model = Model(path, "0" * 64, "int8", "cpu", size, (4, *size), 1)
        with registry.get(backend).open(model, "cpu", Options("int8", 1), None) as session:
            found = Execution(session.layers())
            logits.append(session.run(frame[None]))
        assert found.int8_share > 0.99
        assert found.islands == ()
    for made in logits:
        assert np.mean(made.argmax(axis=1) == mask) > 0.95
