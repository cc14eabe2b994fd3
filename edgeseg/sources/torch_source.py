"""Any nn.Module as a source: its output chosen, its stride turned, its tail cut off, torch as the judge."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeseg.errors import ExportError, InputError
from edgeseg.models import turn
from edgeseg.sources.base import Verdict
from edgeseg.surgery.layout import output_stride
from edgeseg.surgery.tail import Cut, cut_tail
from edgeseg.tracing import PixelNetwork, trace
from edgeseg.types import Image, Logits, Preprocess

if TYPE_CHECKING:
    import onnx

_PREFERRED = ("out", "logits", "main")
"""Names under which modules that return a dict keep their scores: torchvision's, transformers', others'."""


class TorchSource:
    """An nn.Module: normalised float32 (N, 3, h, w) in, scores out; it is copied, the caller's is left as it was."""

    def __init__(self, model: nn.Module, preprocess: Preprocess, *, dynamic_batch: bool = False) -> None:
        self.reference = f"torch {torch.__version__}"
        self.producer = {name: version(name) for name in ("torch", "onnx", "onnxscript")}
        self._model = copy.deepcopy(model).eval().cpu()
        self._preprocess = preprocess
        self._dynamic_batch = dynamic_batch

    def stages(self, output_strides: Sequence[int] | None) -> Iterator[TorchStage]:
        """See Source. Raises InputError where a stride cannot be had, ExportError where torch cannot be followed."""
        if output_strides is None:
            yield self._stage(self._model)
            return
        for stride in sorted(set(output_strides)):
            if getattr(self._model, "output_stride", None) == stride:
                yield self._stage(self._model)
                continue
            turned = copy.deepcopy(self._model)
            try:
                turn(turned, stride)
            except InputError as error:
                own = self._stage(self._model)
                if own.output_stride != stride:
                    told = f"no output stride {stride}, the network's own is {own.output_stride}: {error}"
                    raise InputError(told) from error
                yield own
            else:
                yield self._stage(turned, stride)

    def _stage(self, model: nn.Module, stride: int | None = None) -> TorchStage:
        size = self._preprocess.input_size
        _answer(model, np.zeros((*size, 3), np.uint8), self._preprocess)  # its own errors are clearer than a tracer's
        pixels = PixelNetwork(model, self._preprocess, choose_scores)
        cut = cut_tail(trace(pixels, size, "network", dynamic_batch=self._dynamic_batch), size)
        logits_stride = output_stride(size, *cut.logits_shape[1:])
        if logits_stride is None:
            raise ExportError(
                f"the model gives {cut.logits_shape[1]}x{cut.logits_shape[2]} logits for a {size[0]}x{size[1]} input: "
                f"they must cover it evenly, ceil(size / stride) on both axes; use same padding, upsample to "
                f"size=x.shape[-2:] and not by a factor, or choose another size"
            )
        stride = stride or getattr(model, "output_stride", None) or logits_stride
        decoded = hasattr(model, "logits_stride")  # a decoder brings the logits to a finer stride than the encoder's
        if stride != logits_stride and not decoded and -(-size[0] // stride) != cut.logits_shape[1]:
            raise ExportError(
                f"at output stride {stride} the model gives {cut.logits_shape[1]}x{cut.logits_shape[2]} logits for a "
                f"{size[0]}x{size[1]} input, which is stride {logits_stride}: ask for that one"
            )
        return TorchStage(model, cut, stride, self._preprocess)


def choose_scores(output: Any) -> Tensor:
    """The one tensor of scores in what a module returns: a tensor, a dict, a tuple, a list or a record."""
    if isinstance(output, Mapping):
        name = next((name for name in _PREFERRED if name in output), None) or next(iter(output), None)
        output = output[name] if name is not None else None
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    elif not isinstance(output, Tensor):  # a dataclass or another record
        output = next((getattr(output, name) for name in _PREFERRED if hasattr(output, name)), output)
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ExportError(f"the model returns {found}: a tensor (N, classes, h, w) of scores is needed, alone, first "
                          f"in a tuple, or in a dict under {', '.join(_PREFERRED)}")  # fmt: skip
    return output


@dataclass(frozen=True, slots=True)
class TorchStage:
    """One output stride of a module: the graph without its tail, and torch with it as the judge."""

    model: nn.Module
    cut: Cut
    output_stride: int
    preprocess: Preprocess

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
        return self.cut.model

    @torch.inference_mode()
    def judge(self, pixels: Image, logits: Logits) -> Verdict:
        """Run torch on the frame and the cut-off tail on the graph's logits; compare at the module's own output."""
        size, cut = self.preprocess.input_size, self.cut
        wanted = _answer(self.model, pixels, self.preprocess)
        if cut.labels:  # the module ends in argmax or a threshold: only its mask can be compared
            mask = wanted.reshape(wanted.shape[-2:]).to(torch.uint8).numpy().copy()
            if mask.shape != size:
                raise ExportError(f"the model returns a {mask.shape} class map for a {size} input: return its scores")
            return Verdict(logits, 0.0, 0.0, mask)
        own = wanted.reshape(1, cut.logits_shape[0], *wanted.shape[-2:])
        ours = torch.from_numpy(logits)[None]
        if cut.align_corners is not None:
            ours = functional.interpolate(ours, size, mode="bilinear", align_corners=self.align_corners)
        error, scale = float((self._activated(ours) - own).abs().max()), float(own.abs().max())
        untouched = cut.align_corners is None and cut.activation == "none"
        golden = own[0].float().numpy().copy() if untouched else logits
        # Behind the last upsampling an activation changes no mask, but before one it would: undo it where it was cut.
        scores = own if cut.activation == "none" or own.shape[2:] == size else ours
        upsampled = functional.interpolate(scores, size, mode="bilinear", align_corners=self.align_corners)
        threshold = 0.5 if self.values == "probabilities" or (scores is own and cut.activation == "sigmoid") else 0.0
        classes = upsampled[0, 0] > threshold if own.shape[1] == 1 else upsampled[0].argmax(0)
        return Verdict(golden, error, scale, classes.to(torch.uint8).numpy().copy())

    def _activated(self, x: Tensor) -> Tensor:
        if self.cut.activation == "softmax":
            return x.softmax(1)
        if self.cut.activation == "log_softmax":
            return x.log_softmax(1)
        return x.sigmoid() if self.cut.activation == "sigmoid" else x


@torch.inference_mode()
def _answer(model: nn.Module, pixels: Image, preprocess: Preprocess) -> Tensor:
    """The module's own answer, from the usual float preprocessing written down independently of the graph's."""
    mean, std = np.array(preprocess.mean, np.float32), np.array(preprocess.std, np.float32)
    x = (pixels / np.float32(255) - mean) / std
    batch = torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1), dtype=np.float32))[None]
    try:
        answer = choose_scores(model(batch))
    except ExportError:
        raise
    except Exception as error:  # whatever the user's module raises
        raise ExportError(f"the model fails on a {tuple(batch.shape)} input: {_line(error)}") from error
    return answer


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
