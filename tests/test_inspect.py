"""`edgeseg inspect` on bundles, ONNX files and torch modules: every number against a count by brute force."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgeseg import images
from edgeseg.bundle import Bundle
from edgeseg.cli import main
from edgeseg.errors import BackendMissing, BundleError, InputError
from edgeseg.geometry import Graph, Layer
from edgeseg.inspection import graphs
from edgeseg.inspection.receptive import receptive_fields
from edgeseg.inspection.report import Report, inspect
from edgeseg.loading import EMBEDDED
from edgeseg.testing import TINY

onnx = pytest.importorskip("onnx", reason="networks are read with onnx")
from onnx import TensorProto, helper

FACTORY = ["edgeseg.models:deeplabv3", "--set", "backbone=mobilenet_v2"]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["inspect", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def valid_by_hand(size: Any, kernel: Any, stride: Any, pads: Any, dilation: Any) -> tuple[int, float]:
    """Slide the kernel over a map of ones in a frame of zeros: weights ever valid, mean share of valid ones."""
    framed = np.pad(np.ones(size, bool), ((pads[0], pads[2]), (pads[1], pads[3])))
    span = [(k - 1) * r + 1 for k, r in zip(kernel, dilation, strict=True)]
    shares = []
    for row in range(kernel[0]):
        for col in range(kernel[1]):
            top, left = row * dilation[0], col * dilation[1]
            rows = slice(top, framed.shape[0] - span[0] + 1 + top, stride[0])
            cols = slice(left, framed.shape[1] - span[1] + 1 + left, stride[1])
            shares.append(framed[rows, cols].mean())
    return int(np.count_nonzero(shares)), float(np.mean(shares))


def signature(layer: Layer) -> tuple[object, ...]:
    return (layer.input_size, layer.output_size, layer.channels, layer.kernel, layer.stride, layer.dilation,
            layer.padding, layer.groups)  # fmt: skip


def convolutions(graph: Graph) -> list[Layer]:
    return [layer for layer in graph.layers if layer.is_convolution]


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_embedded_bundle(stride: int) -> None:
    """Against the shapes that torch's exporter wrote into the file."""
    report = inspect(graphs.from_bundle(Bundle.open(EMBEDDED), output_stride=stride))
    proto = onnx.load(str(EMBEDDED / f"os{stride}-fp32.onnx"), load_external_data=False)
    shapes = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    for value in (*proto.graph.value_info, *proto.graph.output):
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    nodes = [node for node in proto.graph.node if node.op_type == "Conv"]
    assert len(report.layers) == len(nodes) == 63
    macs = parameters = 0
    for node, row in zip(nodes, report.layers, strict=True):
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        weight, out = shapes[node.input[1]], shapes[node.output[0]]
        by_hand = valid_by_hand(
            shapes[node.input[0]][2:], weight[2:], attributes["strides"], attributes["pads"], attributes["dilations"]
        )
        assert row.valid is not None
        assert (row.valid.used, row.valid.mean) == (by_hand[0], pytest.approx(by_hand[1], abs=1e-12))
        assert row.layer.name == node.input[1].removeprefix("network.").removesuffix(".weight")
        assert (row.layer.output_size, row.layer.macs) == (tuple(out[2:]), np.prod(out) * np.prod(weight[1:]))
        assert row.layer.parameters == np.prod(weight) + weight[0]
        macs, parameters = macs + row.layer.macs, parameters + row.layer.parameters
    assert (report.macs, report.parameters) == (macs, parameters)
    assert report.output_stride == (8, 8)  # of the logits: the decoder brings every backbone's there
    assert report.map_size == (45, 60)
    assert report.receptive_field == (1083, 1083)  # whatever the stride: dilation makes up for it
    assert report.whole_image


