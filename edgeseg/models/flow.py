"""What one forward pass of any network does, on tensors without data: which layer reads what, at which stride."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgeseg.errors import InputError

ODD, EVEN = (385, 513), (384, 512)
"""Image sizes to trace at. One more than a multiple of 128 proves ceil(size / s) at every stride; multiples are for
networks that take nothing else."""
_STRIDES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a Conv2d or Upsample module: the values (numbers into `Flow`) it reads and writes."""

    name: str
    module: nn.Module
    reads: int
    writes: int


@dataclass(slots=True)
class Flow:
    """Every tensor of one forward pass, numbered in order; 0 is the image."""

    input_size: tuple[int, int]
    ops: list[str] = field(default_factory=list)
    inputs: list[tuple[int, ...]] = field(default_factory=list)
    sizes: list[tuple[int, ...]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    output: int = 0
    _ancestors: list[int] = field(default_factory=list)  # bit sets

    def add(self, op: str, inputs: tuple[int, ...], shape: Sequence[int]) -> int:
        number = len(self.ops)
        ancestors = 1 << number
        for value in inputs:
            ancestors |= self._ancestors[value]
        self.ops.append(op)
        self.inputs.append(inputs)
        self.sizes.append(tuple(shape[2:]))
        self._ancestors.append(ancestors)
        return number

    def depends(self, value: int, on: int) -> bool:
        """Whether `value` is computed from `on` (a value depends on itself)."""
        return bool(self._ancestors[value] >> on & 1)

    def stride(self, value: int) -> int | None:
        """The stride s at which the value's map is ceil(size / s) of the image; None where there is none."""
        height, width = self.input_size
        for stride in _STRIDES:
            if self.sizes[value] == (-(-height // stride), -(-width // stride)):
                return stride
        return None

    def convolutions(self, before: int) -> Iterator[tuple[Call, nn.Conv2d, int, int]]:
        """The convolutions that `before` is computed from, in order, with the strides of what they read and write."""
        for call in self.calls:
            if isinstance(call.module, nn.Conv2d) and self.depends(before, call.writes):
                reads, writes = self.stride(call.reads), self.stride(call.writes)
                if reads is not None and writes is not None:
                    yield call, call.module, reads, writes

    def skips(self) -> list[int]:
        """The strides at which something upsampled meets something that never was."""
        risen = [False] * len(self.ops)
        found = set()
        for value, inputs in enumerate(self.inputs):
            here = self.stride(value)
            below = [stride for item in inputs if (stride := self.stride(item)) is not None]
            risen[value] = any(risen[item] for item in inputs) or bool(here and below and here < min(below))
            maps = [risen[item] for item in inputs if self.stride(item) == here]
            if here is not None and any(maps) and not all(maps):
                found.add(here)
        return sorted(found)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, flow: Flow) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow = flow
        self.numbers: dict[int, int] = {}
        self._alive: list[Tensor] = []  # an id is only unique among living objects

    def number(self, op: str, inputs: tuple[int, ...], tensor: Tensor) -> int:
        number = self.flow.add(op, inputs, tensor.shape)
        self.numbers[id(tensor)] = number
        self._alive.append(tensor)
        return number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = (self.numbers.get(id(leaf)) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        inputs = tuple(dict.fromkeys(number for number in known if number is not None))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.number(func.overloadpacket.__name__, inputs, leaf)
        return result


def trace_flow(model: nn.Module, size: tuple[int, int]) -> Flow:
    """Run `model` in eval mode on an image of this size without data; its weights and mode stay.

    Raises InputError where it cannot run so.
    """
    try:
        with _quiet():
            return _trace(model, size)
    except Exception as error:  # whatever the user's module raises
        reason = str(error).strip().splitlines() or [type(error).__name__]
        name = type(model).__name__
        raise InputError(f"{name} does not run on a {size[0]}x{size[1]} image: {reason[0]}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs a traceback of every shape that does not fit; here that is an answer, told in the error."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _eval(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _trace(model: nn.Module, size: tuple[int, int]) -> Flow:
    flow = Flow(size)
    recorder = _Recorder(flow)
    weight = next((value for value in model.parameters() if value.is_floating_point()), torch.zeros(()))
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Upsample):

            def note(module: nn.Module, args: Any, kwargs: Any, out: Any, name: str = name) -> None:
                reads = args[0] if args else kwargs["input"]
                numbers = recorder.numbers
                if id(reads) in numbers and id(out) in numbers:
                    flow.calls.append(Call(name, module, numbers[id(reads)], numbers[id(out)]))

            handles.append(module.register_forward_hook(note, with_kwargs=True))
    try:
        with _eval(model), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            image = torch.empty(1, 3, *size, dtype=weight.dtype, device=weight.device)
            recorder.number("image", (), image)
            with recorder:
                result = model(image)
    finally:
        for handle in handles:
            handle.remove()
    flow.output = recorder.numbers[id(_logits(result))]
    return flow


def _logits(result: Any) -> Tensor:
    """The output that matters: the tensor itself, of a dict `out` or `logits`, else the first tensor."""
    if isinstance(result, Mapping):
        result = result.get("out", result.get("logits", result))
    found = next((leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)), None)
    if found is None:
        raise InputError(f"it returns {type(result).__name__}, which holds no tensor")
    return found
