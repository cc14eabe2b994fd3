"""What TensorRT refuses, told from an ONNX graph alone: where it is not installed, and by layer and remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, numpy_helper

from edgeseg.errors import EdgesegError, ExportError
from edgeseg.surgery.facts import attributes, nodes_within, opset_of, real_inputs, title

OPSETS = (9, 25)
"""As NVIDIA documents them for TensorRT 11; 10.15 ends at 24, 8.5 at 17. Parsers read on beyond, at one's own risk."""

# What the parser of TensorRT-RTX 1.7.1, which is TensorRT 11's, says that it takes, and DeformConv, which the full
# TensorRT has since 10.1. NonZero and RoiAlign are plugins of the full one. Documented as missing before: in 8.5
# GroupNormalization, HardSwish, Hardmax, IsInf, LayerNormalization and OneHot (8.6 has GroupNormalization, IsInf and
# LayerNormalization, 9.2 Hardmax); before 10.4 the windows, before 10.5 STFT.
OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BlackmanWindow
    Cast CastLike CausalConvWithState Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum
    DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU
    Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
    GridSample GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If
    InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual LinearAttention Log
    LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg
    NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow QuantizeLinear RMSNormalization RNN RandomNormal
    RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign
    RotaryEmbedding Round STFT Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice
    Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh TensorScatter ThresholdedRelu Tile
    TopK Transpose Trilu Unsqueeze Upsample Where Xor
    """.split()  # noqa: SIM905 (a list would be 160 lines)
)

_UNKNOWN_TYPES = frozenset(
    {
        TensorProto.INT16,
        TensorProto.UINT16,
        TensorProto.UINT32,
        TensorProto.UINT64,
        TensorProto.STRING,
        TensorProto.COMPLEX64,
        TensorProto.COMPLEX128,
    }
)
_READ_UINT8 = frozenset({"Cast", "CastLike", "Shape", "Size"})
_UNKNOWN_GRIDS = frozenset({"tf_crop_and_resize", "half_pixel_symmetric"})
_ONE_OUTPUT = frozenset({"BatchNormalization", "LayerNormalization", "MaxPool"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that TensorRT refuses: `layer` is its subject in words, `op` its operator (empty: no layer's)."""

    layer: str
    op: str
    rule: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.layer} {self.rule}: {self.remedy}"


@dataclass(frozen=True, slots=True)
class _Known:
    """What a node's neighbours are: constants (None where not read), uint8 inputs and outputs of the graph."""

    constants: Mapping[str, TensorProto | None]
    pixels: frozenset[str]
    outputs: frozenset[str]

    def kind(self, name: str) -> int | None:
        tensor = self.constants.get(name)
        return None if tensor is None else tensor.data_type

    def value(self, name: str) -> Any:
        """The constant as an array; None for anything else, and where its bytes are in another file."""
        tensor = self.constants.get(name)
        stored = tensor is not None and tensor.data_location != TensorProto.EXTERNAL
        return numpy_helper.to_array(tensor) if tensor is not None and stored else None


_Said = tuple[str, str] | None
"""The rule that a node breaks, as the end of a sentence, and the remedy."""


def check(model: onnx.ModelProto) -> tuple[Finding, ...]:
    """All that TensorRT would refuse in this graph, in its order; empty where nothing is known to stand against it.

    Weights may be in a file of their own. Every rule is one that NVIDIA's compiler was seen to follow, but for the
    range of opsets and uint8 levels around 0, which it takes for int8 or not by version.
    """
    graph = model.graph
    constants: dict[str, TensorProto | None] = {}
    for node in nodes_within(graph):
        if node.op_type == "Constant":
            constants |= {name: attributes(node).get("value") for name in node.output}
    constants |= {tensor.name: tensor for tensor in graph.initializer}
    inputs = real_inputs(graph)
    pixels = frozenset(value.name for value in inputs if value.type.tensor_type.elem_type == TensorProto.UINT8)
    known = _Known(constants, pixels, frozenset(value.name for value in graph.output))
    found = [*_of_the_graph(model)]
    for node in nodes_within(graph):
        for rule in _RULES:
            if said := rule(node, attributes(node), known):
                found.append(Finding(f"layer {title(node)}", node.op_type, *said))
                break  # the first says enough of a layer
    return tuple(found)


