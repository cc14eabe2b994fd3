"""PyTorch networks (the `export` extra): what edgeseg trains and exports itself."""

from edgeseg.models.deeplabv3 import DeepLabV3, deeplabv3
from edgeseg.models.weights import load_weights

__all__ = ["DeepLabV3", "deeplabv3", "load_weights"]
