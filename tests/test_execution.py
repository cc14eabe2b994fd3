"""What runtimes say they execute, against networks whose int8 and float layers are known by construction."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeseg
from edgeseg import registry
from edgeseg.backends.base import ExecutedLayer, Options, SessionInfo
from edgeseg.backends.execution import Execution
from edgeseg.cli import main
from edgeseg.commands.inspect_runtime import _lines
from edgeseg.errors import BackendError
from edgeseg.testing import TINY
from edgeseg.types import Model

BACKENDS = {"ort": "onnxruntime", "openvino": "openvino"}
SIZE = (16, 24)
PIXELS = SIZE[0] * SIZE[1]
MACS = {"first": 8 * 3 * 9, "depthwise": 8 * 9, "middle": 8 * 8 * 9, "last": 16 * 5}
"""Per output position, by hand: outputs x inputs / groups x kernel."""


def quantized_network(path: Path, batch: int | str = 1) -> Path:
    """first -> depthwise -> Add with first -> middle, in float -> Concat with the sum -> last; the rest is Q/DQ."""
    onnx = pytest.importorskip("onnx", reason="the network is made with onnx")
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    nodes, constants = [], []

    def constant(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def quantized(tensor: str) -> str:
        grid = [constant(f"{tensor}.scale", np.float32(0.02)), constant(f"{tensor}.zero", np.uint8(128))]
        node("QuantizeLinear", [tensor, *grid], f"{tensor}.q")
        return node("DequantizeLinear", [f"{tensor}.q", *grid], f"{tensor}.dq")

    def convolution(name: str, tensor: str, shape: tuple[int, ...], **attributes: Any) -> str:
        scales = np.linspace(1e-3, 2e-3, shape[0], dtype=np.float32)
        weights = [
            constant(f"{name}.weight", random.integers(-127, 128, shape, np.int8)),
            constant(f"{name}.weight.scale", scales),
            constant(f"{name}.weight.zero", np.zeros(shape[0], np.int8)),
        ]
        bias = [
            constant(f"{name}.bias", random.integers(-99, 99, shape[0], np.int32)),
            constant(f"{name}.bias.scale", scales * np.float32(0.02)),
            constant(f"{name}.bias.zero", np.zeros(shape[0], np.int32)),
        ]
        node("DequantizeLinear", weights, f"{name}.weight.dq", axis=0)
        node("DequantizeLinear", bias, f"{name}.bias.dq", axis=0)
        return node("Conv", [tensor, f"{name}.weight.dq", f"{name}.bias.dq"], name, **attributes)

    node("Cast", ["pixels"], "cast", to=TensorProto.FLOAT)
    node("Transpose", ["cast"], "planes", perm=[0, 3, 1, 2])
    image = node("Mul", ["planes", constant("grey", np.float32(0.015))], "image")
    first = quantized(convolution("first", quantized(image), (8, 3, 3, 3), pads=[1] * 4))
    depthwise = quantized(convolution("depthwise", first, (8, 1, 3, 3), pads=[1] * 4, group=8))
    added = quantized(node("Add", [first, depthwise], "added"))
    weight = constant("middle.weight", random.normal(0, 0.1, (8, 8, 3, 3)).astype(np.float32))
    # Softplus keeps ONNX Runtime from quantizing the weights by itself
    middle = node("Softplus", [node("Conv", [added, weight], "middle", pads=[1] * 4)], "soft")
    joined = quantized(node("Concat", [added, quantized(middle)], "joined", axis=1))
    logits = node("Identity", [quantized(convolution("last", joined, (5, 16, 1, 1)))], "logits")
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [batch, *SIZE, 3])],
        [helper.make_tensor_value_info(logits, TensorProto.FLOAT, [batch, 5, *SIZE])],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    onnx.save(made, str(path))
    return path


def int8_model(path: Path, batch: int | None = 1) -> Model:
    return Model(path, "0" * 64, "int8", "cpu", SIZE, (5, *SIZE), batch)


def execution(backend: str, model: Model) -> Execution:
    with registry.get(backend).open(model, "cpu", Options(model.precision, 1), None) as session:
        return Execution(session.layers())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, None])
def test_a_float_layer_among_quantized_ones(backend: str, batch: int | None, tmp_path: Path) -> None:
    pytest.importorskip(BACKENDS[backend], reason="its runtime is not installed")
    found = execution(backend, int8_model(quantized_network(tmp_path / "q.onnx", batch or "N"), batch))
    counted = {layer.name: (layer.precision, layer.macs) for layer in found.layers if layer.macs}
    assert counted == {name: ("fp32" if name == "middle" else "int8", macs * PIXELS) for name, macs in MACS.items()}
    assert found.macs == sum(MACS.values()) * PIXELS
    assert found.int8_share == (sum(MACS.values()) - MACS["middle"]) / sum(MACS.values())
    (island,) = found.islands
    assert island.names[0] == "middle"
    assert all(layer.elapsed_ns is not None and layer.elapsed_ns >= 0 for layer in found.layers)
    assert 0 < (island.elapsed_ns or 0) < (found.elapsed_ns or 0)
    # the pixels become float, or float becomes 8 bits, at least at both ends
    assert {"int8", "fp32"} <= {layer.writes for layer in found.conversions}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stride", [8, 16])
def test_a_float_network_has_the_macs_that_inspect_counts(backend: str, stride: int) -> None:
    pytest.importorskip(BACKENDS[backend], reason="its runtime is not installed")
    pytest.importorskip("onnx", reason="networks are read with onnx")
    from edgeseg.inspection import graphs, report

    with edgeseg.load(TINY, backend=backend, output_stride=stride) as segmenter:
        found = segmenter.execution()
    wanted = report.inspect(graphs.from_bundle(edgeseg.Bundle.open(TINY), output_stride=stride)).macs
    assert (found.macs, found.int8_macs, found.int8_share, found.islands) == (wanted, 0, 0.0, ())
    with pytest.raises(BackendError, match="closed"):
        segmenter.execution()


def test_fused_depthwise_convolutions_are_counted() -> None:
    """On CPUs without AVX-512 OpenVINO fuses one into the convolution before it and drops its name."""
    pytest.importorskip("openvino", reason="its runtime is not installed")
    code = (
        "import edgeseg; found = edgeseg.load(backend='openvino', self_test=False, cache=None).execution();"
        "print(found.macs, sum(1 for layer in found.layers if layer.macs))"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    macs, convolutions = map(int, out.stdout.split())
    assert macs == 3_485_952_320
    assert convolutions <= 63


def layers(text: str) -> tuple[ExecutedLayer, ...]:
    """One layer per letter: i int8, f float, q to int8, d to float, t a transposition in int8; each takes 1 ns."""
    meant = {"i": ("Conv", "int8", "int8"), "f": ("Conv", "fp32", "fp32"), "q": ("FakeQuantize", "fp32", "int8"),
             "d": ("Subgraph", "int8", "fp32"), "t": ("Transpose", "int8", "int8")}  # fmt: skip
    kinds = [(*meant[letter], 8 if letter in "if" else 0) for letter in text]
    return tuple(ExecutedLayer(f"{at}", *kind, elapsed_ns=1) for at, kind in enumerate(kinds))


@pytest.mark.parametrize(
    ("text", "islands"),
    [
        ("", []),
        ("fff", []),
        ("fqiiidf", []),
        ("qitdqid", []),  # conversions without a float layer are none
        ("idfqi", ["dfq"]),
        ("fqitdffqidfqid", ["tdffq", "dfq"]),
        ("ifi", ["f"]),
    ],
)
def test_islands_lie_between_int8_layers(text: str, islands: list[str]) -> None:
    found = Execution(layers(text))
    spans = ["".join(text[int(layer.name)] for layer in island.layers) for island in found.islands]
    assert spans == islands
    assert [island.elapsed_ns for island in found.islands] == [len(span) for span in islands]
    assert [len(island.names) for island in found.islands] == [span.count("f") for span in islands]
    assert len(found.conversions) == sum(text.count(letter) for letter in "qdt")
    assert found.int8_macs == 8 * text.count("i")
    assert found.macs == 8 * sum(text.count(letter) for letter in "if")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["inspect", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_reports_every_runtime_here(capsys: pytest.CaptureFixture[str]) -> None:
    for package in BACKENDS.values():
        pytest.importorskip(package, reason="its runtime is not installed")
    code, out, _ = run(capsys, "--runtime", TINY, "--output-stride", 8, "--json", "--all")
    report = json.loads(out)
    assert code == 0
    assert [found["backend"] for found in report["runtimes"]] == ["openvino", "ort"]
    for found in report["runtimes"]:
        assert found["macs"] == sum(layer["macs"] for layer in found["layers"]) > 0
        assert (found["int8_share"], found["islands"]) == (0.0, [])
        assert found["elapsed_ms"] == pytest.approx(sum(layer["elapsed_ms"] for layer in found["layers"]))
        assert found["conversions"]["executed"]
    code, out, err = run(capsys, "--runtime", TINY, "--backend", "ort")
    assert (code, err) == (0, "")
    assert out.startswith("onnxruntime")
    assert "int8: 0.00% of 0.001 G" in out
    assert "openvino" not in out


def test_the_layers_in_float_are_named() -> None:
    few = Execution((*layers("i" * 9999 + "f"),))
    info = SessionInfo("ort", "onnxruntime", "cpu", "CPU", "int8", 1)
    assert _lines("ort on cpu", info, few, False)[1] == "int8: 99.99% of 0.000 G multiply-accumulates, in float: 9999"
    many = Execution((*layers("i" + "f" * 9),))
    assert _lines("ort on cpu", info, many, False)[1].endswith("in float: 1, 2, 3, 4, 5, 6 and 3 more")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--runtime", "--size", "64x96"], "--size does not go with --runtime"),
        (["--runtime", "--plot", "x.png"], "--plot does not go with --runtime"),
        (["--runtime", "--set", "a=1"], "--set does not go with --runtime"),
        (["--runtime", "--atrous-only"], "--atrous-only does not go with --runtime"),
        (["--runtime", "net.onnx"], "net.onnx is an ONNX file: export it first"),
        (["--runtime", "package:make"], "package:make is a factory: export it first"),
        (["--runtime", "nothing.edgeseg"], "no bundle at nothing.edgeseg"),
        (["--runtime", "--backend", "bogus"], "unknown backend 'bogus'"),
        (["--backend", "ort"], "--backend says what to run, and nothing is run: add --runtime"),
        (["--precision", "fp32"], "--precision says what to run"),
    ],
)
def test_what_does_not_go_together(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert told in err


def test_a_backend_that_does_not_say(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx", reason="the reference backend is onnx's")
    code, out, _ = run(capsys, "--runtime", TINY, "--backend", "reference")
    assert code == 0
    assert out.splitlines()[-1] == "does not say what it executes"
