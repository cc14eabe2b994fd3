"""A decoder that brings features of stride 8, 16 and 32 together at stride 8: each cell predicts a square of positions.

Sub-pixel convolution: Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
Convolutional Neural Network", CVPR 2016, section 3.2. In place of bilinear upsampling in segmentation: Tian, He, Shen,
Yan, "Decoders Matter for Semantic Segmentation: Data-Dependent Decoding Enables Flexible Feature Aggregation", CVPR
2019, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgeseg.models.layers import Activation, separable_conv

STRIDE = 8
WIDTH = 64


class SubpixelConv(nn.Module):
    """Features (N, inputs, h, w) at stride s to (N, outputs, H, W) at stride 8, H and W given by the caller.

    A 1x1 convolution predicts the (s / 8)^2 positions of each cell: one with a norm of its own for every feature
    stride, as the number of positions differs.

    What lies past (H, W) is cut off. That matters: ceil(size / s) cells span up to s - 1 pixels more than the image
    (12 rows at stride 32 are 384 pixels where the image has 360), and stretching them over it, as upsampling does,
    puts every row at another offset from what it saw.
    """

    def __init__(self, inputs: int, outputs: int, feature_strides: Sequence[int]) -> None:
        super().__init__()
        self.feature_stride = feature_strides[0]
        self.convs = nn.ModuleDict({str(s): _conv_norm(inputs, outputs, (s // STRIDE) ** 2) for s in feature_strides})

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        y: Tensor = self.convs[str(self.feature_stride)](x)
        if self.feature_stride == STRIDE:
            return y
        y = nn.functional.pixel_shuffle(y, self.feature_stride // STRIDE)
        return y if y.shape[2:] == (height, width) else y[:, :, :height, :width]


def _conv_norm(inputs: int, outputs: int, positions: int) -> nn.Sequential:
    """All positions of a cell start with the same weights, so training starts from a map without a checkerboard.

    Aitken et al., "Checkerboard artifact free sub-pixel convolution", 2017, section 3.
    """
    conv = nn.Conv2d(inputs, outputs * positions, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(conv.weight[::positions].repeat_interleave(positions, dim=0))
    return nn.Sequential(conv, nn.BatchNorm2d(outputs * positions))


class SubpixelDecoder(nn.Module):
    """The backbone's features of stride 8 and 16 and ASPP's, summed at stride 8, one 3x3: (N, 64, h/8, w/8).

    What a coarse output stride leaves out is still there in the stages before it. At output stride 8 the second of
    them has stride 8 too.
    """

    def __init__(self, fine: int, middle: int, coarse: int, *, activation: Activation) -> None:
        super().__init__()
        self.fine = SubpixelConv(fine, WIDTH, (8,))
        self.middle = SubpixelConv(middle, WIDTH, (8, 16))
        self.coarse = SubpixelConv(coarse, WIDTH, (8, 16, 32))
        self.mix = nn.Sequential(activation(), separable_conv(WIDTH, WIDTH, activation))

    def set_output_stride(self, output_stride: int) -> None:
        self.middle.feature_stride = min(16, output_stride)
        self.coarse.feature_stride = output_stride

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
        height, width = fine.shape[2], fine.shape[3]
        y = self.fine(fine, height, width) + self.middle(middle, height, width)
        mixed: Tensor = self.mix(y + self.coarse(coarse, height, width))
        return mixed
