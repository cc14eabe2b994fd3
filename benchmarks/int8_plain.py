"""Other quantizers' graphs of the same network: ONNX Runtime's, and NNCF's from an environment of its own."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime import quantization

from edgeseg.errors import ExportError, one_line
from edgeseg.surgery.onnx_file import read_onnx
from edgeseg.types import Batch, Image, Model


class _Frames(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, frames: Sequence[Image]) -> None:
        self._feeds: Iterator[dict[str, Batch]] = iter([{name: frame[None]} for frame in frames])

    def get_next(self) -> dict[str, Batch] | None:
        return next(self._feeds, None)


def quantize_plainly(model: Model, output: Path, frames: Sequence[Image], keep_float: Collection[str] = ()) -> Path:
    """Write what `onnxruntime.quantization.quantize_static` makes of a float graph by its defaults: Q/DQ, uint8 with
    min-max ranges, signed weights per channel. `keep_float` names nodes to leave alone.
    """
    graph = read_onnx(model.path)
    single = output.with_suffix(".fp32.onnx")  # its own reader is given one file
    onnx.save(graph, single)
    logging.getLogger().setLevel(logging.ERROR)  # it advises to optimise the graph first, of which nothing is left
    quantization.quantize_static(
        single,
        output,
        _Frames(graph.graph.input[0].name, frames),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        nodes_to_exclude=list(keep_float),
    )
    return output


def normalisation(model: Model) -> tuple[str, ...]:
    """The nodes between the pixels and the first convolution."""
    graph = read_onnx(model.path).graph
    tensor, found = graph.input[0].name, list[str]()
    for node in graph.node:
        if tensor in node.input:
            if node.op_type == "Conv":
                break
            found.append(node.name)
            tensor = node.output[0]
    return tuple(found)


def quantize_by_nncf(model: Model, output: Path, frames: Sequence[Image], python: Path) -> Path:
    """Write what nncf.quantize makes of a float graph by its defaults, as OpenVINO's IR. Raises ExportError."""
    single, stored = output.with_suffix(".fp32.onnx"), output.with_suffix(".npy")
    onnx.save(read_onnx(model.path), single)
    np.save(stored, np.stack(frames))
    script = Path(__file__).with_name("int8_nncf.py")
    done = subprocess.run(
        [python, "-I", script, single, stored, output], capture_output=True, text=True, check=False, timeout=3600
    )
    if done.returncode:
        raise ExportError(f"nncf in {python} fails: {one_line(done.stderr.strip().splitlines()[-1:] or 'no message')}")
    return output