def test_rate_warnings_of_the_embedded_bundle() -> None:
    (line,) = inspect(graphs.from_bundle(Bundle.open(EMBEDDED))).warnings
    assert line.startswith("mostly padding: aspp.convs.2.0, aspp.convs.3.0 (rates 12, 18 on a 23x30 map)")
    assert "train with rates 4, 7, 11" in line
    (line,) = inspect(graphs.from_bundle(Bundle.open(EMBEDDED), input_size=(65, 65))).warnings
    assert "(rates 6, 12, 18 on a 5x5 map): weights that ever meet the map: 1 of 9 (as in a 1x1" in line
    assert inspect(graphs.from_bundle(Bundle.open(EMBEDDED), input_size=(641, 641))).warnings == ()


# Torch modules


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch modules need torch")


def hooked(torch: Any, model: Any, size: tuple[int, int]) -> list[tuple[str, Any, Any, Any]]:
    """(name, module, input shape, output shape) of each convolution as the module runs, on torch's meta device."""
    calls: list[tuple[str, Any, Any, Any]] = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.register_forward_hook(
                lambda module, given, out, name=name: calls.append((name, module, given[0].shape, out.shape))
            )
    with torch.no_grad():
        model.eval().to("meta")(torch.zeros((1, 3, *size), device="meta"))
    return calls


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize(
    ("factory", "arguments"),
    [
        ("deeplabv3", {"backbone": "mobilenet_v2"}),
        ("deeplabv3", {"backbone": "mobilenet_v3_large"}),
        ("deeplabv3", {"backbone": "resnet50"}),
        ("deeplabv3", {"backbone": "mobilenet_v2", "decoder": "plus"}),
        ("deeplabv3", {"backbone": "mobilenet_v2", "decoder": "subpixel"}),
        ("unet", {"base_channels": 8}),
    ],
)
def test_torch_factories(
    factory: str, arguments: dict[str, Any], stride: int, torch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgeseg import models

    is_unet = factory == "unet"
    arguments = {**arguments, **({"bottleneck_stride": stride} if is_unet else {})}
    options = [text for name, value in arguments.items() for text in ("--set", f"{name}={value}")]
    options += [] if is_unet else ["--output-stride", str(stride)]
    code, out, err = run(capsys, f"edgeseg.models:{factory}", *options, "--size", "129x161", "--all", "--json")
    assert code == 0, err
    report = json.loads(out)
    with torch.device("meta"):
        model = getattr(models, factory)(num_classes=21, **arguments)
    if not is_unet:
        models.set_output_stride(model, stride)
    calls = hooked(torch, model, (129, 161))
    assert [row["name"] for row in report["layers"]] == [name for name, *_ in calls]
    for row, (_, module, given, made) in zip(report["layers"], calls, strict=True):
        assert (row["input_size"], row["output_size"]) == (list(given[2:]), list(made[2:]))
        assert row["parameters"] == sum(p.numel() for p in module.parameters())
        if isinstance(module, torch.nn.ConvTranspose2d):
            assert row["macs"] == given[2:].numel() * module.weight.numel()
            assert row["used_weights"] is None
            continue
        pads = (0, 0) if module.padding == "same" else module.padding
        by_hand = valid_by_hand(given[2:], module.kernel_size, module.stride, (*pads, *pads), module.dilation)
        assert (row["used_weights"], row["mean_valid"]) == (by_hand[0], pytest.approx(by_hand[1], abs=1e-12))
        assert row["macs"] == made.numel() * module.weight[0].numel()
    for total in ("macs", "parameters"):
        assert report[total] == sum(row[total] for row in report["layers"])
    assert report["convolutions"] == len(calls)
    wanted = 1 if is_unet else {"plus": 4, "subpixel": 8}.get(arguments.get("decoder"), stride)
    assert report["output_stride"] == [wanted, wanted]


@pytest.mark.parametrize("size", [(360, 480), (513, 513), (65, 97)])
@pytest.mark.parametrize("stride", [8, 32])
def test_bundle_and_module_agree_at_any_size(stride: int, size: tuple[int, int], torch: Any) -> None:
    """The bundle's files are frozen at 360x480 (their Expand is); the module runs at any size."""
    from edgeseg.inspection.module_graphs import from_module
    from edgeseg.models import deeplabv3

    model = deeplabv3("mobilenet_v2", num_classes=11, decoder="subpixel", output_stride=stride)
    ours = from_module(model, input_size=size)
    frozen = graphs.from_bundle(Bundle.open(EMBEDDED, verify=False), output_stride=stride, input_size=size)
    assert list(map(signature, convolutions(ours))) == list(map(signature, convolutions(frozen)))
    assert [layer.name for layer in convolutions(ours)] == [layer.name for layer in convolutions(frozen)]
    assert receptive_fields(ours)[ours.output] == receptive_fields(frozen)[frozen.output]


def test_receptive_field_of_a_module_is_what_its_gradient_reaches(torch: Any) -> None:
    from torch import nn

    from edgeseg.inspection.module_graphs import from_module

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, (3, 5), stride=2, padding=(1, 2))
            self.pool = nn.MaxPool2d(3, 2, 1)
            self.same = nn.Conv2d(4, 4, 4, padding="same")
            self.left, self.right = nn.Conv2d(4, 4, 3, padding=3, dilation=3), nn.Conv2d(4, 4, 3, padding=7, dilation=7)
            self.gate = nn.Conv2d(4, 4, 1)

        def forward(self, x: Any) -> Any:
            x = nn.functional.avg_pool2d(self.stem(x), 3, 2, 1) + self.pool(self.stem(x))
            x = self.same(x)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)  # a channel shuffle
            x = torch.cat([self.left(x), self.right(x)], 1)[:, 2:6]
            return {
                "aux": x,
                "out": nn.functional.pad(x, (1, 1, 1, 1))[:, :, 1:-1, 1:-1] * self.gate(x.mean((2, 3), True)),
            }

    model = Odd()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)
    graph = from_module(model, input_size=(160, 160))
    field = receptive_fields(graph)[graph.output]
    assert field.whole
    assert field.stride((40, 40), (160, 160)) == (4, 4)
    image = torch.rand((1, 3, 160, 160), requires_grad=True)
    model.pool = nn.AvgPool2d(3, 2, 1)  # a maximum has a gradient at one pixel only
    model(image)["aux"][0, :, 20, 20].sum().backward()
    seen = image.grad.abs().sum((0, 1)) > 0
    rows, cols = (np.flatnonzero(seen.any(axis).numpy()) for axis in (1, 0))
    assert field.size == (rows.max() - rows.min() + 1, cols.max() - cols.min() + 1)
    spans = receptive_fields(graph)[graph.output].spans
    assert spans is not None
    assert int(spans[0].low) + 20 * 4 in range(rows.min() - 4, rows.min() + 5)