def by_rule(findings: Sequence[Finding]) -> tuple[str, ...]:
    """One line per rule and operator, naming its first layer and how many more there are."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.op, finding.rule, finding.remedy), []).append(finding)
    lines = []
    for first, *others in groups.values():
        more = f" (and {len(others)} more)" if others else ""
        lines.append(f"{first.layer}{more} {first.rule}: {first.remedy}")
    return tuple(lines)


def refuse(findings: Sequence[Finding], name: str, error: type[EdgesegError] = ExportError) -> None:
    """Raise `error` in one line, naming the file and the first finding, where there is any."""
    lines = by_rule(findings)
    if lines:
        more = f" ({len(lines) - 1} more such rules)" if len(lines) > 1 else ""
        raise error(f"{name} cannot run on TensorRT: {lines[0]}{more}")


def _of_the_graph(model: onnx.ModelProto) -> Iterator[Finding]:
    opset, (oldest, newest) = opset_of(model), OPSETS
    if not oldest <= opset <= newest:
        rule = f"is written in opset {opset}, and TensorRT reads {oldest} to {newest}"
        yield Finding(f"graph {model.graph.name!r}", "", rule, "export it with opset 17")
    for value in real_inputs(model.graph):
        tensor = value.type.tensor_type
        if not all(dim.HasField("dim_value") for dim in tensor.shape.dim[1:]):
            shape = ", ".join(str(dim.dim_value or dim.dim_param or "?") for dim in tensor.shape.dim)
            rule = f"has shape ({shape}), and only the batch may be open"
            yield Finding(f"input {value.name!r}", "", rule, "export it for one size")
    for stored in model.graph.initializer:
        if stored.data_type in _UNKNOWN_TYPES:
            rule = f"is {_type_name(stored.data_type)}, which TensorRT does not have"
            yield Finding(f"constant {stored.name!r}", "", rule, "store it as int32 or float32")


def _operator(node: onnx.NodeProto, _: Mapping[str, Any], known: _Known) -> _Said:
    if node.op_type in OPERATORS:  # whatever its domain: parsers go by the name
        return None
    whose = f" of domain {node.domain!r}" if node.domain not in ("", "ai.onnx") else ""
    return f"is an operator{whose} that TensorRT does not have", "write the network with others"


def _pixels(node: onnx.NodeProto, _: Mapping[str, Any], known: _Known) -> _Said:
    if node.op_type in _READ_UINT8 or not known.pixels.intersection(node.input):
        return None
    return "reads uint8 pixels", "cast them to float first"


def _types(node: onnx.NodeProto, settings: Mapping[str, Any], known: _Known) -> _Said:
    if node.op_type == "Cast":
        kind = settings.get("to", 0)
        if kind in _UNKNOWN_TYPES:
            return f"casts to {_type_name(kind)}, which TensorRT does not have", "cast to int32 or float32"
        if kind == TensorProto.UINT8 and node.output[0] not in known.outputs:
            return "makes uint8 inside the graph, where TensorRT has none", "cast to int32"
    if node.op_type == "Constant":
        value = settings.get("value")
        if value is None and not {"value_float", "value_floats", "value_int", "value_ints"} & set(settings):
            return "is a text or sparse, which TensorRT does not have", "store it as a plain tensor"
        if value is not None and value.data_type in _UNKNOWN_TYPES:
            return f"is {_type_name(value.data_type)}, which TensorRT does not have", "store it as int32 or float32"
    return None


def _levels(node: onnx.NodeProto, settings: Mapping[str, Any], known: _Known) -> _Said:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        levels = next((name for name in node.input if known.kind(name) == TensorProto.INT8), None)
        return levels and (f"reads the int8 constant {levels!r}", "dequantize it first")
    kinds = {known.kind(name) for name in (*node.input[:1], *node.input[2:])}
    if node.op_type == "QuantizeLinear" and len(node.input) < 3:
        kinds = {settings.get("output_dtype", TensorProto.UINT8)}
    if TensorProto.INT32 in kinds:
        return "dequantizes int32", "leave biases in float"
    if TensorProto.UINT8 in kinds:
        return "has levels in uint8", "quantize to int8 around 0, as the tensorrt encoding does"
    zero = known.value(node.input[2]) if len(node.input) > 2 else None
    if zero is not None and zero.any():
        return "has a zero point other than 0", "quantize to int8 around 0, as the tensorrt encoding does"
    scale = known.value(node.input[1])
    if scale is not None and not (scale > 0).all():
        return "has a scale that is not positive", "calibrate it again"
    return None


def _resize(node: onnx.NodeProto, settings: Mapping[str, Any], known: _Known) -> _Said:
    if node.op_type != "Resize":
        return None
    if settings.get("antialias", 0):
        return "is antialiased", "export it with antialias=False"
    if (grid := settings.get("coordinate_transformation_mode")) in _UNKNOWN_GRIDS:
        return f"has coordinates {grid}, which TensorRT does not have", "use half_pixel or align_corners"
    if settings.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "keeps the aspect ratio by itself", "give it the size that it shall make"
    return None


def _details(node: onnx.NodeProto, settings: Mapping[str, Any], known: _Known) -> _Said:
    op = node.op_type
    if op.endswith("Pool") and any(rate != 1 for rate in settings.get("dilations", ())):
        return "is a dilated pooling", "pool without dilation"
    training = known.value(node.input[2]) if op == "Dropout" and len(node.input) > 2 else None
    if settings.get("training_mode", 0) or (training is not None and training.any()):
        return "is in training mode", "call eval() on the network before it is exported"
    if op in _ONE_OUTPUT and len(node.output) > 1:
        return "has more than one output", "do without the others"
    if op == "ScatterND" and settings.get("reduction", "none") != "none":
        return f"reduces by {settings['reduction']}", "scatter without a reduction"
    if op.startswith("Reduce") and len(node.input) > 1 and node.input[1] and node.input[1] not in known.constants:
        return "has axes that are computed", "give constant ones"
    return None


def _type_name(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()


_RULES: tuple[Callable[[onnx.NodeProto, Mapping[str, Any], _Known], _Said], ...] = (
    _operator,
    _pixels,
    _types,
    _levels,
    _resize,
    _details,
)
