"""The reference networks from their checkpoints: which one it is, the names and shapes in the file say."""

from __future__ import annotations

from pathlib import Path

import torch

from edgeseg.errors import InputError
from edgeseg.models import DeepLabV3, UNet, deeplabv3, load_weights, unet
from edgeseg.models.weights import read_weights


def read_checkpoint(weights: Path) -> DeepLabV3 | UNet:
    """DeepLabV3-MobileNetV2 with or without the sub-pixel decoder, or a U-Net, in evaluation mode.

    Raises InputError where the file holds none of them.
    """
    state = read_weights(weights)
    if "classifier.weight" not in state:
        raise InputError(f"{weights} is no checkpoint of a reference network: it has no classifier.weight")
    classes = state["classifier.weight"].shape[0]
    model: DeepLabV3 | UNet
    if "up.0.weight" in state:
        levels = len({name.split(".")[1] for name in state if name.startswith("up.")})
        base = state["classifier.weight"].shape[1]
        model = unet(num_classes=classes, bottleneck_stride=1 << levels, base_channels=base)
    else:
        subpixel = any(name.startswith("decoder.fine.") for name in state)
        model = deeplabv3("mobilenet_v2", num_classes=classes, decoder="subpixel" if subpixel else "none")
    load_weights(model, weights)
    return model.eval()


def with_classes(model: DeepLabV3 | UNet, count: int) -> None:
    """Give the network `count` classes, to measure what more of them cost: its masks are of no other use.

    Fewer are its first ones. More are its own in turn, with noise on their weights, half of these' own spread, and half
    a logit behind. So a few win pixels, as many classes do; of the embedded network's cells between four logits 17 %
    have more than one winner with its 11 classes, 21 % with 21 (every tenth image of CamVid val).
    """
    was = model.classifier
    own, generator = was.out_channels, torch.Generator().manual_seed(0)
    found = torch.nn.Conv2d(was.in_channels, count, 1)
    added, doubled = torch.arange(count) >= own, torch.arange(count) % own
    with torch.no_grad():
        noise = 0.5 * was.weight.std() * torch.randn(found.weight.shape, generator=generator)
        found.weight.copy_(was.weight[doubled] + added[:, None, None, None] * noise)
        assert was.bias is not None
        assert found.bias is not None
        found.bias.copy_(was.bias[doubled] - 0.5 * added)
    model.classifier = found
