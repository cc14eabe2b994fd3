"""ResNet-50 and ResNet-101 as dilated feature extractors.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, Table 1, with the stride of a stage in its first
3x3 convolution. Module names are torchvision's.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from edgeseg.models.layers import AtrousBlock, Backbone, dilate

_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_EXPANSION = 4


class Bottleneck(AtrousBlock):
    """1x1, 3x3, 1x1; added to the input, which is projected where shapes differ."""

    def __init__(self, inputs: int, width: int, stride: int, *, project: bool) -> None:
        super().__init__()
        self.native_stride, self.native_dilation = stride, 1
        outputs = width * _EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if project:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def dilate(self, stride: int, dilation: int) -> None:
        dilate(self.conv2, stride, dilation)
        if self.downsample is not None:
            dilate(self.downsample[0], stride, 1)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        z: Tensor = self.relu(y + shortcut)
        return z


def _stage(inputs: int, width: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = Bottleneck(inputs, width, stride, project=True)
    return nn.Sequential(first, *(Bottleneck(width * _EXPANSION, width, 1, project=False) for _ in range(blocks - 1)))


class ResNet(Backbone):
    """`depth` is 50 or 101; `multi_grid` are the unit rates of the last stage's three blocks.

    Without `multi_grid`, dilations are torchvision's: the block that loses its stride keeps the previous rate. With it,
    they are the paper's ("Rethinking Atrous Convolution", section 3.2.1): rate = unit rate times 32 / output stride in
    all three blocks, so (1, 2, 4) gives (2, 4, 8) at 16 and (4, 8, 16) at 8. That fixes the distance of the taps in
    image pixels; at output stride 32, where the first block reads a stride-16 map, its rate is 2 for the same reason.
    """

    stage_channels, stem_stride = (256, 512, 1024, 2048), 4

    def __init__(self, depth: int, multi_grid: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        one, two, three, four = _DEPTHS[depth]
        self.layer1 = _stage(64, 64, one, stride=1)
        self.layer2 = _stage(256, 128, two, stride=2)
        self.layer3 = _stage(512, 256, three, stride=2)
        self.layer4 = _stage(1024, 512, four, stride=2)
        if multi_grid is not None:
            for block, unit in zip(list(self.blocks())[-3:], multi_grid, strict=True):
                block.native_dilation = unit * block.native_stride

    def blocks(self) -> Iterator[AtrousBlock]:
        return (module for module in self.modules() if isinstance(module, AtrousBlock))

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        low: Tensor = self.layer1(x)
        fine: Tensor = self.layer2(low)
        middle: Tensor = self.layer3(fine)
        return low, fine, middle, self.layer4(middle)
