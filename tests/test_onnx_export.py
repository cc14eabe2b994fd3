"""An ONNX file becomes a bundle on a machine without torch: from the command line, exact against the file itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeseg
from edgeseg.errors import InputError
from edgeseg.testing import street_scene

NAMES = ["sky", "wall", "ground"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two strided convolutions on RGB in 0..1, logits upsampled with aligned corners, argmax: somebody's deployment."""
    noise = np.random.default_rng(3)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((noise.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype("f"), name)

    stored = [weights("a", 8, 3, 3, 3), weights("b", 3, 8, 3, 3)]
    stored.append(numpy_helper.from_array(np.array([1, 3, 64, 96], np.int64), "sizes"))
    nodes = [
        helper.make_node("Conv", ["image", "a"], ["x"], "first", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["x"], ["y"], "relu"),
        helper.make_node("Conv", ["y", "b"], ["scores"], "second", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node(
            "Resize",
            ["scores", "", "", "sizes"],
            ["large"],
            "up",
            mode="linear",
            coordinate_transformation_mode="align_corners",
        ),
        helper.make_node("ArgMax", ["large"], ["classes"], "argmax", axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 64, 96])],
        [helper.make_tensor_value_info("classes", TensorProto.INT64, [1, 64, 96])],
        stored,
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_without_torch(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "net.edgeseg"
    arguments = ["export", str(model), "--size", "64x96", "--classes", ",".join(NAMES)]
    arguments += ["--mean", "0,0,0", "--std", "1,1,1", "-o", str(target)]
    code = f"import sys; sys.modules['torch'] = None; from edgeseg.cli import main; sys.exit(main({arguments}))"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "net.onnx in ONNX Runtime" in done.stdout
    manifest = edgeseg.Bundle.open(target).manifest
    assert (manifest.align_corners, manifest.variants[0].output_stride) == (True, 4)

    import onnxruntime

    original = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    frame = street_scene(5, (64, 96))[0]
    (wanted,) = original.run(None, {"image": (frame.transpose(2, 0, 1)[None] / np.float32(255)).astype(np.float32)})
    for backend in ("ort", "openvino"):
        with edgeseg.load(target, backend=backend) as segmenter:
            assert np.mean(segmenter(frame).class_map == wanted[0]) >= 0.9999


def test_what_is_no_network_is_told(model: Path, tmp_path: Path) -> None:
    settings = {"input_size": (64, 96), "classes": NAMES, "mean": (0, 0, 0), "std": (1, 1, 1)}
    with pytest.raises(InputError, match="model is a int: give an nn"):
        edgeseg.export(5, tmp_path / "x.edgeseg", **settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="an ONNX file has one output stride, this one 4: leave out 8"):
        edgeseg.export(model, tmp_path / "x.edgeseg", output_strides=(8,), **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "x.edgeseg").exists()
