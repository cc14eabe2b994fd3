"""What TensorRT compiled, read from the table of layers that the builder tells its logger at the end."""

from __future__ import annotations

import math
import re

from edgeseg.backends.base import ExecutedLayer

TABLE = "Layers:\n"
"""How the message begins: VERBOSE, where the profiling verbosity is DETAILED (seen of TensorRT for RTX)."""

_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"Constants: \[(?P<constants>.*?)\], Outputs: \[(?P<outputs>.*?)\], TacticName: .*?(?:Metadata: (?P<metadata>.*))?$"
)
_TENSOR = re.compile(r"\{ Name: [^,]+, Dimensions: \[(?P<shape>[^\]]*)\], .*?Datatype: (?P<type>\w+)")
_ORIGIN = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_TYPES = {"Int8": "int8", "Float": "fp32", "Half": "fp16", "BFloat16": "bf16"}
CONVOLUTION = "correlation"
"""TensorRT's word for it."""


def executed_layers(message: str) -> tuple[ExecutedLayer, ...]:
    """The layers in the table `message`, in order; convolutions bear the ONNX node's name.

    A convolution is in int8 where both what it reads and its weights are. Its multiply-accumulates are those of the
    compiled one: depthwise ones in int8 have been widened to groups of four channels, three of them zero.
    """
    return tuple(_layer(found) for line in message.splitlines() if (found := _LINE.match(line)))


def _layer(found: re.Match[str]) -> ExecutedLayer:
    inputs, constants, outputs = (_tensors(found[part]) for part in ("inputs", "constants", "outputs"))
    kind, origin = found["kind"], _ORIGIN.search(found["metadata"] or "")
    name = origin[1] if kind == CONVOLUTION and origin else found["name"]
    written = outputs[0][1] if outputs else ""
    if kind != CONVOLUTION or not (inputs and constants and outputs):
        return ExecutedLayer(name, kind, inputs[0][1] if inputs else written, written)
    (_, read), (weights, held) = inputs[0], constants[0]
    positions = math.prod(outputs[0][0][2:])
    return ExecutedLayer(name, kind, read if read == held else held, written, macs=positions * math.prod(weights))


def _tensors(text: str) -> list[tuple[tuple[int, ...], str]]:
    """(shape, precision) of each tensor in the text."""
    return [
        (
            tuple(int(size) for size in found["shape"].split(",") if size.strip()),
            _TYPES.get(found["type"], found["type"]),
        )
        for found in _TENSOR.finditer(text)
    ]
