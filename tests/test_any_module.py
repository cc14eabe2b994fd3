"""Modules that nobody wrote for edgeseg: exported as they are, exact against what they compute themselves."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is for export; its CPU build is here for Python 3.11 only")

import torch.nn.functional as F  # noqa: N812 (as everybody writes it)
from torch import nn

import edgeseg
from edgeseg import images
from edgeseg.bundle import Bundle
from edgeseg.errors import ExportError, InputError
from edgeseg.models import deeplabv3, unet
from edgeseg.testing import street_scene

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = (64, 96)
BACKENDS = ("ort", "openvino")
FRAMES = [street_scene(seed, size)[0] for seed, size in ((1, (64, 96)), (2, (120, 200)), (3, (360, 480)))]


def ConvBNReLU(  # noqa: N802
    cin: int, cout: int, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(cin, cout, 3, stride, dilation, dilation, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)
    )


class FCNHead(nn.Module):
    """Torchvision's manners: a dict with "out" and "aux", upsampled to the input inside forward."""

    def __init__(self, n_classes: int = 6) -> None:
        super().__init__()
        self.stem = ConvBNReLU(3, 12, 2)
        self.layer1 = ConvBNReLU(12, 16, 2)
        self.layer2 = ConvBNReLU(16, 24, 2)
        self.cls_head = nn.Conv2d(24, n_classes, 1)
        self.aux_head = nn.Conv2d(16, n_classes, 1)

    def forward(self, x: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        input_shape = x.shape[-2:]
        x = self.layer1(self.stem(x))
        result: OrderedDict[str, torch.Tensor] = OrderedDict()
        y = self.cls_head(self.layer2(x))
        result["out"] = F.interpolate(y, size=input_shape, mode="bilinear", align_corners=False)
        result["aux"] = F.interpolate(self.aux_head(x), size=input_shape, mode="bilinear", align_corners=False)
        return result


class PSPish(nn.Module):
    """Older PyTorch manners: align_corners=True, a tuple in the end, log-probabilities."""

    def __init__(self, num_class: int = 5) -> None:
        super().__init__()
        self.encoder = nn.Sequential(ConvBNReLU(3, 8, 2), ConvBNReLU(8, 16, 2), ConvBNReLU(16, 16, dilation=2))
        self.ppm = nn.ModuleList([nn.Sequential(nn.AdaptiveAvgPool2d(s), nn.Conv2d(16, 4, 1)) for s in (1, 2)])
        self.last = nn.Conv2d(24, num_class, 1)
        self.up = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True)

    def forward(self, image: torch.Tensor) -> Any:
        feats = self.encoder(image)
        pooled = [F.interpolate(p(feats), feats.shape[2:], mode="bilinear", align_corners=True) for p in self.ppm]
        logits = self.last(torch.cat([feats, *pooled], 1))
        return F.log_softmax(self.up(logits), dim=1), feats


@dataclass
class Prediction:
    features: torch.Tensor
    logits: torch.Tensor


class RecordHead(PSPish):
    """A record as output, and logits at low resolution."""

    def forward(self, image: torch.Tensor) -> Prediction:
        feats = self.encoder(image)
        return Prediction(feats, self.last(torch.cat([feats, feats[:, :8]], 1)))


class RoadMask(nn.Module):
    """One channel, sigmoid at the end, transposed convolution for the last step up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(ConvBNReLU(3, 8, 2), ConvBNReLU(8, 16, 2))
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.final = nn.Conv2d(8, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.final(F.relu(self.up(self.down(x)))))


class SoftThenUp(nn.Module):
    """Probabilities, then upsampled: another mask than upsampled logits would give."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(ConvBNReLU(3, 8, 2), ConvBNReLU(8, 8, 2), nn.Conv2d(8, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(torch.softmax(5 * self.net(x), 1), scale_factor=4, mode="bilinear")


