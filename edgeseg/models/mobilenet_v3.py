"""MobileNetV3-Large as a dilated feature extractor.

Howard et al., "Searching for MobileNetV3", ICCV 2019, Table 1, up to the 960-channel 1x1 convolution. Module names are
those of torchvision's segmentation models, where the backbone is the bare sequence of features.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from edgeseg.models.layers import AtrousBlock, Backbone, GlobalPool, dilate

_BLOCKS = (
    (3, 16, 16, 0, "relu", 1),
    (3, 64, 24, 0, "relu", 2),
    (3, 72, 24, 0, "relu", 1),
    (5, 72, 40, 24, "relu", 2),
    (5, 120, 40, 32, "relu", 1),
    (5, 120, 40, 32, "relu", 1),
    (3, 240, 80, 0, "hswish", 2),
    (3, 200, 80, 0, "hswish", 1),
    (3, 184, 80, 0, "hswish", 1),
    (3, 184, 80, 0, "hswish", 1),
    (3, 480, 112, 120, "hswish", 1),
    (3, 672, 112, 168, "hswish", 1),
    (5, 672, 160, 168, "hswish", 2),
    (5, 960, 160, 240, "hswish", 1),
    (5, 960, 160, 240, "hswish", 1),
)
"""Kernel, expanded channels, channels, squeezed channels (0: no squeeze-and-excite), activation, stride: Table 1."""
_ENDS = (4, 7, 13)
"""After how many features, the stem among them, strides 4, 8 and 16 end."""
_EPS = 1e-3


def _conv_norm_act(inputs: int, outputs: int, kernel: int, activation: str, groups: int = 1) -> nn.Sequential:
    layers = nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=(kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=_EPS, momentum=0.01),
    )
    if activation != "none":
        layers.append(nn.ReLU(inplace=True) if activation == "relu" else nn.Hardswish(inplace=True))
    return layers


class SqueezeExcite(nn.Module):
    """Scale each channel by a number between 0 and 1, computed from the means of all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = GlobalPool()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.fc2(nn.functional.relu(self.fc1(self.pool(x))))
        return x * nn.functional.hardsigmoid(scale)


class InvertedResidual(AtrousBlock):
    """Expand (1x1), filter (depthwise), squeeze and excite, project (1x1); added to the input where shapes allow."""

    def __init__(
        self, inputs: int, kernel: int, hidden: int, outputs: int, squeezed: int, activation: str, stride: int
    ) -> None:
        super().__init__()
        self.native_stride, self.native_dilation = stride, 1
        self.residual = stride == 1 and inputs == outputs
        expand = [_conv_norm_act(inputs, hidden, 1, activation)] if hidden != inputs else []
        self._depthwise = len(expand)
        self.block = nn.Sequential(
            *expand,
            _conv_norm_act(hidden, hidden, kernel, activation, groups=hidden),
            *([SqueezeExcite(hidden, squeezed)] if squeezed else []),
            _conv_norm_act(hidden, outputs, 1, "none"),
        )

    def dilate(self, stride: int, dilation: int) -> None:
        dilate(self.block[self._depthwise][0], stride, dilation)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return x + y if self.residual else y


class MobileNetV3Large(Backbone):
    """`native_dilation` is that of the last strided block: 1 by the papers, 2 in torchvision's segmentation models."""

    stage_channels, stem_stride = (24, 40, 112, 960), 2

    def __init__(self, native_dilation: int = 1) -> None:
        super().__init__()
        stem = _conv_norm_act(3, 16, 3, "hswish")
        dilate(stem[0], 2, 1)  # type: ignore[arg-type]
        features: list[nn.Module] = [stem]
        inputs = 16
        for kernel, hidden, outputs, squeezed, activation, stride in _BLOCKS:
            features.append(InvertedResidual(inputs, kernel, hidden, outputs, squeezed, activation, stride))
            inputs = outputs
        features.append(_conv_norm_act(inputs, self.channels, 1, "hswish"))
        for index, feature in enumerate(features):
            self.add_module(str(index), feature)
        [block for block in self.blocks() if block.native_stride == 2][-1].native_dilation = native_dilation

    def blocks(self) -> Iterator[AtrousBlock]:
        return (block for block in self.children() if isinstance(block, AtrousBlock))

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ends = []
        for index, feature in enumerate(self.children(), start=1):
            x = feature(x)
            if index in _ENDS:
                ends.append(x)
        low, fine, middle = ends
        return low, fine, middle, x
