"""A torch module as an ONNX graph from uint8 pixels to scores."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from edgeseg.errors import ExportError
from edgeseg.surgery.folding import strip
from edgeseg.types import Preprocess, Size

OPSET = 18
"""What torch's exporter writes natively; older is converted by third parties at their own risk."""


class PixelNetwork(nn.Module):
    """`network` behind uint8 pixels: (N, h, w, 3) RGB to the scores that `choose` finds in its output.

    Cast comes before Transpose because TensorRT refuses to transpose uint8.
    """

    def __init__(
        self, network: nn.Module, preprocess: Preprocess, choose: Callable[[Any], Tensor] = lambda output: output
    ) -> None:
        super().__init__()
        self.network, self.choose = network, choose
        self.scale: Tensor
        self.shift: Tensor
        mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
        self.register_buffer("scale", (1 / (255 * std)).reshape(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).reshape(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.to(torch.float32).permute(0, 3, 1, 2)
        return self.choose(self.network(x * self.scale + self.shift))


def trace(network: PixelNetwork, input_size: Size, name: str, *, dynamic_batch: bool = False) -> onnx.ModelProto:
    """Turn a PixelNetwork in eval mode into ONNX with input `pixels` and output `logits`, weights inside.

    The batch size is 1, or any with `dynamic_batch`. Batch norms come out folded into their convolutions. Raises
    ExportError where torch.export cannot follow.
    """
    # A dimension of size 1 would be taken for a constant.
    pixels = torch.zeros((2 if dynamic_batch else 1, *input_size, 3), dtype=torch.uint8)
    shapes = {"pixels": {0: torch.export.Dim("batch", min=1)}} if dynamic_batch else None
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (pixels,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["pixels"],
                output_names=["logits"],
                dynamic_shapes=shapes,
                verbose=False,
            )
    except Exception as error:  # torch.export raises from every one of its layers
        raise ExportError(f"torch.export cannot trace {type(network.network).__name__}: {_cause(error)}") from error
    if program is None:
        raise ExportError("torch.onnx.export returned nothing: report this with the model")
    proto = strip(program.model_proto)  # its stack traces and paths would also make every export differ
    proto.graph.name = name
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter tells of missing torchvision, its own deprecations, and whole graphs where it fails."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "torch.fx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _cause(error: BaseException) -> str:
    """The innermost reason, one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
