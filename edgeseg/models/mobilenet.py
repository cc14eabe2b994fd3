"""MobileNetV2 as a dilated feature extractor.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, Table 2, without the last
1280-channel layer (as DeepLab uses it, same paper section 6.3). Module names are torchvision's.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from edgeseg.models.layers import AtrousBlock, Backbone, dilate

_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion, channels, blocks, stride of the first block), Table 2."""
_ENDS = (4, 7, 14)
"""Where strides 4, 8 and 16 end."""


def _conv_norm_act(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class InvertedResidual(AtrousBlock):
    """Expand (1x1), filter (3x3 depthwise), project (1x1); added to the input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.native_stride, self.native_dilation = stride, 1
        self.residual = stride == 1 and inputs == outputs
        layers: list[nn.Module] = [_conv_norm_act(inputs, hidden, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *layers,
            _conv_norm_act(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def dilate(self, stride: int, dilation: int) -> None:
        dilate(self.conv[-3][0], stride, dilation)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


class MobileNetV2(Backbone):
    stage_channels, stem_stride = (24, 32, 96, 320), 2

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_conv_norm_act(3, 32, 3, stride=2)]
        inputs = 32
        for expansion, outputs, repeats, stride in _STAGES:
            for index in range(repeats):
                blocks.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expansion))
                inputs = outputs
        self.features = nn.Sequential(*blocks)

    def blocks(self) -> Iterator[AtrousBlock]:
        return (block for block in self.features if isinstance(block, AtrousBlock))

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        four, eight, sixteen = _ENDS
        low: Tensor = self.features[:four](x)
        fine: Tensor = self.features[four:eight](low)
        middle: Tensor = self.features[eight:sixteen](fine)
        return low, fine, middle, self.features[sixteen:](middle)
