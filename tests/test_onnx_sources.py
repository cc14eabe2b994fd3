"""ONNX files as torch writes them, by both of its exporters, of modules in other people's style."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch writes the files; its CPU build is here for Python 3.11 only")
onnx = pytest.importorskip("onnx", reason="graphs are read with onnx")

import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn

from edgeseg import decode
from edgeseg.sources.base import OnnxReading as Reading
from edgeseg.sources.onnx_source import OnnxSource, OnnxStage
from edgeseg.surgery.facts import opset_of
from edgeseg.surgery.onnx_file import Runner
from edgeseg.surgery.tail import cut_tail
from edgeseg.testing import street_scene
from edgeseg.tracing import PixelNetwork, trace
from edgeseg.types import Preprocess

SIZE = (64, 96)
PREPROCESS = Preprocess(SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Tail = Callable[[Any, Any], Any]


class Net(nn.Module):
    """An encoder at stride 8, batch norms with a past, and a tail of the test's choice."""

    def __init__(self, tail: Tail, classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = [3, 8, 16, 16]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b, momentum=None), nn.ReLU6(inplace=True)
            )
            for a, b in itertools.pairwise(widths)
        )
        self.aspp = nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.drop = nn.Dropout2d(0.1)
        # this batch norm gives every class its share of the picture
        self.head = nn.Sequential(nn.Conv2d(16, classes, 1), nn.BatchNorm2d(classes, affine=False, momentum=None))
        self.tail = tail
        self.train()
        with torch.no_grad():
            for seed in range(3):
                x = torch.from_numpy(street_scene(seed, SIZE)[0].transpose(2, 0, 1)[None].copy()) / 64 - 2
                self.forward(x)
        self.eval()

    def forward(self, x: Any) -> Any:
        y = x
        for stage in self.stages:
            y = stage(y)
        return self.tail(self.head(self.drop(F.relu(self.aspp(y)))), x)


def write(model: nn.Module, writer: str, folder: Path) -> Path:
    path, image = folder / f"{writer}.onnx", torch.zeros(1, 3, *SIZE)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            if writer == "dynamo":
                program = torch.onnx.export(model, (image,), dynamo=True, opset_version=18, verbose=False)
                onnx.save(program.model_proto, path)
            else:
                torch.onnx.export(model, (image,), path, dynamo=False, opset_version=int(writer[6:]))
    finally:
        logger.setLevel(level)
    return path


def imported(path: Path, **reading: Any) -> OnnxStage:
    (stage,) = OnnxSource(path, PREPROCESS, reading=Reading(**reading)).stages(None)
    runner = Runner(stage.graph())
    for seed in (0, 8):
        frame = street_scene(seed, SIZE)[0]
        (found,) = runner.run({"pixels": frame[None]}, ["logits"])
        verdict = stage.judge(frame, found[0])
        assert verdict.error <= 1e-3
        assert verdict.logits is not found[0], "the file's own logits were not compared"
        wants = decode.Wants(probabilities=stage.values == "probabilities")
        mask = decode.decode(found[0], SIZE, grid=decode.Grid(stage.align_corners), wants=wants).class_map
        assert np.mean(mask == verdict.class_map) >= 0.9999
        assert len(np.unique(mask)) > 1
    return stage


def half_pixel(y: Any, x: Any) -> Any:
    return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


def corners(y: Any, x: Any) -> Any:
    return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=True)


def as_dict(y: Any, x: Any) -> Any:
    return {"out": half_pixel(y, x), "aux": y}


def as_tuple(y: Any, x: Any) -> Any:
    return corners(y, x), y.mean((2, 3))


def by_factor(y: Any, x: Any) -> Any:
    return F.interpolate(y, scale_factor=8, mode="bilinear", align_corners=True)


def by_layer(y: Any, x: Any) -> Any:
    return nn.UpsamplingBilinear2d(scale_factor=8)(y)


def twice(y: Any, x: Any) -> Any:
    return half_pixel(F.interpolate(y, scale_factor=2, mode="bilinear"), x)


def to_labels(y: Any, x: Any) -> Any:
    return half_pixel(y, x).softmax(1).argmax(1)


def softmax_first(y: Any, x: Any) -> Any:
    return half_pixel(y.softmax(1), x)


def blocks(y: Any, x: Any) -> Any:
    return F.interpolate(y, size=x.shape[-2:])


def binary(y: Any, x: Any) -> Any:
    return torch.sigmoid(half_pixel(y, x)).squeeze(1)


def binary_mask(y: Any, x: Any) -> Any:
    return (torch.sigmoid(half_pixel(y, x)) > 0.5).squeeze(1).long()


