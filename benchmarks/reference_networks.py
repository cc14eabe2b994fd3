"""The networks the recipe trains, and the form in which a pretrained backbone trains fast and stays sound."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeseg.benchmarks.reference_data import CLASSES
from edgeseg.errors import InputError
from edgeseg.models import deeplabv3, unet
from edgeseg.models.weights import read_weights
from edgeseg.types import Size


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one reference network is built and trained; `shares` are output strides with how often each is drawn."""

    build: Callable[[], nn.Module]
    shares: tuple[tuple[int, float], ...]
    size: Size
    """Of a training view: a multiple of every output stride, see `SubpixelConv`."""
    epochs: int
    batch: int
    learning_rate: float

    def changed(self, *, epochs: int | None, size: Size | None, batch: int | None) -> Recipe:
        """With what was asked for in place of its own. Raises InputError for a size that is no multiple of 32."""
        if size is not None and (size[0] % 32 or size[1] % 32):
            raise InputError(f"size is {size[0]}x{size[1]}: choose multiples of 32, as 352x480")
        return replace(self, epochs=epochs or self.epochs, size=size or self.size, batch=batch or self.batch)


RECIPES = {
    "deeplabv3_mobilenet_v2": Recipe(
        lambda: deeplabv3("mobilenet_v2", num_classes=CLASSES, decoder="subpixel"),
        ((32, 0.45), (16, 0.4), (8, 0.15)),
        size=(352, 480),
        epochs=64,
        batch=8,
        learning_rate=6e-4,
    ),
    "unet8": Recipe(
        lambda: unet(num_classes=CLASSES, bottleneck_stride=8, base_channels=16),
        ((1, 1.0),),
        size=(224, 320),
        epochs=40,
        batch=8,
        learning_rate=2e-3,
    ),
}


def start_from(model: nn.Module, backbone: Path) -> None:
    """Load a checkpoint that holds the backbone, all of it, and maybe more of this network.

    Raises InputError where a name or shape does not fit, or a weight of the backbone is missing.
    """
    own, state = model.state_dict(), read_weights(backbone)
    unknown = [name for name, value in state.items() if name not in own or own[name].shape != value.shape]
    missing = [name for name in own if name.startswith("backbone.") and name not in state]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if unknown or missing:
        name = (unknown + missing)[0]
        raise InputError(f"{backbone} is no backbone of this network: {name} does not fit or is missing")
    model.load_state_dict(state, strict=False)


def fold_norms(model: nn.Module) -> list[tuple[str, str]]:
    """Fold the batch norms of `model.backbone` into its convolutions, in place; (convolution, norm) of each, by name.

    The pretrained backbone's norms are identities with a shift. Left to follow a batch they would undo it, and at
    mixed output strides their statistics would be an average of networks; frozen, they are a pass over memory for
    nothing. A bias says the same.
    """
    folded = []
    for prefix, parent in list(model.named_modules()):
        if not prefix.startswith("backbone") or not isinstance(parent, nn.Sequential):
            continue
        for first, second in itertools.pairwise(list(parent._modules)):
            conv, norm = parent._modules[first], parent._modules[second]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                _fold(norm, conv)
                parent._modules[second] = nn.Identity()
                folded.append((f"{prefix}.{first}", f"{prefix}.{second}"))
    return folded


@torch.no_grad()
def _fold(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> None:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = norm.weight / (variance + norm.eps).sqrt()
    conv.weight.mul_(scale[:, None, None, None])
    conv.bias = nn.Parameter(norm.bias - mean * scale)


def unfold_norms(state: dict[str, Tensor], folded: list[tuple[str, str]]) -> dict[str, Tensor]:
    """The state of a folded network in the names of the plain one: norms that are the identity but for their biases.

    Their variance is 1 - eps; in half precision it becomes 1, which scales by 1 - 5e-6.
    """
    state = dict(state)
    for conv, norm in folded:
        bias = state.pop(f"{conv}.bias")
        state[f"{norm}.weight"] = torch.ones_like(bias)
        state[f"{norm}.bias"] = bias
        state[f"{norm}.running_mean"] = torch.zeros_like(bias)
        state[f"{norm}.running_var"] = torch.ones_like(bias) - nn.BatchNorm2d(1).eps
    return state


def by_phases(model: nn.Module) -> None:
    """Make `PhasedConv2d` of the depthwise convolutions, in place; names and values of the weights stay."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.__class__ = PhasedConv2d  # the same layer, computed another way


class PhasedConv2d(nn.Conv2d):
    """A depthwise convolution that runs dilation as dense convolutions over the phases of its input.

    A map read at every d-th pixel is d x d smaller maps, of which each is filtered without dilation: the same sums.
    On CPUs dilated depthwise convolutions have no fast kernel (8 times slower at 960 channels, 44x60, d = 4), and
    torch 2.13's gradient of their weights in bfloat16 is garbage with NaN in it. At stride 2 that gradient has no fast
    kernel in bfloat16 (4 times slower than in float32), so those run in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        d = self.dilation[0]
        if d == 1 and self.stride == (1, 1):
            return super().forward(x)
        if d == 1:
            with torch.autocast(x.device.type, enabled=False):
                return super().forward(x.to(self.weight.dtype)).to(x.dtype)
        n, channels, height, width = x.shape
        x = nn.functional.pad(x, (0, -width % d, 0, -height % d))
        h, w = x.shape[2] // d, x.shape[3] // d
        # channels last throughout: both ways round are copies of whole pixels
        phases = x.permute(0, 2, 3, 1).reshape(n, h, d, w, d, channels).permute(0, 2, 4, 1, 3, 5)
        y = phases.reshape(n * d * d, h, w, channels).permute(0, 3, 1, 2)
        y = nn.functional.conv2d(y, self.weight, self.bias, padding=self.kernel_size[0] // 2, groups=self.groups)
        phases = y.permute(0, 2, 3, 1).reshape(n, d, d, h, w, channels).permute(0, 3, 1, 4, 2, 5)
        return phases.reshape(n, h * d, w * d, channels).permute(0, 3, 1, 2)[:, :, :height, :width]
