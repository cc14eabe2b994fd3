"""DeepLabV3: a dilated backbone, atrous spatial pyramid pooling, a 1x1 classifier.

Chen, Papandreou, Schroff, Adam, "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017, section 3.3
and Figure 5. The network ends at low-resolution logits: upsampling to the frame is `edgeseg.decode`'s exact work.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeseg.errors import InputError
from edgeseg.models.mobilenet import MobileNetV2

_RATES = (6, 12, 18)
"""ASPP's atrous rates at output stride 16 (section 3.3); doubled at 8, halved at 32."""
_FILTERS = 256
_BACKBONES = {"mobilenet_v2": MobileNetV2}


def _branch(inputs: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, _FILTERS, kernel, padding="same" if kernel == 1 else 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(_FILTERS), nn.ReLU6(inplace=True))


class GlobalPool(nn.Module):
    """(N, C, H, W) to (N, C, 1, 1), as one mean: AdaptiveAvgPool2d exports as three nodes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class ASPP(nn.Module):
    """Five branches over one feature map, concatenated and projected: (N, inputs, h, w) to (N, 256, h, w).

    1x1 convolution; three 3x3 atrous convolutions; global average pooling with a 1x1 convolution. The pooled branch's
    bilinear upsampling from 1x1 is the same value everywhere, so it is an expand.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        pooled = nn.Sequential(
            GlobalPool(),
            nn.Conv2d(inputs, _FILTERS, 1, bias=False),
            nn.BatchNorm2d(_FILTERS),
            nn.ReLU6(inplace=True),
        )
        self.convs = nn.ModuleList([_branch(inputs, 1), *(_branch(inputs, 3) for _ in _RATES), pooled])
        self.project = nn.Sequential(
            nn.Conv2d(5 * _FILTERS, _FILTERS, 1, bias=False),
            nn.BatchNorm2d(_FILTERS),
            nn.ReLU6(inplace=True),
            nn.Dropout(0.1),
        )

    def set_rates(self, rates: tuple[int, int, int]) -> None:
        for branch, rate in zip(list(self.convs)[1:4], rates, strict=True):
            branch[0].dilation = branch[0].padding = (rate, rate)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        branches = [conv(x) for conv in self.convs]
        branches[-1] = branches[-1].expand(-1, -1, x.shape[2], x.shape[3])
        y: Tensor = self.project(torch.cat(branches, dim=1))
        return y


class DeepLabV3(nn.Module):
    """Normalised images (N, 3, H, W) to logits (N, num_classes, ceil(H/s), ceil(W/s)), s = `output_stride`."""

    def __init__(self, backbone: MobileNetV2, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.aspp = ASPP(backbone.channels)
        self.classifier = nn.Conv2d(_FILTERS, num_classes, 1)
        self.output_stride = 0

    def set_output_stride(self, output_stride: int) -> None:
        """Run at this output stride from now on: backbone dilation and ASPP rates follow, weights stay.

        Raises InputError for a stride other than 8, 16 or 32 (the strides at which the rates stay whole).
        """
        if output_stride not in (8, 16, 32):
            raise InputError(f"output stride {output_stride} is not possible here: choose 8, 16 or 32")
        self.backbone.set_output_stride(output_stride)
        rates = tuple(rate * 16 // output_stride for rate in _RATES)
        self.aspp.set_rates(rates)  # type: ignore[arg-type]
        self.output_stride = output_stride

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.aspp(self.backbone(x)))
        return logits


def deeplabv3(backbone: str, *, num_classes: int, output_stride: int = 16) -> DeepLabV3:
    """Build DeepLabV3 with random weights; one checkpoint serves output strides 8, 16 and 32.

    `backbone` is "mobilenet_v2". Raises InputError for an unknown backbone, stride or class count.
    """
    if backbone not in _BACKBONES:
        raise InputError(f"unknown backbone {backbone!r}: choose one of {', '.join(_BACKBONES)}")
    if not 1 <= num_classes <= 255:
        raise InputError(f"num_classes is {num_classes}: a class map holds 1 to 255 classes")
    model = DeepLabV3(_BACKBONES[backbone](), num_classes)
    model.set_output_stride(output_stride)
    return model
