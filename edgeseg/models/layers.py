"""What the networks are made of: blocks whose stride can turn into dilation, and the backbones that hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

Activation = Callable[[], nn.Module]


def relu() -> nn.Module:
    return nn.ReLU(inplace=True)


def relu6() -> nn.Module:
    return nn.ReLU6(inplace=True)


def conv_norm_act(inputs: int, outputs: int, kernel: int, activation: Activation = relu) -> nn.Sequential:
    """A convolution at stride 1 that keeps the map's size, batch norm, activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=(kernel - 1) // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), activation())


def separable_conv(inputs: int, outputs: int, activation: Activation = relu) -> nn.Sequential:
    """Depthwise 3x3, then pointwise 1x1, each with batch norm and activation (Chen et al. 2018, section 3.1).

    Its first layer is the spatial convolution, as in `conv_norm_act`: the one that dilates.
    """
    depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
    pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
    return nn.Sequential(
        depthwise, nn.BatchNorm2d(inputs), activation(), pointwise, nn.BatchNorm2d(outputs), activation()
    )


def dilate(conv: nn.Conv2d, stride: int, dilation: int) -> None:
    """Run a convolution of odd kernel at this stride and dilation, its output ceil(size / stride); weights stay."""
    reach = dilation * (conv.kernel_size[0] - 1) // 2
    conv.stride, conv.dilation, conv.padding = (stride, stride), (dilation, dilation), (reach, reach)


class GlobalPool(nn.Module):
    """(N, C, H, W) to (N, C, 1, 1), as one mean: AdaptiveAvgPool2d exports as three nodes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class AtrousBlock(nn.Module):
    """A residual unit with one spatial convolution, which `dilate` runs at another stride and dilation."""

    native_stride: int
    native_dilation: int
    """Those of the network before any stride was turned into dilation (output stride 32)."""

    def dilate(self, stride: int, dilation: int) -> None:
        raise NotImplementedError


class Backbone(nn.Module):
    """Images (N, 3, H, W) to features (N, channels, ceil(H/s), ceil(W/s)), s the output stride."""

    stage_channels: tuple[int, int, int, int]
    """Channels of what `stages` returns."""
    stem_stride: int
    """The stride in front of the first block."""

    def blocks(self) -> Iterator[AtrousBlock]:
        """The units whose strides can be turned, in order."""
        raise NotImplementedError

    def set_output_stride(self, output_stride: int) -> None:
        """Turn strides past `output_stride` into dilation (Chen et al. 2017, "Rethinking Atrous Convolution", 3.1).

        Every convolution keeps the distance in image pixels at which its taps lie. So a block that loses its stride
        still samples at the previous rate, and the blocks after it at the doubled one.
        """
        native = self.stem_stride
        for block in self.blocks():
            dilation = block.native_dilation * native // min(native, output_stride)
            native *= block.native_stride
            block.dilate(block.native_stride if native <= output_stride else 1, dilation)

    @property
    def channels(self) -> int:
        return self.stage_channels[-1]

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The features at the ends of strides 4, 8, 16 and 32, or at the output stride where that is finer."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)[-1]
