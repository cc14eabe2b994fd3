"""U-Net with batch norm and same padding; "Unet-8" is the one whose bottleneck lies at stride 8.

Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015, Figure 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeseg.errors import InputError
from edgeseg.models.aspp import check_classes
from edgeseg.models.layers import conv_norm_act


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv_norm_act(inputs, outputs, 3), conv_norm_act(outputs, outputs, 3))


def _halve(x: Tensor) -> Tensor:
    """2x2 maximum at stride 2, sizes rounded up; an even map exports without ceil_mode, which few runtimes test."""
    odd = x.shape[2] % 2 == 1 or x.shape[3] % 2 == 1
    return nn.functional.max_pool2d(x, 2, ceil_mode=odd)


class UNet(nn.Module):
    """Normalised images (N, 3, H, W) of any size to logits (N, num_classes, H, W): `logits_stride` is 1.

    Where a map's size is odd, the one below it is rounded up, and what comes back up is cropped to it.
    """

    logits_stride = 1

    def __init__(self, num_classes: int, downsamplings: int, base_channels: int) -> None:
        super().__init__()
        widths = [base_channels << level for level in range(downsamplings + 1)]
        self.bottleneck_stride = 1 << downsamplings
        self.down = nn.ModuleList(_double(i, o) for i, o in zip([3, *widths], widths, strict=False))
        coarse_first = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for coarse, fine in coarse_first)
        self.merge = nn.ModuleList(_double(2 * fine, fine) for _, fine in coarse_first)
        self.classifier = nn.Conv2d(base_channels, num_classes, 1)

    def set_output_stride(self, output_stride: int) -> None:
        """Raises InputError for any stride but 1, the one it has: every skip ties two strides together."""
        if output_stride != self.logits_stride:
            skips = ", ".join(str(1 << level) for level in range(len(self.up)))
            raise InputError(
                f"a U-Net cannot run at output stride {output_stride}: its decoder joins encoder features at strides "
                f"{skips} (skips), so its logits have stride 1; build it with another bottleneck_stride and train that"
            )

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for index, block in enumerate(self.down):
            x = block(x if index == 0 else _halve(x))
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            skip = skips.pop()
            risen = up(x)[:, :, : skip.shape[2], : skip.shape[3]]
            x = merge(torch.cat([skip, risen], dim=1))
        logits: Tensor = self.classifier(x)
        return logits


def unet(*, num_classes: int, bottleneck_stride: int = 8, base_channels: int = 64) -> UNet:
    """Build a U-Net with random weights; `bottleneck_stride` is 8 ("Unet-8"), 16 (the paper's) or 32.

    `base_channels` (64 in the paper) doubles at every downsampling. Raises InputError for other values.
    """
    if bottleneck_stride not in (8, 16, 32):
        raise InputError(f"bottleneck_stride is {bottleneck_stride}: choose 8, 16 or 32")
    check_classes(num_classes)
    if base_channels < 1:
        raise InputError(f"base_channels is {base_channels}: at least 1 is needed")
    return UNet(num_classes, bottleneck_stride.bit_length() - 1, base_channels)
