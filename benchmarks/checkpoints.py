"""The reference networks from their checkpoints: which one it is, the names and shapes in the file say."""

from __future__ import annotations

from pathlib import Path

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
