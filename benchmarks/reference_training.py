"""Training a reference network elastically: every step at another output stride, resumable to the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeseg.benchmarks.reference_data import VOID, Floats
from edgeseg.errors import InputError
from edgeseg.types import ClassMap, Image

Draw = Callable[[int], tuple[Image, ClassMap]]
"""The views and labels of a step."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a run does: `shares` are the output strides with how often each is drawn; rates are AdamW's."""

    steps: int
    shares: tuple[tuple[int, float], ...]
    seed: int = 0
    learning_rate: float = 6e-4
    backbone_factor: float = 0.5
    weight_decay: float = 0.02
    warmup: int = 100
    average: float = 0.998
    lovasz: float = 0.5

    def rate(self, step: int) -> float:
        """Linear warm-up, then the polynomial schedule of DeepLab (power 0.9)."""
        return min(1.0, (step + 1) / self.warmup) * math.pow(1 - step / self.steps, 0.9)

    def output_stride(self, step: int) -> int:
        rng = np.random.default_rng([self.seed, 2, step])
        strides, shares = zip(*self.shares, strict=True)
        return int(rng.choice(strides, p=np.array(shares) / sum(shares)))


def loss_of(logits: Tensor, labels: Tensor, weights: Tensor, lovasz: float, offset: tuple[int, int]) -> Tensor:
    """Cross-entropy and `lovasz` times the Lovasz-softmax of the upsampled logits, on a grid of the image's pixels.

    logits float (N, classes, h, w), labels (N, H, W). Every second pixel along each axis from `offset` (0 or 1), and
    every fourth for the Lovasz part: the offset changes with each step, so all pixels count alike, at a quarter of the
    time.
    """
    y, x = offset
    labels = labels[:, y::2, x::2]
    rows = upsampling(labels.shape[1] * 2, logits.shape[2])[y::2].to(logits.device)
    columns = upsampling(labels.shape[2] * 2, logits.shape[3])[x::2].to(logits.device)
    full = rows @ logits.float() @ columns.T
    if bool((labels == VOID).all()):
        return full.sum() * 0  # both losses are means over nothing
    loss = nn.functional.cross_entropy(full, labels, weight=weights, ignore_index=VOID)
    if lovasz:
        loss = loss + lovasz * lovasz_softmax(full[:, :, ::2, ::2].softmax(1), labels[:, ::2, ::2])
    return loss


@cache
def upsampling(size: int, source: int) -> Tensor:
    """Bilinear upsampling (align_corners=False) of `source` values to `size` as a matrix (size, source)."""
    rows = torch.eye(source)[None, None]
    return nn.functional.interpolate(rows, (size, source), mode="bilinear", align_corners=False)[0, 0]


def lovasz_softmax(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The Lovasz extension of 1 - IoU, averaged over the classes present (Berman, Triki, Blaschko, CVPR 2018, Alg. 1).

    probabilities (N, classes, h, w), labels (N, h, w); the whole batch counts as one image.
    """
    kept = labels.flatten() != VOID
    if not bool(kept.any()):
        return probabilities.sum() * 0
    flat = probabilities.transpose(0, 1).flatten(1)[:, kept]
    present, rows = torch.unique(labels.flatten()[kept], return_inverse=True)
    truth = (torch.arange(len(present), device=rows.device)[:, None] == rows).to(flat.dtype)
    errors, order = (truth - flat[present]).abs().sort(dim=1, descending=True)
    hits = truth.gather(1, order).cumsum(1)
    total = hits[:, -1:]
    places = torch.arange(1, flat.shape[1] + 1, dtype=flat.dtype, device=flat.device)
    jaccard = 1 - (total - hits) / (total + places - hits)
    gradient = torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], dim=1)
    mean: Tensor = (errors * gradient).sum(1).mean()
    return mean


class Run:
    """The network, its running average and optimiser at one step; everything `state` gives, `restore` brings back."""

    def __init__(self, model: nn.Module, schedule: Schedule, weights: Floats, device: str = "cpu") -> None:
        self.model = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.schedule, self.device, self.step = schedule, device, 0
        self._weights = torch.from_numpy(weights).to(device)
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self._optimiser = torch.optim.AdamW(self._groups(), lr=schedule.learning_rate)

    def _groups(self) -> list[dict[str, object]]:
        """Weights of the backbone learn slower, biases and norms do not decay."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, value in self.model.named_parameters():
            groups.setdefault((name.startswith("backbone."), value.ndim > 1), []).append(value)
        settings = self.schedule
        return [
            {
                "params": values,
                "factor": settings.backbone_factor if backbone else 1.0,
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (backbone, decays), values in groups.items()
        ]

    def train_on(self, images: Image, labels: ClassMap) -> float:
        """One step; the loss. Raises InputError where that is not finite, before any weight changes."""
        settings = self.schedule
        torch.manual_seed(settings.seed * 1_000_003 + self.step)  # of dropout
        rng = np.random.default_rng([settings.seed, 3, self.step])
        for group in self._optimiser.param_groups:
            group["lr"] = settings.learning_rate * group["factor"] * settings.rate(self.step)
        stride = settings.output_stride(self.step)
        if stride > 1:
            self.model.set_output_stride(stride)
        self.model.train()
        x = normalised(images, self.device)
        target = torch.from_numpy(labels.astype(np.int64)).to(self.device)
        with torch.autocast(self.device, torch.bfloat16):
            logits = self.model(x)
        offset = int(rng.integers(2)), int(rng.integers(2))
        loss = loss_of(logits, target, self._weights, settings.lovasz, offset)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(
                f"step {self.step + 1}: the loss is {value} at output stride {stride}; the last checkpoint stays: try "
                "a smaller learning rate or other data"
            )
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self._optimiser.step()
        self.step += 1
        self._follow()
        return value

    @torch.no_grad()
    def _follow(self) -> None:
        keep = min(self.schedule.average, self.step / (self.step + 10))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - keep)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The network with its averaged weights, as long as the block lasts."""
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        try:
            yield self.model
        finally:
            self.model.load_state_dict(own)

    def state(self) -> dict[str, object]:
        """All of it, as tensors and plain numbers."""
        optimiser = self._optimiser.state_dict()
        return {"step": self.step, "model": self.model.state_dict(), "average": self.average, "optimiser": optimiser}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Bring back what `state` gave."""
        self.step = int(state["step"])
        self.model.load_state_dict(state["model"])
        self.average = {name: value.to(self.device) for name, value in state["average"].items()}
        self._optimiser.load_state_dict(state["optimiser"])


def normalised(images: Image, device: str) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W), -1 to 1."""
    x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
    return (x / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def ahead(batches: Draw, steps: range) -> Iterator[tuple[Image, ClassMap]]:
    """The batches of `steps`, each prepared in a thread while the one before is trained on."""
    with ThreadPoolExecutor(1) as pool:
        following = [pool.submit(batches, step) for step in steps[:2]]
        for index in range(len(steps)):
            ready = following.pop(0)
            if index + 2 < len(steps):
                following.append(pool.submit(batches, steps[index + 2]))
            yield ready.result()