def channels_last(y: Any, x: Any) -> Any:
    return half_pixel(y, x).log_softmax(1).permute(0, 2, 3, 1)


# tail, classes, align_corners, activation, values, output stride where the exporter knows the geometry
CASES = [
    (as_dict, 5, False, "none", "logits", 8),
    (as_tuple, 5, True, "none", "logits", 8),
    (by_factor, 5, True, "none", "logits", 8),
    (by_layer, 5, True, "none", "logits", 8),
    (twice, 5, False, "none", "logits", 4),
    (to_labels, 5, False, "softmax", "logits", 8),
    (softmax_first, 5, False, "none", "probabilities", 8),
    (blocks, 5, None, "none", "logits", 1),
    (binary, 1, False, "sigmoid", "logits", 8),
    (binary_mask, 1, False, "sigmoid", "logits", 8),
    (channels_last, 5, False, "log_softmax", "logits", 8),
]


# dynamo is the slow one and writes what the others do; opset 9 of the older one knows no align_corners, torch says
# "Unsupported: ONNX export of operator upsample_bilinear2d, align_corners == True"
BY_DYNAMO = (as_dict, by_factor, to_labels, softmax_first, binary_mask)
PAIRS = [
    pytest.param(writer, case, id=f"{case[0].__name__}-{writer}")
    for writer in ("dynamo", "script9", "script11")
    for case in CASES
    if not (writer == "script9" and case[2]) and not (writer == "dynamo" and case[0] not in BY_DYNAMO)
]


@pytest.mark.parametrize(("writer", "case"), PAIRS)
def test_files_of_both_exporters(writer: str, case: Any, tmp_path: Path) -> None:
    tail, classes, align_corners, activation, values, stride = case
    stage = imported(write(Net(tail, classes), writer, tmp_path))
    if writer == "script9":  # its Upsample is asymmetric, whatever the module did, and stays
        align_corners, stride = None, 1
        assert "Resize" in [node.op_type for node in stage.graph().graph.node]
    assert (stage.cut.align_corners, stage.cut.activation, stage.values) == (align_corners, activation, values)
    assert (stage.output_stride, stage.logits_shape[0]) == (stride, classes)
    kinds = {node.op_type for node in stage.graph().graph.node}
    assert not kinds & {"BatchNormalization", "Shape", "If", "Constant", "Identity", "Dropout", "ArgMax"}
    assert opset_of(stage.graph()) == (18 if writer == "dynamo" else 13)


def test_another_output_of_a_file(tmp_path: Path) -> None:
    path = write(Net(as_dict), "script11", tmp_path)
    low = onnx.load(path).graph.output[1].name
    stage = imported(path, output=low)
    assert (stage.output_stride, stage.cut.removed) == (8, ())


def test_batch_norms_left_in_the_file(tmp_path: Path) -> None:
    """As written with training=PRESERVE and do_constant_folding=False."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Net(corners), (torch.zeros(1, 3, *SIZE),), tmp_path / "net.onnx", dynamo=False, opset_version=11,
            training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False, keep_initializers_as_inputs=True,
        )  # fmt: skip
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert "BatchNormalization" in [node.op_type for node in graph.node]
    assert len(graph.input) > 1
    stage = imported(tmp_path / "net.onnx")
    assert "BatchNormalization" not in [node.op_type for node in stage.graph().graph.node]


@pytest.mark.parametrize(
    ("tail", "align_corners", "dynamic_batch"),
    [(half_pixel, False, False), (by_factor, True, False), (corners, True, True)],
)
def test_a_traced_modules_upsampling_is_cut(tail: Tail, align_corners: bool, dynamic_batch: bool) -> None:
    """The nn.Module path: torch with its own upsampling is the oracle."""
    net = Net(tail)
    traced = trace(PixelNetwork(net, PREPROCESS), SIZE, "net", dynamic_batch=dynamic_batch)
    cut = cut_tail(traced, SIZE)
    onnx.checker.check_model(cut.model, full_check=True)
    assert (cut.logits_shape, cut.align_corners, cut.values) == ((5, 8, 12), align_corners, "logits")
    runner = Runner(cut.model)
    frames = np.stack([street_scene(seed, SIZE)[0] for seed in ((0, 8) if dynamic_batch else (0,))])
    (logits,) = runner.run({"pixels": frames}, ["logits"])
    with torch.inference_mode():
        answer = PixelNetwork(net, PREPROCESS)(torch.from_numpy(frames)).argmax(1).numpy()
    for found, mask in zip(logits, answer, strict=True):
        assert np.mean(decode.class_map(found, SIZE, align_corners=align_corners) == mask) >= 0.9999
