"""The segmentation networks torchvision publishes weights for, under torchvision's own names.

`deeplabv3_resnet50`, `deeplabv3_resnet101` and `deeplabv3_mobilenet_v3_large` differ from the paper's DeepLabV3 by one
more 3x3 convolution in the head. They end here at low-resolution logits, and their auxiliary head, which only training
uses, is left out: `load_weights` skips its entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from edgeseg.errors import InputError
from edgeseg.models.aspp import ASPP, FILTERS, AtrousNetwork, Rates, check_classes
from edgeseg.models.layers import Backbone, conv_norm_act
from edgeseg.models.mobilenet_v3 import MobileNetV3Large
from edgeseg.models.resnet import ResNet


@dataclass(frozen=True, slots=True)
class _Recipe:
    backbone: Callable[[], Backbone]
    output_stride: int
    rates: Rates = (12, 24, 36)
    note: str = ""


_RECIPES = {
    "deeplabv3_resnet50": _Recipe(partial(ResNet, 50), 8),
    "deeplabv3_resnet101": _Recipe(partial(ResNet, 101), 8),
    # Its strided block is dilated too, unlike the papers' and torchvision's own ResNets: kept, for the weights know it.
    "deeplabv3_mobilenet_v3_large": _Recipe(
        partial(MobileNetV3Large, native_dilation=2),
        16,
        note="trained at output stride 16 with ASPP rates (12, 24, 36), which the paper has at 8: kept as trained",
    ),
}


class TorchvisionDeepLabV3(AtrousNetwork):
    """Normalised images (N, 3, H, W) to logits (N, num_classes, ceil(H/s), ceil(W/s)), s = `output_stride`.

    `note` tells where the trained network departs from the paper; empty where it does not.
    """

    def __init__(self, recipe: _Recipe, num_classes: int) -> None:
        super().__init__()
        self.trained_output_stride, self.trained_rates = recipe.output_stride, recipe.rates
        self.note = recipe.note
        self.backbone = recipe.backbone()
        self.classifier = nn.Sequential(
            ASPP(self.backbone.channels, dropout=0.5),
            *conv_norm_act(FILTERS, FILTERS, 3),
            nn.Conv2d(FILTERS, num_classes, 1),
        )
        self.set_output_stride(recipe.output_stride)

    def pyramid(self) -> ASPP:
        aspp: ASPP = self.classifier[0]  # type: ignore[assignment]
        return aspp

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.backbone(x))
        return logits


def torchvision_deeplabv3(name: str, *, num_classes: int = 21) -> TorchvisionDeepLabV3:
    """Build the network torchvision calls `name`, with random weights, at the output stride it was trained at.

    torchvision's checkpoints load into it as they are: `load_weights(model, "deeplabv3_resnet50_coco-….pth")`.
    Raises InputError for an unknown name or class count.
    """
    if name not in _RECIPES:
        raise InputError(f"unknown torchvision network {name!r}: choose one of {', '.join(_RECIPES)}")
    check_classes(num_classes)
    return TorchvisionDeepLabV3(_RECIPES[name], num_classes)
