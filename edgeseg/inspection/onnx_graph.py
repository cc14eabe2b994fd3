"""Reading the layers of an ONNX graph, for `edgeseg.inspection.graphs`. Weights are not read, only their shapes.

Shapes come from inference at the size the file was made for. Exported graphs often freeze sizes in constants (in an
Expand, a Resize), so for another size the maps are followed from layer to layer here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from edgeseg.errors import ExportError, InputError
from edgeseg.geometry import Graph, Layer, Padding, fold_padding, output_size, same_padding, transposed_size
from edgeseg.surgery.facts import learn
from edgeseg.types import Size

_CONVOLUTIONS = {"Conv": 1, "QLinearConv": 3, "ConvInteger": 1, "ConvTranspose": 1}
"""Operator -> which input is the weight."""
_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})
_LAYOUT = frozenset({"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Split", "Identity", "Cast", "Flatten"})
"""What may take a map apart and put it together again without mixing its positions, as channel shuffles do."""
_MEASURES = frozenset({"Shape", "Size"})
_REACH = {"nearest": 0, "linear": 1, "cubic": 3}
"""Positions that a resize looks at beside the nearest one."""


class Reader:
    """One pass over a file's nodes. `size` is a tensor's map now, `native` at the size the file was made for."""

    def __init__(self, model: onnx.ModelProto, path: Path, input_size: Size | None) -> None:
        self.path = path
        graph = model.graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in self.constants]
        if len(inputs) != 1 or not graph.output:
            raise InputError(f"{path} has {len(inputs)} inputs: a network of one image is needed")
        self.input, self.output = inputs[0].name, graph.output[0].name
        native, self.channels_last = self._fix_input(inputs[0], input_size)
        self.input_size = input_size or native
        try:
            facts = learn(model)
        except ExportError as error:
            raise InputError(f"{path} is not a valid network: {error}") from error
        self.shapes, self.known = facts.shapes, facts.constants
        self.producers: dict[str, Any] = {}
        self.lost: set[str] = set()
        self.last = {self.input: self.channels_last}
        self.native: dict[str, Size] = {self.input: native}
        self.size: dict[str, Size] = {self.input: self.input_size}
        self.sizes: dict[Size, Size] = {native: self.input_size}

    def _fix_input(self, value: Any, wanted: Size | None) -> tuple[Size, bool]:
        """Make batch and open sizes of the input definite; returns its (h, w) and whether channels come last."""
        dims = value.type.tensor_type.shape.dim
        if len(dims) != 4:
            raise InputError(f"{self.path} takes {len(dims)}-dimensional input: images of 4 dimensions are needed")
        last = dims[3].dim_value in (1, 3, 4) and dims[1].dim_value not in (1, 3, 4)
        axes = (1, 2) if last else (2, 3)
        for axis, position in enumerate(axes):
            if dims[position].dim_value < 1:
                if wanted is None:
                    raise InputError(f"{self.path} takes images of any size: name one with --size HxW")
                dims[position].dim_value = wanted[axis]
        dims[0].dim_value = 1
        return (dims[axes[0]].dim_value, dims[axes[1]].dim_value), last

    def read(self, nodes: Sequence[Any]) -> Graph:
        layers = []
        for index, node in enumerate(nodes):
            for output in node.output:
                self.producers[output] = node
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
            inputs = [name for name in node.input if name in self.size]
            if node.op_type in _CONVOLUTIONS and node.input[0] in self.lost:
                raise InputError(f"{self.path}: cannot tell the map size before {node.op_type} {node.name}")
            if not inputs or node.op_type in _MEASURES:
                self.lost.update(node.output if self.lost & set(node.input) else ())
                continue
            for output in filter(None, node.output):
                if self._has_shape(output):
                    layers.append(self._layer(node, inputs, output, index))
                else:
                    self.lost.add(output)
        if self.output not in self.size:
            raise InputError(f"{self.path}: cannot tell the size of its output {self.output}")
        return Graph(str(self.path), self.input_size, self.input, self.output, fold_padding(layers))

    def _has_shape(self, name: str) -> bool:
        shape = self.shapes.get(name)
        return shape is not None and (len(shape) != 4 or min(shape) > 0)

    def _layer(self, node: Any, inputs: list[str], output: str, index: int) -> Layer:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        self._note_native(node, inputs, output, attributes)
        if node.op_type in _CONVOLUTIONS and len(self.shapes.get(self._weight(node), ())) == 4:
            return self._convolution(node, inputs[:1], output, attributes, index)
        before = self.size[inputs[0]]
        if node.op_type in _POOLS and len(attributes.get("kernel_shape", ())) == 2:
            kernel, stride, dilation, padding = _window(attributes, tuple(attributes["kernel_shape"]), before)
            ceil = attributes.get("ceil_mode", 0)
            after = self._windowed(node.name, output, before, kernel, stride, dilation, padding, ceil)
            return Layer(
                node.name, "pool", node.op_type, (inputs[0],), output, before, after,
                kernel=kernel, stride=stride, dilation=dilation, padding=padding,
            )  # fmt: skip
        native_before, native = self.native[inputs[0]], self.native.get(output)
        if native is None or (native == (1, 1) and native_before != (1, 1)):
            self._note(output, (1, 1))
            return Layer(node.name, "global", node.op_type, tuple(inputs), output, before, (1, 1))
        if node.op_type == "Pad":
            padding = self._pads(node, attributes, native_before, native)
            after = before[0] + sum(padding[0]), before[1] + sum(padding[1])
            self._note(output, after)
            zeros = attributes.get("mode", b"constant") == b"constant" and min(*padding[0], *padding[1]) >= 0
            kind = "pad" if zeros else "join"  # what reflects the map counts as map
            return Layer(node.name, kind, "Pad", (inputs[0],), output, before, after, padding=padding)  # type: ignore[arg-type]
        if node.op_type in ("Resize", "Upsample"):
            after = self._scaled(node, attributes, before) or self._frozen(node, native, native_before, before)
            joins = after == before
        else:
            known = {self.native[name]: self.size[name] for name in inputs}
            joins = native in known or node.op_type in ("Expand", "Slice", "Concat", "Add", "Mul")
            after = known.get(native) or self._frozen(node, native, native_before, before)
        self._note(output, after)
        if joins:
            return Layer(node.name, "join", node.op_type, tuple(inputs), output, before, after)
        mode = attributes.get("mode", b"nearest").decode() if node.op_type in ("Resize", "Upsample") else "nearest"
        reach = _REACH.get(mode, 1)
        return Layer(node.name, "resample", node.op_type, (inputs[0],), output, before, after, reach=reach)

    def _note(self, output: str, size: Size) -> None:
        self.size[output] = size
        self.sizes.setdefault(self.native.setdefault(output, size), size)

    def _note_native(self, node: Any, inputs: list[str], output: str, attributes: dict[str, Any]) -> None:
        """Find out (h, w) of `output` at the file's own size, and where its channels lie."""
        source, shape = inputs[0], self.shapes.get(output, ())
        last = self.last[source]
        if node.op_type == "Transpose" and len(shape) == 4:
            perm = tuple(attributes.get("perm", (3, 2, 1, 0)))
            last = {(0, 3, 1, 2): False, (0, 2, 3, 1): True}.get(perm, last)
        self.last[output] = last
        if len(shape) == 4 and min(shape) > 0:
            self.native[output] = (shape[1], shape[2]) if last else (shape[2], shape[3])
        elif node.op_type in _LAYOUT or (len(shape) != 4 and node.op_type in ("QuantizeLinear", "DequantizeLinear")):
            self.native[output] = self.native[source]

    def _convolution(self, node: Any, inputs: list[str], output: str, attributes: dict[str, Any], index: int) -> Layer:
        weight, before = self._weight(node), self.size[inputs[0]]
        shape = self.shapes[weight]
        kernel, stride, dilation, padding = _window(attributes, (shape[2], shape[3]), before)
        groups = attributes.get("group", 1)
        transposed = node.op_type == "ConvTranspose"
        if transposed:
            extra = attributes.get("output_padding", (0, 0))
            rows, cols = map(transposed_size, before, kernel, stride, padding, dilation, extra)
            frozen = "output_shape" in attributes
            after = self._frozen(node, self.native[output], self.native[inputs[0]], before) if frozen else (rows, cols)
            self._note(output, after)
        else:
            name = self._name(node, weight, index)
            after = self._windowed(name, output, before, kernel, stride, dilation, padding)
        bias = len(node.input) > _CONVOLUTIONS[node.op_type] + (5 if node.op_type == "QLinearConv" else 1)
        return Layer(
            name=self._name(node, weight, index),
            kind="transposed" if transposed else "conv",
            op=node.op_type,
            inputs=tuple(inputs),
            output=output,
            input_size=before,
            output_size=after,
            channels=(shape[0], shape[1] * groups) if transposed else (shape[1] * groups, shape[0]),
            kernel=kernel,
            stride=stride,
            dilation=dilation,
            padding=padding,
            groups=groups,
            bias=bias and bool(node.input[-1]) and node.op_type != "ConvInteger",
        )

    def _windowed(
        self, name: str, output: str, before: Size, kernel: Size, stride: Size, dilation: Size, padding: Padding,
        ceil: int = 0,
    ) -> Size:  # fmt: skip
        after = []
        for size, k, s, p, r in zip(before, kernel, stride, padding, dilation, strict=True):
            try:
                steps = output_size(size, k, s, p, r)
            except InputError as error:
                raise InputError(f"{self.path}: {name} does not fit this input size: {error}") from error
            # rounding up, the last window must still begin on the map or in the padding before it
            more = ceil and (size + sum(p) - (k - 1) * r - 1) % s and steps * s < size + p[0]
            after.append(steps + bool(more))
        self._note(output, (after[0], after[1]))
        return after[0], after[1]

    def _weight(self, node: Any) -> str:
        """The weight's name, as the initializer has it: behind a DequantizeLinear too."""
        name: str = node.input[_CONVOLUTIONS[node.op_type]]
        while name not in self.constants and name in self.producers and self.producers[name].input:
            name = self.producers[name].input[0]
        return name

    def _name(self, node: Any, weight: str, index: int) -> str:
        """The module's name where the exporter kept it in the weight's or the node's, else the node's."""
        if "." in weight and "::" not in weight:
            name = weight.partition(".weight")[0].removeprefix("network.")
        else:
            name = _module_name(node.name.removesuffix(f"/{node.op_type}"))
        return name or f"{node.op_type} {index}"

    def _pads(self, node: Any, attributes: dict[str, Any], before: Size, after: Size) -> Padding:
        values = list(attributes.get("pads", ()))
        if not values and len(node.input) > 1 and node.input[1] in self.known:
            values = self.known[node.input[1]].tolist()
        first = 1 if self.last[node.input[0]] else 2
        halves = [(new - old) // 2 for old, new in zip(before, after, strict=True)]
        starts = values[first : first + 2] if len(values) == 8 else halves
        return (starts[0], after[0] - before[0] - starts[0]), (starts[1], after[1] - before[1] - starts[1])

    def _scaled(self, node: Any, attributes: dict[str, Any], before: Size) -> Size | None:
        """The size by constant factors, where a resize has them: floor(h x factor), as ONNX says."""
        factors = list(attributes.get("scales", ()))
        for name in node.input[1:3]:
            if not factors and name in self.constants and self.constants[name].data_type == onnx.TensorProto.FLOAT:
                factors = onnx.numpy_helper.to_array(self.constants[name]).tolist()
            factors = factors if len(factors) == 4 else []
        if not factors:
            return None
        first = 1 if self.last[node.input[0]] else 2
        return int(before[0] * factors[first]), int(before[1] * factors[first + 1])

    def _frozen(self, node: Any, native: Size, native_before: Size, before: Size) -> Size:
        """What a size written into the file becomes: that of the map which had it, or the same ratio."""
        if native in self.sizes:
            return self.sizes[native]
        ratio = [now * new for now, new in zip(before, native, strict=True)]
        if any(total % old for total, old in zip(ratio, native_before, strict=True)):
            raise InputError(
                f"{self.path} is made for its own input size ({node.op_type} {node.name} has {native[0]}x{native[1]} "
                "written into it): leave out --size, or inspect the torch module"
            )
        return ratio[0] // native_before[0], ratio[1] // native_before[1]


def _module_name(scopes: str) -> str:
    """TorchScript's /backbone/features/features.2/features.2.0 as the module knows it: backbone.features.2.0."""
    parts: list[str] = []
    for scope in scopes.strip("/").split("/"):
        if parts and scope.startswith(parts[-1] + "."):
            parts.pop()
        parts.append(scope)
    return ".".join(parts)


def _window(attributes: dict[str, Any], kernel: Size, size: Size) -> tuple[Size, Size, Size, Padding]:
    """Kernel, stride, dilation and padding, with `auto_pad` worked out."""
    stride = tuple(attributes.get("strides", (1, 1)))
    dilation = tuple(attributes.get("dilations", (1, 1)))
    pads = attributes.get("pads", (0, 0, 0, 0))
    padding: Padding = ((pads[0], pads[2]), (pads[1], pads[3]))
    auto = attributes.get("auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        spans = [sum(axis) + 1 for axis in same_padding(kernel, (dilation[0], dilation[1]))]
        total = [max(0, (-(-n // s) - 1) * s + span - n) for n, s, span in zip(size, stride, spans, strict=True)]
        small = [t // 2 if auto == b"SAME_UPPER" else t - t // 2 for t in total]
        padding = (small[0], total[0] - small[0]), (small[1], total[1] - small[1])
    return kernel, (stride[0], stride[1]), (dilation[0], dilation[1]), padding