def test_a_module_that_needs_numbers_or_other_shapes(torch: Any) -> None:
    from torch import nn

    from edgeseg.inspection.module_graphs import from_module

    class Numbers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x: Any) -> Any:
            return self.conv(x) if x.sum().item() == 0 else x

    assert [layer.name for layer in convolutions(from_module(Numbers(), input_size=(8, 9)))] == ["conv"]
    with pytest.raises(InputError, match="cannot take a 1x3x8x9 input"):
        from_module(nn.Conv2d(4, 2, 3), input_size=(8, 9))
    with pytest.raises(InputError, match="cannot take a 1x3x2x2 input"):
        from_module(Numbers(), input_size=(2, 2))


# ONNX files


def decoder(size: tuple[int, int] | None, *, channels_last: bool = False) -> Any:
    """A network as foreign exporters write them: SAME padding, ceil_mode, a Pad, a frozen Resize and a skip."""
    rng = np.random.default_rng(0)
    weights: list[Any] = []
    nodes: list[Any] = []

    def weight(name: str, *shape: int) -> str:
        weights.append(onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
        return name

    def ints(name: str, *values: int) -> str:
        weights.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(kind, inputs, [output], name=f"/{output}/{kind}", **attributes))

    if channels_last:
        node("Transpose", ["image"], "nchw", perm=[0, 3, 1, 2])
    start = "nchw" if channels_last else "image"
    node("Conv", [start, weight("onnx::Conv_1", 4, 3, 3, 3)], "stem", strides=[2, 2], auto_pad="SAME_UPPER")
    node("MaxPool", ["stem"], "pooled", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    node("Pad", ["pooled", ints("pads", 0, 0, 2, 2, 0, 0, 2, 2)], "padded")
    node("Conv", ["padded", weight("body.atrous.weight", 8, 4, 3, 3), weight("b", 8)], "deep", dilations=[2, 2])
    node("Relu", ["deep"], "relu")
    node("ConvTranspose", ["relu", weight("up.weight", 8, 4, 2, 2)], "upper", strides=[2, 2])
    if size is None:
        node("Shape", ["stem"], "shape")
        node("Resize", ["upper", "", "", "shape"], "resized", mode="linear")
    else:
        half = -(-size[0] // 2), -(-size[1] // 2)
        node("Resize", ["upper", "", "", ints("sizes", 1, 4, *half)], "resized", mode="linear")
    node("Concat", ["stem", "resized"], "cat", axis=1)
    node("Conv", ["cat", weight("head.weight", 2, 8, 1, 3)], "logits", pads=[0, 1, 0, 1])
    height, width = size or ("height", "width")
    shape = [1, height, width, 3] if channels_last else [1, 3, height, width]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)]
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(
        helper.make_graph(nodes, "decoder", inputs, outputs, weights), opset_imports=opset, ir_version=10
    )


