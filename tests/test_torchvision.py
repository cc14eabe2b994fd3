"""torchvision's segmentation checkpoints, against answers torchvision gave (tests/data/torchvision/README.md)."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is for export; its CPU build is here for Python 3.11 only")

from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from edgeseg.errors import InputError
from edgeseg.models import deeplabv3, load_weights, set_output_stride, torchvision_deeplabv3

ORACLE = Path(__file__).parent / "data" / "torchvision"
NAMES = ("deeplabv3_resnet50", "deeplabv3_resnet101", "deeplabv3_mobilenet_v3_large")
LIMIT = 1e-4


def made(name: str) -> dict[str, Tensor]:
    """The oracle's weights, made from their names as its README tells."""
    state = {}
    for key, shape in json.loads((ORACLE / f"{name}.keys.json").read_text()).items():
        r = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(0)
        elif key.endswith("running_var"):
            state[key] = 1 + 0.1 * r.abs()
        elif len(shape) == 4:
            state[key] = r * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        elif key.endswith("bn3.weight"):
            state[key] = 0.25 * (1 + 0.1 * r)
        elif key.endswith(".weight") and not key.endswith("running_mean"):
            state[key] = 1 + 0.1 * r
        else:
            state[key] = 0.1 * r
    return state


def image() -> Tensor:
    return torch.randn(1, 3, 97, 129, generator=torch.Generator().manual_seed(7))


def without_auxiliary(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith("aux_classifier.")}


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_logits_are_torchvisions(name: str, tmp_path: Path) -> None:
    state = made(name)
    main = without_auxiliary(state)
    assert len(main) < len(state)
    torch.save(state, tmp_path / "aux.pth")
    save_file(main, tmp_path / "main.safetensors")
    model = torchvision_deeplabv3(name).eval()
    assert list(model.state_dict()) == list(main)
    for file in ("main.safetensors", "aux.pth"):
        for value in model.parameters():
            value.zero_()
        load_weights(model, tmp_path / file)
        assert all(torch.equal(value, main[key]) for key, value in model.state_dict().items())
    logits = model(image())
    upsampled = functional.interpolate(logits, (97, 129), mode="bilinear", align_corners=False)[:, :, ::8, ::8]
    with np.load(ORACLE / f"{name}.npz") as kept:
        assert np.abs(logits.numpy() - kept["logits"]).max() < LIMIT
        assert np.abs(upsampled.numpy() - kept["upsampled_sample"]).max() < LIMIT


def test_rates_are_kept_as_trained() -> None:
    """The trap: torchvision's MobileNetV3 runs at output stride 16 with the rates of 8: its weights know no other."""
    for name, stride in zip(NAMES, (8, 8, 16), strict=True):
        model = torchvision_deeplabv3(name, num_classes=2)
        assert (model.output_stride, model.trained_output_stride, model.rates) == (stride, stride, (12, 24, 36))
        assert bool(model.note) == (stride == 16)
    assert "16 with ASPP rates (12, 24, 36)" in model.note
    for output_stride, rates in ((8, (24, 48, 72)), (32, (6, 12, 18)), (16, (12, 24, 36))):
        change = set_output_stride(model, output_stride)
        assert (change.trained_output_stride, change.trained_rates, change.scaled_rates) == (16, (12, 24, 36), rates)


@torch.inference_mode()
def test_turned_mobilenet_sees_what_it_saw() -> None:
    """Its strided block was trained dilated; at 32 it keeps that rate, so its features are a subset of those at 16."""
    model = torchvision_deeplabv3("deeplabv3_mobilenet_v3_large")
    model.load_state_dict(without_auxiliary(made(NAMES[2])))
    trunk = model.backbone.eval()
    for name, module in trunk.named_modules():
        if name.endswith("fc2"):  # squeeze-and-excite's mean over a finer map is another mean
            torch.nn.init.zeros_(module.weight)
    features = {}
    for output_stride in (8, 16, 32):
        model.set_output_stride(output_stride)
        features[output_stride] = trunk(image())
    last = [block.block[1][0] for block in list(trunk.children())[13:16]]
    assert [(conv.stride[0], conv.dilation[0]) for conv in last] == [(2, 2), (1, 1), (1, 1)]
    limit = 1e-5 * features[32].abs().max()
    assert (features[16][:, :, ::2, ::2] - features[32]).abs().max() <= limit
    assert (features[8][:, :, ::2, ::2] - features[16]).abs().max() <= limit


def test_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="unknown torchvision network 'fcn_resnet50': choose one of deeplabv3_resnet50"
    ):
        torchvision_deeplabv3("fcn_resnet50")
    with pytest.raises(InputError, match="num_classes is 256"):
        torchvision_deeplabv3(NAMES[0], num_classes=256)
    state = made(NAMES[2])
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"classifier.4.weight is \(21, 256, 1, 1\), the model has \(7, 256, 1, 1\)"):
        load_weights(torchvision_deeplabv3(NAMES[2], num_classes=7), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"missing aspp\..*unexpected classifier\.0\.convs") as caught:
        load_weights(deeplabv3("mobilenet_v3_large", num_classes=21), tmp_path / "weights.pth")
    assert "aux_classifier" not in str(caught.value)
