"""Writes edgeseg/data/tiny.edgeseg again: `python tests/make_tiny.py` (needs the `export` extra)."""

import itertools

import torch
from torch import nn

import edgeseg
from edgeseg.testing import TINY

CLASSES = ["ground", "wall", "sky", "plant", "thing"]


class TinyLab(nn.Module):
    """DeepLab in miniature: strides that turn into dilation, an atrous branch, image pooling, concat, classifier."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 12, 16, 16)
        self.trunk = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU6())
                for a, b in itertools.pairwise(widths)
            )
        )
        self.point, self.atrous, self.pooled = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 1)
        self.classifier = nn.Conv2d(48, len(CLASSES), 1)

    def set_output_stride(self, output_stride: int) -> None:
        last: nn.Conv2d = self.trunk[3][0]  # type: ignore[index,assignment]
        last.stride = (output_stride // 8, output_stride // 8)
        rate = 32 // output_stride
        self.atrous.dilation = self.atrous.padding = (rate, rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.trunk(x)
        pooled = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, x.shape[2], x.shape[3])
        y: torch.Tensor = self.classifier(torch.relu(torch.cat([self.point(x), self.atrous(x), pooled], 1)))
        return 10 * y


def main() -> None:
    torch.manual_seed(0)
    model = TinyLab()
    for module in model.modules():  # norms with statistics, as a trained network has
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 1, 2)
    edgeseg.export(
        model,
        TINY,
        input_size=(64, 96),
        classes=CLASSES,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        output_strides=(8, 16),
        overwrite=True,
        progress=print,
    )


if __name__ == "__main__":
    main()