class IndexMap(nn.Module):
    """Deployment manners: argmax inside."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(ConvBNReLU(3, 8, 2), ConvBNReLU(8, 8, 2), nn.Conv2d(8, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.net(x), size=x.shape[-2:], mode="bilinear").argmax(1)


class NearestUp(IndexMap):
    """A nearest upsampling at the end is no bilinear one: it must stay in the graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.net(x), scale_factor=4, mode="nearest")


def seeded(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(11)
    model = kind().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0, 0.2)
    return model


def own_mask(model: nn.Module, pixels: np.ndarray) -> np.ndarray:
    """The module's own mask for a network-sized frame, in its author's way."""
    x = (pixels / np.float32(255) - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    with torch.inference_mode():
        y = model(torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32)))
    y = (
        y.logits
        if isinstance(y, Prediction)
        else y["out"]
        if isinstance(y, dict)
        else y[0]
        if isinstance(y, tuple)
        else y
    )
    if y.is_floating_point() and y.shape[2:] != pixels.shape[:2] and y.shape[1] > 1:
        y = F.interpolate(y, pixels.shape[:2], mode="bilinear")
    if not y.is_floating_point():
        return y[0].numpy().astype(np.uint8)
    if y.shape[1] == 1:
        return (y[0, 0] > 0.5).numpy().astype(np.uint8)
    return y.argmax(1)[0].numpy().astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "classes", "stride", "align_corners", "values"),
    [
        (FCNHead, 6, 8, False, "logits"),
        (PSPish, 5, 4, True, "logits"),
        (SoftThenUp, 4, 4, False, "probabilities"),
        (IndexMap, 4, 4, False, "logits"),
        (RecordHead, 5, 4, False, "logits"),
        (NearestUp, 4, 1, False, "logits"),
    ],
)
def test_foreign_modules_keep_their_mask(
    kind: type[nn.Module], classes: int, stride: int, align_corners: bool, values: str, tmp_path: Path
) -> None:
    model = seeded(kind)
    names = [f"class{index}" for index in range(classes)]
    made = edgeseg.export(model, tmp_path / "m.edgeseg", input_size=SIZE, classes=names, mean=MEAN, std=STD)
    (variant,) = made.manifest.variants
    assert (variant.output_stride, made.manifest.align_corners, made.manifest.values) == (stride, align_corners, values)
    assert variant.logits_shape == (classes, SIZE[0] // stride, SIZE[1] // stride)
    for backend in BACKENDS:
        with edgeseg.load(made.path, backend=backend) as segmenter:
            mask = segmenter(FRAMES[0]).class_map
            assert np.mean(mask == own_mask(model, FRAMES[0])) >= 0.9999
            for frame in FRAMES[1:]:
                assert segmenter(frame).class_map.shape == frame.shape[:2]


def test_a_binary_module(tmp_path: Path) -> None:
    """The sigmoid is cut; decode upsamples logits, so frames of the network's size are compared away from the edge."""
    model = seeded(RoadMask)
    made = edgeseg.export(model, tmp_path / "m.edgeseg", input_size=SIZE, classes=["other", "road"], mean=MEAN, std=STD)
    assert made.manifest.head == "sigmoid"
    assert made.manifest.variants[0].output_stride == 2
    x = (FRAMES[0] / np.float32(255) - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    with torch.inference_mode():
        p = model(torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32)))
        up = F.interpolate(torch.logit(p.double()), SIZE, mode="bilinear")[0, 0].numpy()
    for backend in BACKENDS:
        with edgeseg.load(made.path, backend=backend) as segmenter:
            for threshold in (0.3, 0.5, 0.8):
                mask = segmenter(FRAMES[0], threshold=threshold).class_map
                assert np.mean(mask == (up > np.log(threshold / (1 - threshold)))) >= 0.9999


def test_probabilities_have_no_confidence(tmp_path: Path) -> None:
    made = edgeseg.export(
        seeded(SoftThenUp), tmp_path / "m.edgeseg", input_size=SIZE, classes=list("abcd"), mean=MEAN, std=STD
    )
    with edgeseg.load(made.path, backend="ort") as segmenter, pytest.raises(InputError, match="probabilities"):
        segmenter(FRAMES[0], confidence=True)


