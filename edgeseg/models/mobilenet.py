"""MobileNetV2 as a dilated feature extractor.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, Table 2, without the last
1280-channel layer (as DeepLab uses it, same paper section 6.3). Module names are torchvision's.
"""

from __future__ import annotations

from torch import Tensor, nn

_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion, channels, blocks, stride of the first block), Table 2."""


def _conv_norm_act(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expand (1x1), filter (3x3 depthwise), project (1x1); added to the input where shapes allow.

    `native_stride` is the depthwise stride of the undilated network; `dilate` decides what is really used.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.native_stride = stride
        self.residual = stride == 1 and inputs == outputs
        layers: list[nn.Module] = [_conv_norm_act(inputs, hidden, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *layers,
            _conv_norm_act(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def dilate(self, stride: int, dilation: int) -> None:
        """Run the depthwise convolution at this stride and dilation; the weights stay as they are."""
        depthwise: nn.Conv2d = self.conv[-3][0]  # type: ignore[index]
        depthwise.stride = (stride, stride)
        depthwise.dilation = depthwise.padding = (dilation, dilation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """Images (N, 3, H, W) to features (N, 320, ceil(H/s), ceil(W/s)), s the output stride."""

    channels = 320
    strides = (4, 8, 16, 32)
    """Output strides it can run at."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_conv_norm_act(3, 32, 3, stride=2)]
        inputs = 32
        for expansion, outputs, repeats, stride in _STAGES:
            for index in range(repeats):
                blocks.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expansion))
                inputs = outputs
        self.features = nn.Sequential(*blocks)

    def set_output_stride(self, output_stride: int) -> None:
        """Turn strides past `output_stride` into dilation (Chen et al. 2017, "Rethinking Atrous Convolution", 3.1).

        A block that loses its stride still samples at the previous rate; the blocks after it use the doubled one.
        """
        stride, dilation = 2, 1
        for block in self.features:
            if not isinstance(block, InvertedResidual):
                continue
            if block.native_stride == 2 and stride >= output_stride:
                block.dilate(1, dilation)
                dilation *= 2
            else:
                block.dilate(block.native_stride, dilation)
                stride *= block.native_stride

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.features(x)
        return features
