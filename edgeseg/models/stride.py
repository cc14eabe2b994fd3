"""Output stride as a knob, on any network that ends in atrous spatial pyramid pooling."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from edgeseg.errors import InputError
from edgeseg.models.aspp import OUTPUT_STRIDES, AtrousNetwork
from edgeseg.models.flow import EVEN, ODD, Call, Flow, trace_flow
from edgeseg.models.plans import Settings, coarser, finer, heads
from edgeseg.models.unet import UNet

_TURNED: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("stride", "dilation", "padding"),
    nn.Upsample: ("scale_factor",),
}
_MEMORY = "_edgeseg_stride"


@dataclass(frozen=True, slots=True)
class StrideChange:
    """What `set_output_stride` did: `scaled_rates` = `trained_rates` * `trained_output_stride` / `output_stride`."""

    output_stride: int
    previous_output_stride: int
    trained_output_stride: int
    """The stride the network came with; the rates it came with are right there."""
    trained_rates: tuple[int, ...]
    scaled_rates: tuple[int, ...]
    changed: tuple[str, ...]
    """Names of the modules whose stride, dilation, padding or scale factor is another than before."""


@dataclass(frozen=True, slots=True)
class _Memory:
    """Kept on a foreign module, so that every turn starts from the loaded network and round trips are exact."""

    loaded: Settings
    left: Settings
    """Settings as the last turn left them; others mean that someone else has turned since."""
    output_stride: int


def set_output_stride(model: nn.Module, output_stride: int) -> StrideChange:
    """Run `model` at output stride 8, 16 or 32 from now on: strides turn into dilation and back, rates follow.

    `model` is one of edgeseg's or any DeepLab-like module (torchvision's, segmentation_models_pytorch's): a traced
    forward pass finds its trunk and its ASPP, and another one proves the result before it is kept. Upsampling modules
    with a fixed scale factor follow. Where a network computes means over a map (squeeze-and-excite, image pooling),
    these are taken over the finer or coarser map.

    Raises InputError, with `model` as it was, where the stride cannot be had, saying why.
    """
    before = _settings(model)
    if isinstance(model, AtrousNetwork):
        previous = model.output_stride
        model.set_output_stride(output_stride)
        trained, rates, scaled = model.trained_output_stride, model.trained_rates, model.rates
        return StrideChange(output_stride, previous, trained, rates, scaled, _changed(before, _settings(model)))
    if isinstance(model, UNet):
        model.set_output_stride(output_stride)
        return StrideChange(1, 1, 1, (), (), ())
    if output_stride not in OUTPUT_STRIDES:
        raise InputError(f"output stride {output_stride} is not possible here: choose 8, 16 or 32")
    memory: _Memory | None = model.__dict__.get(_MEMORY)
    if memory is not None and memory.left == before:
        _apply(model, memory.loaded)
    else:
        memory = None
    try:
        flow, pyramid, trained = _survey(model)
        plan = _plan(model, flow, pyramid, trained, output_stride)
    except BaseException:
        _apply(model, before)
        raise
    loaded = _settings(model)
    _apply(model, plan)
    after = _settings(model)
    setattr(model, _MEMORY, _Memory(loaded, after, output_stride))
    return StrideChange(
        output_stride,
        memory.output_stride if memory else trained,
        trained,
        _rates(pyramid, loaded),
        _rates(pyramid, after),
        _changed(before, after),
    )


def turn(model: nn.Module, output_stride: int) -> None:
    """Turn any module: by its own method `set_output_stride` where it has one, else by tracing its trunk.

    Raises InputError where the stride cannot be had.
    """
    knob = getattr(model, "set_output_stride", None)
    if callable(knob):
        knob(output_stride)
    else:
        set_output_stride(model, output_stride)


def _settings(model: nn.Module) -> Settings:
    return {
        name: tuple((attribute, getattr(module, attribute)) for attribute in attributes)
        for name, module in model.named_modules()
        for kind, attributes in _TURNED.items()
        if isinstance(module, kind)
    }


def _apply(model: nn.Module, settings: Settings) -> None:
    for name, attributes in settings.items():
        module = model.get_submodule(name)
        for attribute, value in attributes:
            setattr(module, attribute, value)


def _changed(before: Settings, after: Settings) -> tuple[str, ...]:
    return tuple(name for name, values in after.items() if values != before[name])


def _rates(pyramid: list[Call], settings: Settings) -> tuple[int, ...]:
    return tuple(dict(settings[call.name])["dilation"][0] for call in pyramid)  # type: ignore[index]


def _survey(model: nn.Module) -> tuple[Flow, list[Call], int]:
    """What the model does, its pyramid, and the stride of the map that this reads."""
    try:
        flow = trace_flow(model, ODD)
        if flow.stride(flow.output) is None:  # a fixed scale factor rounds at odd sizes
            flow = trace_flow(model, EVEN)
        pyramid = _pyramid(model, flow)
    except InputError:
        flow = trace_flow(model, EVEN)
        pyramid = _pyramid(model, flow)
    stride = flow.stride(pyramid[0].reads)
    assert stride is not None, "Flow.convolutions yields those with known strides only"
    return flow, pyramid, stride


def _pyramid(model: nn.Module, flow: Flow) -> list[Call]:
    """ASPP's atrous convolutions: those that read one map side by side, at different dilations."""
    readers: dict[int, list[Call]] = {}
    for call, conv, _, _ in flow.convolutions(flow.output):
        if conv.kernel_size[0] > 1:
            readers.setdefault(call.reads, []).append(call)
    found = [calls for calls in readers.values() if len({call.module.dilation for call in calls}) > 1]
    if len(found) == 1:
        return found[0]
    name, skips = type(model).__name__, ", ".join(map(str, flow.skips()))
    if found:
        raise InputError(f"{name} has {len(found)} atrous pyramids: which of them ends the trunk cannot be told")
    if skips:
        raise InputError(
            f"{name} has a decoder with skips: it joins upsampled features with the encoder's at stride {skips}, which "
            "ties every stride to the next, so none can turn into dilation; rebuild and train it at another stride"
        )
    raise InputError(
        f"{name} has no atrous pyramid (parallel convolutions of different dilation on one map), so where its trunk "
        "ends cannot be told: the knob is for DeepLab-like networks"
    )


