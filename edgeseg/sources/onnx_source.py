"""Any ONNX file as a source: pixels in front, its tail cut off, and the untouched file as the judge."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeseg.errors import ExportError, InputError, one_line
from edgeseg.scene import street_scene
from edgeseg.sources.base import OnnxReading, Verdict
from edgeseg.surgery.ending import end_at
from edgeseg.surgery.facts import learn
from edgeseg.surgery.folding import fold, inline_functions, refuse_control_flow, refuse_foreign, strip
from edgeseg.surgery.layout import output_stride
from edgeseg.surgery.onnx_file import Runner, read_onnx, runtime_version, upgrade
from edgeseg.surgery.pixels import Entry, fix_input, from_pixels, read_entry
from edgeseg.surgery.tail import Cut, cut_tail
from edgeseg.types import ClassMap, Color, Image, Logits, Preprocess, Size

Scores = npt.NDArray[np.float32]

_MASK_LIMIT = 0.9999


_PLAIN = OnnxReading()


class OnnxSource:
    """An ONNX file: normalised floats in, logits, probabilities or a class map out; opset 8 upward.

    `preprocess.mean` and `.std` are what the file expects its pixels normalised with, per RGB channel in 0..1 whatever
    `reading.color` (a file that takes 0..255: mean 0, std 1/255). Raises ExportError where the file cannot be used.
    """

    def __init__(
        self, path: str | Path, preprocess: Preprocess, *, reading: OnnxReading = _PLAIN, dynamic_batch: bool = False
    ) -> None:
        self._original = read_onnx(path)
        self._preprocess, self._reading = preprocess, reading
        self._batch = None if dynamic_batch else 1
        self._entry = read_entry(self._original, reading.layout)
        self.reference = f"{Path(path).name} in ONNX Runtime {runtime_version()}"
        self.producer = {"onnx": version("onnx"), "source": hashlib.sha256(Path(path).read_bytes()).hexdigest()}

    def stages(self, output_strides: Sequence[int] | None) -> Iterator[OnnxStage]:
        """The file at its own output stride. Raises InputError where another is asked for, and ExportError."""
        stage = self._stage()
        own = stage.output_stride
        if output_strides is not None and set(output_strides) != {own}:
            asked = ", ".join(map(str, sorted(set(output_strides) - {own})))
            raise InputError(f"an ONNX file has one output stride, this one {own}: leave out {asked}")
        yield stage

    def _stage(self) -> OnnxStage:
        size, reading = self._preprocess.input_size, self._reading
        model = end_at(inline_functions(self._original), reading.output)
        refuse_foreign(model)
        model = fix_input(model, self._entry, size, batch=self._batch)
        model = fold(model, learn(model), learn(model, 2) if self._batch is None else None)
        refuse_control_flow(model)
        cut = cut_tail(model, size, channels=reading.channels)
        stride = output_stride(size, *cut.logits_shape[1:])
        if stride is None:
            raise ExportError(
                f"the file gives {cut.logits_shape[1]}x{cut.logits_shape[2]} logits for a {size[0]}x{size[1]} input: "
                "they must cover it evenly, ceil(size / stride) on both axes; choose another size"
            )
        graph = from_pixels(cut.model, self._entry, self._preprocess, color=reading.color, batch=self._batch)
        graph = upgrade(graph, lambda: {"pixels": _scene(size)[None]})
        graph = fold(graph, learn(graph), learn(graph, 2) if self._batch is None else None)
        try:
            graph = strip(onnx.shape_inference.infer_shapes(graph, strict_mode=True))
            onnx.checker.check_model(graph, full_check=True)
        except Exception as error:  # both raise what they like
            raise ExportError(f"the file is not valid ONNX: {one_line(error)}") from error
        if self._batch is None:
            _check_batches(graph, _scene(size))
        judge = Judge(self._original, self._entry, cut, self._preprocess, reading.color)
        return OnnxStage(graph, cut, stride, judge)


@dataclass(frozen=True, slots=True)
class OnnxStage:
    """The file's network: `model` from pixels to logits, `cut` what was cut off, the file itself as the judge."""

    model: onnx.ModelProto
    cut: Cut
    output_stride: int
    _judge: Judge

    @property
    def align_corners(self) -> bool:
        return bool(self.cut.align_corners)

    @property
    def values(self) -> Literal["logits", "probabilities"]:
        return self.cut.values

    @property
    def logits_shape(self) -> tuple[int, int, int]:
        return self.cut.logits_shape

    def graph(self) -> onnx.ModelProto:
        """From `pixels` to `logits`, weights inside, documentation and paths stripped."""
        twin = onnx.ModelProto()
        twin.CopyFrom(self.model)
        return twin

    def judge(self, pixels: Image, logits: Logits) -> Verdict:
        """Run the untouched file on one network-sized frame. Raises ExportError where the file fails."""
        return self._judge(pixels, logits)


