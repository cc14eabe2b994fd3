"""ONNX files as people bring them: read with one-line errors, run in ONNX Runtime, brought to a newer opset."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import version_converter

from edgeseg import _wire
from edgeseg.errors import BackendMissing, ExportError, one_line
from edgeseg.surgery.facts import Array, copy, opset_of

OLDEST_OPSET = 8
TARGET_OPSET = 13
"""Older files are brought here: per-channel quantisation begins with it, and every TensorRT since 8 reads it."""
_IR_VERSIONS = (4, 10)
"""From 4 on initialisers need not be inputs; ONNX Runtime 1.20 reads up to 10."""
_RUNTIME_NOISE = 1e-5


def read_onnx(path: str | Path) -> onnx.ModelProto:
    """The file's model, its external weights inside.

    Raises ExportError in one line: no such file, not ONNX, weights missing or outside the file's folder, an opset
    before 8 or newer than the installed onnx knows.
    """
    path = Path(path)
    model = onnx.ModelProto()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror}") from error
    try:
        model.ParseFromString(data)
        locations = _wire.external_locations(data)
    except Exception as error:  # protobuf's DecodeError has no typed home
        raise ExportError(f"{path} is not an ONNX file: it does not parse as one") from error
    if not model.graph.node or not model.opset_import:
        raise ExportError(f"{path} is not an ONNX file: it holds no graph")
    opset, newest = opset_of(model), onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        fix = "export it again with a newer opset" if opset < OLDEST_OPSET else "update the package onnx"
        raise ExportError(f"{path} is written in opset {opset}, and {OLDEST_OPSET} to {newest} can be read: {fix}")
    folder = path.parent.resolve()
    for name in sorted(locations):
        beside = folder / name
        if os.path.isabs(name) or folder not in beside.resolve().parents:
            raise ExportError(f"{path} keeps weights in {name!r}, outside its folder: refused")
        if not beside.is_file():
            raise ExportError(f"{path} keeps weights in {name!r}, which is not beside it: copy that file too")
    try:
        onnx.load_external_data_for_model(model, str(folder))
    except Exception as error:  # onnx checks lengths, links and paths, each with its own class
        raise ExportError(f"{path} has weights that cannot be read: {one_line(error)}") from error
    for tensor in model.graph.initializer:
        if tensor.HasField("data_location"):
            tensor.ClearField("data_location")
            del tensor.external_data[:]
    lowest, highest = _IR_VERSIONS
    model.ir_version = min(max(model.ir_version, lowest), highest)
    return model


class Runner:
    """A model in ONNX Runtime on the CPU; `also` adds inner tensors to its outputs."""

    def __init__(self, model: onnx.ModelProto, also: Sequence[str] = (), *, optimise: bool = True) -> None:
        """`optimise=False` computes node by node. Raises BackendMissing without onnxruntime, ExportError where it
        refuses the model.
        """
        onnxruntime = _onnxruntime()
        model = copy(model)
        there = {value.name for value in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in also if name not in there)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            data = model.SerializeToString()
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no class; protobuf's is for more than 2 GiB
            raise ExportError(f"ONNX Runtime refuses the graph: {one_line(error)}") from error

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """The named outputs. Raises ExportError where the graph fails."""
        try:
            return [np.asarray(value) for value in self._session.run(list(outputs), dict(feeds))]
        except Exception as error:  # see above
            raise ExportError(f"the graph fails in ONNX Runtime: {one_line(error)}") from error


def runtime_version() -> str:
    """ONNX Runtime's version, whatever the package is called that brought it."""
    return str(_onnxruntime().__version__)


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise BackendMissing('checking an ONNX file needs onnxruntime: pip install "edgeseg[ort,onnx]"') from error
    return onnxruntime


def upgrade(model: onnx.ModelProto, make_feeds: Callable[[], Mapping[str, Array]]) -> onnx.ModelProto:
    """The graph in opset 13 where it is older and onnx's converter succeeds, else as it was.

    Success: the result passes onnx's checker and gives the same numbers in ONNX Runtime for these feeds.
    """
    before = opset_of(model)
    if before >= TARGET_OPSET:
        return model
    feeds = make_feeds()
    try:
        newer = version_converter.convert_version(model, TARGET_OPSET)
        if before < 11:
            # the converter forgets that every resize was asymmetric then, and the new default is half_pixel
            for node in newer.graph.node:
                if node.op_type == "Resize":
                    node.attribute.append(onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
                    node.attribute.append(onnx.helper.make_attribute("nearest_mode", "floor"))
        newer.ir_version = model.ir_version
        onnx.checker.check_model(newer, full_check=True)
        names = [value.name for value in model.graph.output]
        old, new = Runner(model).run(feeds, names), Runner(newer).run(feeds, names)
    except Exception:  # the converter and checker raise anything; the file as it was is the answer to all of it
        return model
    same = all(
        a.shape == b.shape and np.allclose(a, b, rtol=0, atol=_RUNTIME_NOISE * max(1.0, float(np.abs(a).max())))
        for a, b in zip(old, new, strict=True)
    )
    return newer if same else model