def _plan(model: nn.Module, flow: Flow, pyramid: list[Call], loaded: int, wanted: int) -> Settings:
    """The settings that bring `model`, now as loaded, to the wanted stride, proven by a traced forward pass."""
    if wanted == loaded:
        return {}
    plans = [finer(flow, pyramid, wanted)] if wanted < loaded else coarser(flow, pyramid, loaded, wanted)
    settings = _settings(model)
    reasons, proven = [], []
    for plan in plans:
        plan.update(heads(flow, pyramid, Fraction(wanted, loaded)))
        _apply(model, plan)
        reason = _refuted(model, flow, pyramid[0].name, loaded, wanted)
        _apply(model, settings)
        if reason is None:
            proven.append(plan)
        else:
            reasons.append(reason)
    if len(proven) == 1:
        return proven[0]
    name = type(model).__name__
    if proven:
        raise InputError(
            f"where {name} lost its strides cannot be told: {len(proven)} places would serve, and nothing (an identity "
            f"shortcut, a change of channels) rules out all but one; build it at output stride {wanted}"
        )
    skips = flow.skips()
    hint = f" (its decoder joins the encoder's features at stride {', '.join(map(str, skips))})" if skips else ""
    raise InputError(f"{name} cannot run at output stride {wanted}: {reasons[0]}{hint}")


def _refuted(model: nn.Module, before: Flow, pyramid: str, loaded: int, wanted: int) -> str | None:
    """Why the model, turned, does not do what it should; None where it does."""
    try:
        flow = trace_flow(model, before.input_size)
    except InputError as error:
        return f"turned, {error}"
    reads = next(call.reads for call in flow.calls if call.name == pyramid)
    if flow.stride(reads) != wanted:
        return f"turned, its pyramid reads a {flow.sizes[reads]} map of a {flow.input_size} image"
    low_resolution = before.stride(before.output) == loaded
    kept = flow.sizes[flow.output] == before.sizes[before.output]
    if not (flow.stride(flow.output) == wanted if low_resolution else kept):
        return (
            f"it ended at {before.sizes[before.output]} for a {before.input_size} image and would now end at "
            f"{flow.sizes[flow.output]}: it upsamples by a factor written into its code"
        )
    return None