class Judge:
    """The untouched file in ONNX Runtime, fed the usual normalised floats, its own tail included."""

    def __init__(self, original: onnx.ModelProto, entry: Entry, cut: Cut, preprocess: Preprocess, color: Color) -> None:
        made = {name for node in original.graph.node for name in node.output}
        self._shown = [name for name in (cut.logits_name,) if name in made]  # not if it lay in a branch or function
        self._runner = Runner(original, [cut.output_name, *self._shown])
        self._entry, self._cut, self._preprocess, self._color = entry, cut, preprocess, color
        self._upsample = _upsampler(preprocess.input_size, cut)

    def __call__(self, pixels: Image, logits: Logits) -> Verdict:
        mean, std = np.array(self._preprocess.mean, np.float32), np.array(self._preprocess.std, np.float32)
        image = (pixels / np.float32(255) - mean) / std
        image = image[..., ::-1] if self._color == "bgr" else image
        image = image.transpose(2, 0, 1) if self._entry.layout == "NCHW" else image
        batch = np.ascontiguousarray(image[None], np.float32)
        names = [self._cut.output_name, *self._shown]
        values = self._runner.run({self._entry.name: batch}, names)
        own = self._arranged(values[1]) if self._shown else logits
        error = float(np.abs(own - logits).max()) if self._shown else 0.0
        return Verdict(own, error, float(np.abs(own).max()), self._class_map(values[0], own))

    def _arranged(self, values: npt.NDArray[Any]) -> Logits:
        layout = self._cut.layout
        arranged = values.reshape(1, *layout.shape[1:]).transpose(layout.order)[0]
        return np.ascontiguousarray(arranged, np.float32)

    def _class_map(self, final: npt.NDArray[Any], logits: Logits) -> ClassMap:
        """The file's own mask, where it has the input's size; else its logits upsampled as decode defines it."""
        size, cut = self._preprocess.input_size, self._cut
        if cut.labels:
            mask = final.reshape(size) if final.size == size[0] * size[1] else np.squeeze(final)
        elif cut.layout.channel_axis is None:
            scores = final.reshape(size) if final.size == size[0] * size[1] else np.squeeze(final)
            mask = _classes(scores[None], self._threshold())
        else:
            scores = np.moveaxis(final, cut.layout.channel_axis, 0)
            mask = _classes(scores.reshape(scores.shape[0], *scores.shape[-2:]), self._threshold())
        if mask.shape == size:
            return np.asarray(mask, np.uint8)
        low = _classes(logits, 0.5 if cut.values == "probabilities" else 0.0)
        agreement = float(np.mean(low == mask)) if low.shape == mask.shape else 0.0
        if agreement < _MASK_LIMIT:
            raise ExportError(
                f"cutting {', '.join(cut.removed)} changes the file's own answer: {agreement:.4%} of its "
                f"{'x'.join(map(str, mask.shape))} pixels keep their class; name another output"
            )
        (upsampled,) = self._upsample.run({"logits": logits[None]}, ["upsampled"])
        return _classes(upsampled[0], 0.5 if cut.values == "probabilities" else 0.0)

    def _threshold(self) -> float:
        """Where one channel of the file's final scores turns from background to object."""
        return 0.5 if self._cut.activation == "sigmoid" or self._cut.values == "probabilities" else 0.0


def _scene(size: Size) -> Image:
    return street_scene(0, (max(size[0], 32), max(size[1], 32)))[0][: size[0], : size[1]]  # it draws none smaller


def _classes(scores: Scores, threshold: float) -> ClassMap:
    mask = scores[0] > threshold if len(scores) == 1 else scores.argmax(0)
    return np.asarray(mask, np.uint8)


def _upsampler(size: Size, cut: Cut) -> Runner:
    """ONNX Runtime's own bilinear resize: another implementation than decode's."""
    mode = "align_corners" if cut.align_corners else "half_pixel"
    sizes = numpy_helper.from_array(np.array([1, cut.logits_shape[0], *size], np.int64), "sizes")
    inputs = ["logits", "", "", "sizes"]
    node = helper.make_node("Resize", inputs, ["upsampled"], mode="linear", coordinate_transformation_mode=mode)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, cut.logits_shape[0], None, None])
        for name in ("logits", "upsampled")
    ]
    graph = helper.make_graph([node], "upsample", ends[:1], ends[1:], [sizes])
    return Runner(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))


def _check_batches(graph: onnx.ModelProto, scene: Image) -> None:
    """Two frames at once must give what each gives alone: a file may be bound to single frames inside."""
    runner = Runner(graph)
    frames = np.stack([scene, scene[:, ::-1]])
    try:
        (both,) = runner.run({"pixels": frames}, ["logits"])
        alone = np.concatenate([runner.run({"pixels": frame[None]}, ["logits"])[0] for frame in frames])
        same = both.shape == alone.shape and np.allclose(both, alone, rtol=0, atol=1e-4 * float(np.abs(alone).max()))
    except ExportError as error:
        raise ExportError(f"the file takes single frames only: export without dynamic batch ({error})") from error
    if not same:
        raise ExportError("the file takes single frames only (two at once give others): export without dynamic batch")