def test_dynamic_batch(tmp_path: Path) -> None:
    model = deeplabv3("mobilenet_v2", num_classes=4)
    made = edgeseg.export(
        model, tmp_path / "m.edgeseg", input_size=(64, 96), classes=list("abcd"), mean=MEAN, std=STD, dynamic_batch=True
    )
    assert Bundle.open(made.path).manifest.variants[0].batch is None
    for backend in BACKENDS:
        with edgeseg.load(made.path, backend=backend) as segmenter:
            for count in (1, 3, 5):
                frames = [FRAMES[index % 3] for index in range(count)]
                for frame, result in zip(frames, segmenter.batch(frames), strict=True):
                    assert np.mean(result.class_map == segmenter(frame).class_map) >= 0.9999


@pytest.mark.parametrize(
    ("make", "strides"),
    [
        (lambda: unet(num_classes=4, bottleneck_stride=8), [1]),
        (lambda: deeplabv3("mobilenet_v2", num_classes=4, decoder="plus"), [16]),
        (lambda: deeplabv3("mobilenet_v2", num_classes=4, decoder="subpixel"), [8, 16, 32]),
        (lambda: deeplabv3("mobilenet_v3_large", num_classes=4), [8, 32]),
        (lambda: deeplabv3("resnet50", num_classes=4, multi_grid=(1, 2, 4)), [16]),
    ],
    ids=["unet-8", "plus", "subpixel", "mobilenet_v3", "resnet50"],
)
def test_our_networks(make: Any, strides: list[int], tmp_path: Path, data: Path) -> None:
    """On real photos at the network's size: at least 99.99 % of the mask pixels that torch gives."""
    torch.manual_seed(2)
    model = make().eval()
    asked = strides if hasattr(model, "aspp") else None
    made = edgeseg.export(
        model, tmp_path / "m.edgeseg", input_size=(104, 136), classes=list("abcd"), mean=MEAN, std=STD,
        output_strides=asked,
    )  # fmt: skip
    assert list(made.output_strides) == strides
    photos = sorted((data / "data" / "camvid" / "images" / "val").iterdir())[::50]
    frames = [np.asarray(cv2.resize(images.read(path), (136, 104)), np.uint8) for path in photos]
    for stride in strides:
        if asked:
            model.set_output_stride(stride)
        for backend in BACKENDS:
            with edgeseg.load(made.path, backend=backend, output_stride=stride) as segmenter:
                for frame in frames:
                    assert np.mean(segmenter(frame).class_map == own_mask(model, frame)) >= 0.9999


class Looping(IndexMap):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while x.mean() > 0:
            x = x - 1
        return self.net(x)


class Features(IndexMap):
    def forward(self, x: torch.Tensor) -> dict[str, str]:  # type: ignore[override]
        return {"scores": "high"}


class Valid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.conv.weight.new_zeros(x.shape) + x)[:, :, :-5]


@pytest.mark.parametrize(
    ("kind", "changes", "error", "told"),
    [
        (Looping, {}, ExportError, "torch.export cannot trace"),
        (Features, {}, ExportError, "the model returns str"),
        (Valid, {}, ExportError, "they must cover it evenly"),
        (IndexMap, {"classes": ["a"]}, InputError, "1 class names for 4 channels"),
        (FCNHead, {"output_strides": (4,), "classes": list("abcdef")}, InputError, "output stride"),
    ],
)
def test_errors_are_one_line(
    kind: type[nn.Module], changes: dict[str, Any], error: type[Exception], told: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"input_size": SIZE, "classes": list("abcd"), "mean": MEAN, "std": STD} | changes
    with pytest.raises(error, match=told) as caught:
        edgeseg.export(seeded(kind), tmp_path / "m.edgeseg", **settings)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
