"""PyTorch networks (the `export` extra): what edgeseg trains and exports itself, and the output stride of any."""

from edgeseg.models.deeplabv3 import DeepLabV3, deeplabv3
from edgeseg.models.published import TorchvisionDeepLabV3, torchvision_deeplabv3
from edgeseg.models.stride import StrideChange, set_output_stride, turn
from edgeseg.models.unet import UNet, unet
from edgeseg.models.weights import load_weights

__all__ = [
    "DeepLabV3",
    "StrideChange",
    "TorchvisionDeepLabV3",
    "UNet",
    "deeplabv3",
    "load_weights",
    "set_output_stride",
    "torchvision_deeplabv3",
    "turn",
    "unet",
]
