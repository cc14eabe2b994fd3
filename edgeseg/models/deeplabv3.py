"""DeepLabV3 and DeepLabV3+: a dilated backbone, atrous spatial pyramid pooling, a decoder if wanted, a 1x1 classifier.

Chen, Papandreou, Schroff, Adam, "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017, section 3.3
and Figure 5; Chen, Zhu, Papandreou, Schroff, Adam, "Encoder-Decoder with Atrous Separable Convolution for Semantic
Image Segmentation", ECCV 2018, section 3.1 and Figure 2. The network ends at low-resolution logits: upsampling to the
frame is `edgeseg.decode`'s exact work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from edgeseg.errors import InputError
from edgeseg.models.aspp import ASPP, FILTERS, AtrousNetwork, check_classes
from edgeseg.models.layers import Activation, Backbone, conv_norm_act, relu, relu6, separable_conv
from edgeseg.models.mobilenet import MobileNetV2
from edgeseg.models.mobilenet_v3 import MobileNetV3Large
from edgeseg.models.resnet import ResNet
from edgeseg.models.subpixel import STRIDE, WIDTH, SubpixelDecoder

Decoder = Literal["none", "plus", "subpixel"]
_LOW_FILTERS = 48
_RESNETS = {"resnet50": 50, "resnet101": 101}
_BACKBONES: dict[str, Callable[[], Backbone]] = {
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v3_large": MobileNetV3Large,
    **{name: partial(ResNet, depth) for name, depth in _RESNETS.items()},
}


class PlusDecoder(nn.Module):
    """DeepLabV3+'s decoder: ASPP's output joined by the stride-4 features, two 3x3 convolutions, (N, 256, h/4, w/4)."""

    def __init__(self, low_channels: int, *, activation: Activation, separable: bool) -> None:
        super().__init__()
        conv = separable_conv if separable else partial(conv_norm_act, kernel=3)
        self.low = conv_norm_act(low_channels, _LOW_FILTERS, 1, activation)
        self.refine = nn.Sequential(
            conv(FILTERS + _LOW_FILTERS, FILTERS, activation=activation), conv(FILTERS, FILTERS, activation=activation)
        )

    def forward(self, low: Tensor, features: Tensor) -> Tensor:
        low = self.low(low)
        features = nn.functional.interpolate(features, low.shape[2:], mode="bilinear", align_corners=False)
        y: Tensor = self.refine(torch.cat([features, low], dim=1))
        return y


class DeepLabV3(AtrousNetwork):
    """Normalised images (N, 3, H, W) to logits (N, num_classes, ceil(H/s), ceil(W/s)), s = `logits_stride`.

    `logits_stride` is the backbone's `output_stride`, except with a decoder: there it is 4 ("plus") or 8 ("subpixel")
    whatever the knob says.
    """

    trained_output_stride, trained_rates = 16, (6, 12, 18)

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        decoder: Decoder = "none",
        separable: bool = False,
        activation: Activation = relu,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.aspp = ASPP(backbone.channels, activation=activation, separable=separable)
        low, fine, middle, _ = backbone.stage_channels
        self.decoder: PlusDecoder | SubpixelDecoder | None = None
        if decoder == "plus":
            self.decoder = PlusDecoder(low, activation=activation, separable=separable)
        elif decoder == "subpixel":
            self.decoder = SubpixelDecoder(fine, middle, FILTERS, activation=activation)
        self.classifier = nn.Conv2d(WIDTH if decoder == "subpixel" else FILTERS, num_classes, 1)
        self.set_output_stride(16)

    @property
    def logits_stride(self) -> int:
        if self.decoder is None:
            return self.output_stride
        return STRIDE if isinstance(self.decoder, SubpixelDecoder) else 4

    def set_output_stride(self, output_stride: int) -> None:
        super().set_output_stride(output_stride)
        if isinstance(self.decoder, SubpixelDecoder):
            self.decoder.set_output_stride(output_stride)

    def pyramid(self) -> ASPP:
        return self.aspp

    def forward(self, x: Tensor) -> Tensor:
        low, fine, middle, features = self.backbone.stages(x)
        y = self.aspp(features)
        if isinstance(self.decoder, SubpixelDecoder):
            y = self.decoder(fine, middle, y)
        elif self.decoder is not None:
            y = self.decoder(low, y)
        logits: Tensor = self.classifier(y)
        return logits


def deeplabv3(
    backbone: str,
    *,
    num_classes: int,
    output_stride: int = 16,
    multi_grid: tuple[int, int, int] | None = None,
    decoder: Decoder = "none",
    separable: bool = False,
) -> DeepLabV3:
    """Build DeepLabV3 with random weights; one checkpoint serves output strides 8, 16 and 32.

    `backbone` is "mobilenet_v2", "mobilenet_v3_large", "resnet50" or "resnet101". `multi_grid`, for ResNets, gives the
    unit rates of the last stage's three blocks, (1, 2, 4) in the paper. `decoder="plus"` makes it DeepLabV3+, whose
    logits have stride 4; "subpixel" is a lighter decoder with logits at stride 8, which coarse output strides gain
    most from. `separable` makes the 3x3 convolutions of ASPP and of the first decoder depthwise separable.

    Raises InputError for an unknown backbone, stride, decoder or class count, or a multi-grid that cannot be.
    """
    if backbone not in _BACKBONES:
        raise InputError(f"unknown backbone {backbone!r}: choose one of {', '.join(_BACKBONES)}")
    check_classes(num_classes)
    if decoder not in get_args(Decoder):
        raise InputError(f"unknown decoder {decoder!r}: choose one of {', '.join(get_args(Decoder))}")
    build = _BACKBONES[backbone]
    if multi_grid is not None:
        if backbone not in _RESNETS:
            raise InputError(
                f"multi_grid is for {' and '.join(_RESNETS)}, whose last stage is three 3x3 convolutions: {backbone} "
                "has no such stage, leave it out"
            )
        if len(multi_grid) != 3 or not all(isinstance(rate, int) and rate >= 1 for rate in multi_grid):
            raise InputError(f"multi_grid is {multi_grid}: give three rates of 1 or more, such as (1, 2, 4)")
        build = partial(ResNet, _RESNETS[backbone], multi_grid)
    activation = relu6 if backbone == "mobilenet_v2" else relu
    model = DeepLabV3(build(), num_classes, decoder=decoder, separable=separable, activation=activation)
    model.set_output_stride(output_stride)
    return model
