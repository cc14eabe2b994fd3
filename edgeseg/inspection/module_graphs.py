"""The layers of a torch module at any input size, for `edgeseg.inspection.report`.

The module runs once on torch's meta device, where tensors have shapes but no numbers: milliseconds, whatever the size.
Every operator that passes is written down (`TorchDispatchMode`), so nothing has to be exportable, and hooks tell which
module called it. A module that needs real numbers runs on zeros instead.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgeseg.errors import ExportError, InputError
from edgeseg.geometry import Graph, Layer, Padding, fold_padding
from edgeseg.types import Size

_INPUT = "input"
_REACH = {"nearest": 0, "bilinear": 1, "bicubic": 3}
"""Positions that a resize looks at beside the nearest one."""
_PREFERRED = ("out", "logits", "main")
"""Under which names modules that return a dict keep their scores."""
_LAYOUT = {
    *(
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "permute",
        "transpose",
        "t",
        "clone",
        "contiguous",
        "detach",
    ),
    *("_to_copy", "alias", "expand", "unsqueeze", "squeeze", "split", "chunk"),
}
"""What may take a map apart and put it together again without mixing its positions, as channel shuffles do."""


def from_module(module: nn.Module, *, input_size: Size, source: str = "") -> Graph:
    """Layers of a module that takes float images (N, 3, h, w), in the order in which they run.

    `source` is what reports call it (its class's name if left out); its first output counts, in a dict the one called
    "out", "logits" or "main".
    Raises InputError where it cannot take images of that size, ExportError where its output is no map.
    """
    source = source or type(module).__name__
    try:
        return _record(copy.deepcopy(module).eval().to("meta"), torch.device("meta"), input_size, source)
    except (InputError, ExportError):
        raise
    except Exception:  # values, numpy, or a tensor made on another device: it needs numbers
        pass
    try:
        return _record(copy.deepcopy(module).eval().cpu(), torch.device("cpu"), input_size, source)
    except (InputError, ExportError):
        raise
    except Exception as error:  # whatever the user's module raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{source} cannot take a 1x3x{input_size[0]}x{input_size[1]} input: {reason}") from error


@torch.no_grad()
def _record(module: nn.Module, device: torch.device, input_size: Size, source: str) -> Graph:
    image = torch.zeros((1, 3, *input_size), device=device)
    recorder = _Recorder(image)
    with warnings.catch_warnings(), _names(module, recorder), device, recorder:
        warnings.simplefilter("ignore")  # how fast it would run is not the question here
        result = module(image)
    if isinstance(result, dict):
        result = next((result[name] for name in _PREFERRED if name in result), next(iter(result.values()), None))
    while isinstance(result, list | tuple) and result:
        result = result[0]
    output = recorder.tensors.get(id(result))
    if output is None:
        raise ExportError(f"{source} returns {type(result).__name__}: a tensor (N, classes, h, w) of logits is needed")
    return Graph(source, input_size, _INPUT, output, fold_padding(recorder.layers))


@contextmanager
def _names(module: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Keep the recorder told which module runs."""

    def enter(name: str) -> Any:
        return lambda *_: recorder.running.append(name)

    def leave(*_: Any) -> None:
        recorder.running.pop()

    handles = []
    for name, part in module.named_modules():
        handles += [part.register_forward_pre_hook(enter(name)), part.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes each operator down as a Layer. Tensors are known by identity, and kept so that none is used twice."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: list[Layer] = []
        self.running: list[str] = []
        self.tensors = {id(image): _INPUT}
        self._sizes: dict[str, Size] = {_INPUT: (image.shape[2], image.shape[3])}
        self._kept: list[Any] = [image]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [item for item in _flat(args) if isinstance(item, Tensor) and id(item) in self.tensors]
        if given:
            for tensor in _flat([result]):
                if isinstance(tensor, Tensor):
                    self._write(func.overloadpacket.__name__, args, given, tensor)
        return result

    def _write(self, op: str, args: Any, given: list[Tensor], result: Tensor) -> None:
        inputs = tuple(dict.fromkeys(self.tensors[id(tensor)] for tensor in given))
        output = f"{op}_{len(self.layers)}"
        layer = self._layer(op, args, given, result, inputs, output)
        self.layers.append(layer)
        self.tensors[id(result)] = output  # an operator in place gives its tensor a new name
        self._sizes[output] = layer.output_size
        self._kept.append(result)

    def _layer(
        self, op: str, args: Any, given: list[Tensor], result: Tensor, inputs: tuple[str, ...], output: str
    ) -> Layer:
        name = (self.running[-1] if self.running else "") or "(itself)"
        before = self._sizes[inputs[0]]
        if op == "convolution" and args[1].ndim == 4:
            return _convolution(name, args, inputs[:1], output, before, result)
        if result.ndim != 4:
            return self._other(name, op, inputs, output, before)
        after = (result.shape[2], result.shape[3])
        base = op.rstrip("_")
        if base in ("max_pool2d_with_indices", "avg_pool2d", "max_pool2d"):
            kernel = _pair(args[1])
            stride = _pair(args[2]) if len(args) > 2 and args[2] else kernel
            rows, cols = _pair(args[3] if len(args) > 3 else 0)
            dilation = _pair(args[4] if base.startswith("max") and len(args) > 4 else 1)
            return Layer(name, "pool", base, inputs[:1], output, before, after, kernel=kernel, stride=stride,
                         dilation=dilation, padding=((rows, rows), (cols, cols)))  # fmt: skip
        if base == "constant_pad_nd":
            left, right, top, bottom = (list(args[1]) + [0] * 4)[:4]
            zero = len(args) < 3 or args[2] == 0
            kind = "pad" if zero and min(left, right, top, bottom) >= 0 else "join"
            return Layer(name, kind, base, inputs[:1], output, before, after, padding=((top, bottom), (left, right)))  # type: ignore[arg-type]
        if after == (1, 1) and before != (1, 1):
            return Layer(name, "global", base, inputs, output, before, after)
        sizes = {self._sizes[name] for name in inputs}
        if after in sizes or base in ("expand", "slice", "cat", "add", "mul"):
            return Layer(name, "join", base, inputs, output, before, after)
        kinds = [reach for mode, reach in _REACH.items() if mode in base]
        reach = max([*kinds, 1 if "adaptive" in base else 0])
        return Layer(name, "resample", base, inputs[:1], output, before, after, reach=reach)

    def _other(self, name: str, op: str, inputs: tuple[str, ...], output: str, before: Size) -> Layer:
        """What is no longer a map: taken apart it may be put together again, mixed it is not."""
        if op in _LAYOUT:
            return Layer(name, "join", op, inputs, output, before, before)
        return Layer(name, "global", op, inputs, output, before, (1, 1))


def _convolution(name: str, args: Any, inputs: tuple[str, ...], output: str, before: Size, result: Tensor) -> Layer:
    _, weight, bias, stride, padding, dilation, transposed, _, groups = args
    rows, cols = _pair(padding)
    pads: Padding = ((rows, rows), (cols, cols))
    shape = tuple(weight.shape)
    return Layer(
        name=name,
        kind="transposed" if transposed else "conv",
        op="ConvTranspose" if transposed else "Conv",
        inputs=inputs,
        output=output,
        input_size=before,
        output_size=(result.shape[2], result.shape[3]),
        channels=(shape[0], shape[1] * groups) if transposed else (shape[1] * groups, shape[0]),
        kernel=(shape[2], shape[3]),
        stride=_pair(stride),
        dilation=_pair(dilation),
        padding=pads,
        groups=groups,
        bias=bias is not None,
    )


def _pair(value: Any) -> Size:
    """Torch's int, one-element list or pair as (h, w)."""
    if isinstance(value, int):
        return value, value
    return int(value[0]), int(value[-1])


def _flat(items: Any) -> Iterator[Any]:
    for item in items:
        if isinstance(item, list | tuple):
            yield from _flat(item)
        else:
            yield item
