"""A frame of any size to the network's uint8 input: one resize, straight into a buffer."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from edgeseg.errors import InputError
from edgeseg.types import Batch, Color, Image, Preprocess, Region, Size

_DLPACK_CUDA = (2, 13)
"""DLPack's numbers for a GPU's memory and for managed memory."""


class Preprocessor:
    """Prepares frames one at a time. Holds one buffer: each thread needs its own."""

    def __init__(self, preprocess: Preprocess) -> None:
        self._settings = preprocess
        height, width = preprocess.input_size
        self._batch: Batch = np.full((1, height, width, 3), preprocess.pad, np.uint8)
        self._filled: Region | None = None

    def prepare(self, frame: Image, color: Color = "rgb") -> Batch:
        """uint8 (H, W, 3) to uint8 (1, h, w, 3) RGB: valid until the next call.

        Raises InputError for a frame of another dtype or shape.
        """
        check_frame(frame, color)
        target = self._batch[0]
        region = self.region((frame.shape[0], frame.shape[1]))
        if region != self._filled:
            target[...] = self._settings.pad
            self._filled = region
        if region is not None:
            top, left = int(region.top), int(region.left)
            target = target[top : top + int(region.height), left : left + int(region.width)]
        # Each channel is resized by itself, so swapping the small result equals swapping the large frame.
        if color == "bgr":
            cv2.cvtColor(self._resized(frame, target, None), cv2.COLOR_BGR2RGB, dst=target)
        elif self._resized(frame, target, target) is frame:
            target[...] = frame
        return self._batch

    def _resized(self, frame: Image, target: Image, into: Image | None) -> Image:
        """The frame at the target's size, written to `into` where given; the frame itself where it has that size."""
        (height, width), (h, w) = frame.shape[:2], target.shape[:2]
        if self._settings.interpolation == "area" and (height > h or width > w):
            # INTER_AREA averages along both axes or along neither, so first only the axes that shrink
            smaller = (min(width, w), min(height, h))
            here = into if smaller == (w, h) else None
            frame = np.asarray(cv2.resize(frame, smaller, dst=here, interpolation=cv2.INTER_AREA), np.uint8)
        if frame.shape == target.shape:
            return frame
        if height > h and height % h == 0 and height // h % 2 == 1:
            # the centres of the target's rows are centres of these rows: bilinear reads no others
            frame = frame[height // h // 2 :: height // h]
        return np.asarray(cv2.resize(frame, (w, h), dst=into, interpolation=cv2.INTER_LINEAR), np.uint8)

    def region(self, frame_size: Size) -> Region | None:
        """Where a frame of this size comes to lie in the input; None where it fills all of it."""
        return letterbox(frame_size, self._settings) if self._settings.fit == "letterbox" else None


def letterbox(frame_size: Size, preprocess: Preprocess) -> Region | None:
    """The centred region with the frame's aspect ratio, in whole pixels; None where it is all of the input."""
    (height, width), (h, w) = frame_size, preprocess.input_size
    scale = min(h / height, w / width)
    inner = (min(h, max(1, round(height * scale))), min(w, max(1, round(width * scale))))
    if inner == (h, w):
        return None
    return Region((h - inner[0]) // 2, (w - inner[1]) // 2, inner[0], inner[1], (h, w))


def check_frame(frame: Any, color: str = "rgb") -> None:
    """Raise InputError unless `frame` is uint8 (H, W, 3), saying how to make it so."""
    if color not in ("rgb", "bgr"):
        raise InputError(f"color is {color!r}: choose 'rgb' or 'bgr'")
    if not isinstance(frame, np.ndarray):
        raise InputError(f"frame is a {type(frame).__name__}: give a numpy uint8 array (height, width, 3)")
    if frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 1):
        raise InputError(f"frame is grey, shape {frame.shape}: repeat it, numpy.dstack([frame] * 3)")
    if frame.ndim == 3 and frame.shape[2] == 4:
        raise InputError(f"frame has four channels, shape {frame.shape}: drop alpha, frame[..., :3]")
    if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise InputError(f"frame has shape {frame.shape}: one frame is (height, width, 3)")
    if frame.dtype != np.uint8:
        raise InputError(f"frame is {frame.dtype}: scale it to 0..255 and convert, frame.astype(numpy.uint8)")


def on_gpu(frame: Any) -> bool:
    """Whether a frame lies in an NVIDIA GPU's memory: a tensor of torch, cupy or others, told by their protocols."""
    if isinstance(frame, np.ndarray):
        return False
    if hasattr(frame, "__cuda_array_interface__"):
        return True
    device = getattr(frame, "__dlpack_device__", None)
    return callable(device) and int(device()[0]) in _DLPACK_CUDA


def check_gpu_frame(frame: Any, size: Size, color: str = "rgb") -> None:
    """Raise InputError unless a frame on a GPU is what the network reads: nothing is resized or converted there."""
    shape, dtype = tuple(frame.shape), str(frame.dtype).rpartition(".")[2]
    if shape != (*size, 3) or dtype != "uint8" or color != "rgb":
        raise InputError(
            f"frame lies on a GPU, {dtype} of shape {shape}, {color}: give uint8 {(*size, 3)} in RGB, the "
            "network's own input, or a numpy array of any size"
        )
