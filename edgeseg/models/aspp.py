"""Atrous spatial pyramid pooling, and the networks that end in it: one knob for backbone strides and pyramid rates.

Chen, Papandreou, Schroff, Adam, "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017, section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeseg.errors import InputError
from edgeseg.models.layers import Activation, Backbone, GlobalPool, conv_norm_act, relu, separable_conv

FILTERS = 256
OUTPUT_STRIDES = (8, 16, 32)
"""The strides at which the papers' rates stay whole."""
Rates = tuple[int, int, int]


class ASPP(nn.Module):
    """Five branches over one feature map, concatenated and projected: (N, inputs, h, w) to (N, 256, h, w).

    1x1 convolution; three 3x3 atrous convolutions; global average pooling with a 1x1 convolution. The pooled branch's
    bilinear upsampling from 1x1 is the same value everywhere, so it is an expand.
    """

    def __init__(
        self, inputs: int, *, activation: Activation = relu, separable: bool = False, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if separable:
            atrous = [separable_conv(inputs, FILTERS, activation) for _ in range(3)]
        else:
            atrous = [conv_norm_act(inputs, FILTERS, 3, activation) for _ in range(3)]
        pooled = nn.Sequential(GlobalPool(), *conv_norm_act(inputs, FILTERS, 1, activation))
        self.convs = nn.ModuleList([conv_norm_act(inputs, FILTERS, 1, activation), *atrous, pooled])
        self.project = nn.Sequential(*conv_norm_act(5 * FILTERS, FILTERS, 1, activation), nn.Dropout(dropout))

    def set_rates(self, rates: Rates) -> None:
        for branch, rate in zip(list(self.convs)[1:4], rates, strict=True):
            branch[0].dilation = branch[0].padding = (rate, rate)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        branches = [conv(x) for conv in self.convs]
        branches[-1] = branches[-1].expand(-1, -1, x.shape[2], x.shape[3])
        y: Tensor = self.project(torch.cat(branches, dim=1))
        return y


class AtrousNetwork(nn.Module):
    """A backbone and an ASPP that run at output stride 8, 16 or 32 with the same weights."""

    backbone: Backbone
    output_stride: int
    """The stride of the backbone's last features, set by `set_output_stride`."""
    rates: Rates
    """ASPP's rates at `output_stride`."""
    trained_output_stride: int
    trained_rates: Rates
    """ASPP's rates at `trained_output_stride`, from which all others are scaled."""

    @property
    def logits_stride(self) -> int:
        """The stride s of the logits (N, num_classes, ceil(H/s), ceil(W/s))."""
        return self.output_stride

    def pyramid(self) -> ASPP:
        raise NotImplementedError

    def set_output_stride(self, output_stride: int) -> None:
        """Run at this output stride from now on: backbone dilation and ASPP rates follow, weights stay.

        Raises InputError for a stride other than 8, 16 or 32.
        """
        if output_stride not in OUTPUT_STRIDES:
            raise InputError(f"output stride {output_stride} is not possible here: choose 8, 16 or 32")
        self.backbone.set_output_stride(output_stride)
        first, second, third = (rate * self.trained_output_stride // output_stride for rate in self.trained_rates)
        self.rates = first, second, third
        self.pyramid().set_rates(self.rates)
        self.output_stride = output_stride


def check_classes(num_classes: int) -> None:
    if not 1 <= num_classes <= 255:
        raise InputError(f"num_classes is {num_classes}: a class map holds 1 to 255 classes")