def maps_in_onnxruntime(model: Any, size: tuple[int, int], channels_last: bool) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor as ONNX Runtime makes it."""
    ort = pytest.importorskip("onnxruntime")
    model = onnx.ModelProto.FromString(model.SerializeToString())
    names = [name for node in model.graph.node for name in node.output if name not in ("logits", "shape")]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.zeros((1, *size, 3) if channels_last else (1, 3, *size), np.float32)
    return {name: session.run([name], {"image": image})[0].shape for name in [*names, "logits"]}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("made_for", [None, (33, 46), (64, 64)])
def test_onnx_file_at_its_own_and_other_sizes(
    made_for: tuple[int, int] | None, channels_last: bool, tmp_path: Path
) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(decoder(made_for, channels_last=channels_last), str(path))
    for size in (made_for, (33, 46), (61, 75), (128, 97)):
        if size is None:
            continue
        real = maps_in_onnxruntime(decoder(size, channels_last=channels_last), size, channels_last)
        graph = graphs.from_onnx(path, input_size=size)
        for layer in graph.layers:
            if layer.output != "nchw":
                assert layer.output_size == real[layer.output][2:], (size, layer)
        stem, atrous, up, head = convolutions(graph)
        assert [stem.name, atrous.name, up.name, head.name] == ["stem", "body.atrous", "up", "head"]
        assert (atrous.input_size, atrous.padding) == (real["pooled"][2:], ((2, 2), (2, 2)))
        assert (atrous.bias, stem.bias) == (True, False)
        assert atrous.parameters == 8 * 4 * 9 + 8
        assert up.macs == real["relu"][2] * real["relu"][3] * 4 * 8 * 4
        report = inspect(graph)
        assert report.output_stride == (2, 2)
        assert report.receptive_field is not None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opset", [9, 11])
def test_files_of_the_older_exporter(opset: int, torch: Any, tmp_path: Path) -> None:
    """They compute sizes in chains of Shape, Slice and Concat, and lose the weights' names to batch norm folding."""
    from torch import nn

    from edgeseg.inspection.module_graphs import from_module

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
                nn.Sequential(nn.Conv2d(4, 4, 3, 4, 2, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
            )
            self.head = nn.Conv2d(8, 2, 3, padding=1)

        def forward(self, x: Any) -> Any:
            early = self.body[0](x)
            late = nn.functional.interpolate(self.body[1](early), size=early.shape[2:], mode="bilinear")
            return nn.functional.interpolate(self.head(torch.cat([early, late], 1)), size=x.shape[2:], mode="bilinear")

    model, path = Net().eval(), tmp_path / "old.onnx"
    torch.onnx.export(model, (torch.zeros(1, 3, 48, 64),), str(path), dynamo=False, opset_version=opset)
    for size in ((48, 64), (49, 75)):
        ours, theirs = from_module(model, input_size=size), graphs.from_onnx(path, input_size=size)
        assert list(map(signature, convolutions(ours))) == list(map(signature, convolutions(theirs)))
        assert [layer.name for layer in convolutions(ours)] == ["body.0.0", "body.1.0", "head"]
        found = {layer.name for layer in convolutions(theirs)}
        assert found in ({"body.0.0", "body.1.0", "head"}, {"0.0", "1.0", "head"}), found
        assert inspect(ours).map_size == inspect(theirs).map_size == size
        assert inspect(ours).receptive_field == inspect(theirs).receptive_field


def test_quantised_file(tmp_path: Path) -> None:
    one = helper.make_tensor("scale", TensorProto.FLOAT, [], [1.0])
    weight = onnx.numpy_helper.from_array(np.ones((5, 3, 3, 3), np.int8), "layer.weight_quantized")
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["x"]),
        helper.make_node("DequantizeLinear", ["layer.weight_quantized", "scale"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], dilations=[1, 1]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 9])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "int8", [image], [out], [one, weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), str(tmp_path / "q.onnx"))
    (conv,) = convolutions(graphs.from_onnx(tmp_path / "q.onnx"))
    assert (conv.name, conv.macs, conv.parameters) == ("layer", 8 * 9 * 5 * 27, 5 * 27)


