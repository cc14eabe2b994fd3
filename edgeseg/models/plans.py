"""Which numbers of which modules another output stride takes: pure arithmetic over a traced `Flow`.

One rule decides them all: a convolution keeps the distance in image pixels at which its taps lie, its dilation times
the stride of the map it reads. So what a network computes at a coarser stride is a subset of what it computes at a
finer one, and the pyramid's rates scale by the ratio of strides.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

from torch import nn

from edgeseg.errors import InputError
from edgeseg.models.flow import Call, Flow

Attributes = tuple[tuple[str, object], ...]
Settings = dict[str, Attributes]
"""Module name -> its attributes that the knob may turn, with their values."""


def heads(flow: Flow, pyramid: list[Call], ratio: Fraction) -> Settings:
    """The pyramid's rates, and the upsampling modules behind it, for a stride `ratio` times the loaded one."""
    plan = {call.name: _respaced(call, 1 / ratio) for call in pyramid}
    stride = flow.stride(pyramid[0].reads)
    for call in flow.calls:
        scale = getattr(call.module, "scale_factor", None)
        behind = flow.depends(call.reads, pyramid[0].reads) and flow.stride(call.reads) == stride
        if scale is not None and behind:
            scales = tuple(float(one * ratio) for one in scale) if isinstance(scale, tuple) else float(scale * ratio)
            plan[call.name] = (("scale_factor", scales),)
    return plan


def finer(flow: Flow, pyramid: list[Call], wanted: int) -> Settings:
    """Strides past `wanted` turned into dilation.

    Raises InputError where something else than a convolution strides there.
    """
    trunk_end = pyramid[0].reads
    plan: Settings = {}
    written = set()
    for call, conv, reads, writes in flow.convolutions(trunk_end):
        written.add(call.writes)
        if writes > wanted > reads:
            raise InputError(f"{call.name} goes from stride {reads} to {writes} at once: {wanted} is not on the way")
        stride = (1, 1) if writes > max(reads, wanted) else conv.stride
        _put(plan, call, _respaced(call, Fraction(reads, min(reads, wanted)), stride))
    for value, inputs in enumerate(flow.inputs):
        if value in written or not flow.depends(trunk_end, value):
            continue
        after = flow.stride(value) or 0
        if after > wanted and inputs and all((flow.stride(item) or after) < after for item in inputs):
            raise InputError(f"{flow.ops[value]} brings the trunk to stride {after}: only a convolution can dilate")
    return plan


def coarser(flow: Flow, pyramid: list[Call], loaded: int, wanted: int) -> list[Settings]:
    """Every way to give back the strides that dilation replaced, read from where it doubles.

    The strided convolution is either the last at the old dilation (torchvision's ResNets) or the first at the doubled
    one (torchvision's MobileNetV3, segmentation_models_pytorch): which, the shapes will tell. Raises InputError where
    the dilations tell of no such place.
    """
    trunk = [item for item in flow.convolutions(pyramid[0].reads) if item[2] == loaded]
    spatial = [(call, conv.dilation[0]) for call, conv, _, _ in trunk if conv.kernel_size[0] > 1]
    doublings: list[list[Call]] = []
    last: tuple[Call, int] | None = None
    for call, dilation in spatial:
        old = last[1] if last else 1
        if dilation == 2 * old:
            doublings.append([last[0], call] if last else [call])
        elif dilation != old:
            raise InputError(
                f"the trunk's dilations ({', '.join(str(d) for _, d in spatial)}) do not double from one stage to the "
                f"next ({call.name} has {dilation} after {old}): where it lost its strides cannot be told"
            )
        last = call, dilation
    needed = (wanted // loaded).bit_length() - 1
    if len(doublings) < needed:
        raise InputError(
            f"its dilations tell of {len(doublings)} lost strides, so {loaded << len(doublings)} is the coarsest "
            f"output stride to be had, not {wanted}"
        )
    plans = []
    for strided in itertools.product(*doublings[:needed]):
        plan: Settings = {}
        for call, conv, _, _ in trunk:
            behind = sum(call.writes != one.writes and flow.depends(call.reads, one.writes) for one in strided)
            beside = any(_parallel(flow, call, one) for one in strided)
            stride = (2, 2) if beside or call in strided else conv.stride
            _put(plan, call, _respaced(call, Fraction(1, 1 << behind), stride))
        plans.append(plan)
    return plans


def _parallel(flow: Flow, call: Call, strided: Call) -> bool:
    """Whether `call` is the projection shortcut around `strided`."""
    apart = not flow.depends(call.reads, strided.writes) and not flow.depends(strided.reads, call.writes)
    return apart and call.writes != strided.writes and flow.depends(strided.reads, call.reads)


def _put(plan: Settings, call: Call, attributes: Attributes) -> None:
    if plan.setdefault(call.name, attributes) != attributes:
        raise InputError(f"{call.name} is used at several places of the trunk, which would need different dilations")


def _respaced(call: Call, ratio: Fraction, stride: tuple[int, ...] | None = None) -> Attributes:
    """A convolution's settings with its taps `ratio` times as far apart, padded in proportion."""
    conv = call.module
    assert isinstance(conv, nn.Conv2d)
    stride = conv.stride if stride is None else stride
    wide = [size > 1 for size in conv.kernel_size]
    if ratio == 1 or not any(wide):
        return ("stride", stride), ("dilation", conv.dilation), ("padding", conv.padding)
    if conv.padding_mode != "zeros":
        raise InputError(f"{call.name} pads with {conv.padding_mode}: only zero padding can follow a dilation")
    dilation = [rate * ratio if w else Fraction(rate) for rate, w in zip(conv.dilation, wide, strict=True)]
    padding: object = conv.padding
    reach: list[Fraction] = []
    if not isinstance(conv.padding, str):
        reach = [pad * ratio if w else Fraction(pad) for pad, w in zip(conv.padding, wide, strict=True)]
        padding = tuple(map(int, reach))
    if any(value.denominator != 1 for value in [*dilation, *reach]):
        raise InputError(
            f"{call.name} has rate {conv.dilation[0]} and padding {conv.padding}, which times {ratio} is not whole: "
            "its taps would fall between the positions of the coarser map"
        )
    return ("stride", stride), ("dilation", tuple(map(int, dilation))), ("padding", padding)