# The command


def test_textbook_case(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A 3x3 kernel at rate 65 on a 65x65 map degenerates to 1x1."""
    weight = onnx.numpy_helper.from_array(np.ones((1, 3, 3, 3), np.float32), "atrous.weight")
    conv = helper.make_node("Conv", ["image", "atrous.weight"], ["y"], dilations=[65, 65], pads=[65] * 4)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 65, 65])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([conv], "textbook", [image], [out], [weight])
    path = tmp_path / "textbook.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), str(path))
    code, text, _ = run(capsys, path)
    assert code == 0
    assert "131x131      1/9  11.1%" in text
    assert "warning: degenerate: atrous (rate 65 on a 65x65 map): weights that ever meet the map: 1 of 9" in text
    _, as_json, _ = run(capsys, path, "--json")
    (layer,) = json.loads(as_json)["layers"]
    assert (layer["used_weights"], layer["valid_shares"]) == (1, {"1": 1.0})
    assert "train with rate 28, which fits a 65x65 map, or feed an input of 148x148 or more" in text
    _, text, _ = run(capsys, path, "--size", "131x131")
    assert "9/9" in text


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    code, short, err = run(capsys)
    assert (code, err) == (0, "")
    assert "360x480 -> 45x60 (stride 8)" in short
    assert "total: 10 of 63 convolutions shown, --all lists the rest; 3.49 G multiply-accumulates" in short
    assert "receptive field: 1083x1083 pixels, the image has 360x480; global pooling sees all of it" in short
    _, everything, _ = run(capsys, "--all")
    assert len(everything.splitlines()) == len(short.splitlines()) + 53
    _, atrous, _ = run(capsys, "--atrous-only", "--output-stride", 8)
    assert len([line for line in atrous.splitlines() if " Conv " in line]) == 13
    _, plain, _ = run(capsys, "--output-stride", 32, "--atrous-only", "--json")
    assert [row["dilation"] for row in json.loads(plain)["layers"]] == [[3, 3], [6, 6], [9, 9]]


def test_plot(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, _ = run(capsys, "--plot", tmp_path / "rates.png")
    assert code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["rates.png"]
    picture = images.read(tmp_path / "rates.png")
    assert picture.shape == (420, 760, 3)
    for color in ((0, 114, 178), (230, 145, 0), (0, 150, 110)):
        near = np.abs(picture.astype(int) - color).max(axis=2) < 12
        assert near.sum() > 300, color
    code, _, err = run(capsys, TINY, "--plot", tmp_path / "tiny.jpg")
    assert (code, err) == (0, "")
    assert cv2.imread(str(tmp_path / "tiny.jpg")) is not None


def bad_calls(tmp_path: Path) -> dict[str, tuple[list[object], str]]:
    text = tmp_path / "notes.onnx"
    text.write_text("hello")
    plain = tmp_path / "plain.onnx"
    onnx.save(decoder(None), str(plain))
    fixed = tmp_path / "fixed.onnx"
    onnx.save(decoder((64, 64)), str(fixed))
    return {
        "missing": ([tmp_path / "none"], "no bundle at"),
        "missing file": ([tmp_path / "none.onnx"], "cannot read"),
        "no ONNX": ([text], "not an ONNX file"),
        "no size": ([plain], "name one with --size"),
        "too small": ([EMBEDDED, "--size", "0x3"], "height x width"),
        "does not fit": (
            [fixed, "--size", "2x2"],
            "/pooled/MaxPool does not fit this input size: a kernel of 3 at rate 1 spans",
        ),
        "cannot follow": ([plain, "--size", "2x2"], "cannot tell the map size before Conv /deep/Conv"),
        "stride": ([EMBEDDED, "--output-stride", 4], "no output stride 4: it has 8, 16, 32"),
        "stride of a file": ([plain, "--size", "64x64", "--output-stride", 8], "leave out --output-stride"),
        "set": ([EMBEDDED, "--set", "a=1"], "--set is for factories"),
        "factory size": ([*FACTORY], "give one, as --size"),
        "no module": (["nowhere.at_all:factory", "--size", "9x9"], "cannot import nowhere.at_all"),
        "no factory": (["math:factory", "--size", "9x9"], "has no 'factory'"),
        "no torch module": (["math:hypot", "--size", "9x9"], "returns float"),
        "plot suffix": ([EMBEDDED, "--plot", tmp_path / "a.xyz"], "no image format"),
        "plot nowhere": ([EMBEDDED, "--plot", text / "a.png"], "cannot write"),
    }


@pytest.mark.parametrize("number", range(16))
def test_bad_input_is_one_line(number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = bad_calls(tmp_path)
    assert len(calls) == 16
    arguments, told = list(calls.values())[number]
    if any(":" in str(item) for item in arguments) and "cannot import" not in told and "has no '" not in told:
        pytest.importorskip("torch")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1), err
    assert told in err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendMissing, match=r"pip install \"edgeseg\[onnx\]\""):
        graphs.from_bundle(Bundle.open(EMBEDDED, verify=False))
    with pytest.raises(BundleError, match="no output stride 12: it has 8, 16, 32"):
        graphs.from_bundle(Bundle.open(EMBEDDED, verify=False), output_stride=12)


def test_without_atrous_convolutions_there_is_nothing_to_plot(tmp_path: Path) -> None:
    from edgeseg.inspection import figure4

    report: Report = inspect(
        Graph("plain", (9, 9), "x", "y", (Layer("", "join", "Relu", ("x",), "y", (9, 9), (9, 9)),))
    )
    with pytest.raises(InputError, match="nothing to plot"):
        figure4.draw(report)
    assert (report.macs, report.warnings, report.receptive_field) == (0, (), (1, 1))
