"""The output stride of networks we did not write, turned and compared with the same weights built at that stride.

The modules here are written as torchvision and segmentation_models_pytorch write theirs, small.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="torch is for export; its CPU build is here for Python 3.11 only")

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from edgeseg.errors import InputError
from edgeseg.models import StrideChange, deeplabv3, set_output_stride, torchvision_deeplabv3, unet

# -- in torchvision's style -------------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    def __init__(self, inplanes, planes, stride=1, downsample=None, dilation=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 2, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 2)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Backbone(nn.ModuleDict):
    """IntermediateLayerGetter over a ResNet with replace_stride_with_dilation."""

    def __init__(self, replace_stride_with_dilation):
        super().__init__()
        self.inplanes, self.dilation = 8, 1
        self["conv1"] = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self["bn1"] = nn.BatchNorm2d(8)
        self["relu"] = nn.ReLU(inplace=True)
        self["maxpool"] = nn.MaxPool2d(3, 2, 1)
        self["layer1"] = self._make_layer(8, 2)
        for i, (planes, dilate) in enumerate(zip((8, 12, 16), replace_stride_with_dilation, strict=True)):
            self[f"layer{i + 2}"] = self._make_layer(planes, 3, 2, dilate)

    def _make_layer(self, planes, blocks, stride=1, dilate=False):
        previous_dilation = self.dilation
        if dilate:
            self.dilation *= stride
            stride = 1
        downsample = nn.Sequential(
            nn.Conv2d(self.inplanes, planes * 2, 1, stride, bias=False), nn.BatchNorm2d(planes * 2)
        )
        layers = [Bottleneck(self.inplanes, planes, stride, downsample, previous_dilation)]
        self.inplanes = planes * 2
        layers += [Bottleneck(self.inplanes, planes, dilation=self.dilation) for _ in range(1, blocks)]
        return nn.Sequential(*layers)

    def forward(self, x):
        out = OrderedDict()
        for name, module in self.items():
            x = module(x)
            if name in ("layer3", "layer4"):
                out["aux" if name == "layer3" else "out"] = x
        return out


class ASPPPooling(nn.Sequential):
    def forward(self, x):
        size = x.shape[-2:]
        for mod in self:
            x = mod(x)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class ASPP(nn.Module):
    def __init__(self, inputs, rates, outputs=8):
        super().__init__()
        modules = [nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())]
        for rate in rates:
            conv = nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate, bias=False)
            modules.append(nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU()))
        modules.append(ASPPPooling(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, outputs, 1, bias=False), nn.ReLU()))
        self.convs = nn.ModuleList(modules)
        self.project = nn.Sequential(nn.Conv2d(5 * outputs, outputs, 1, bias=False), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, x):
        return self.project(torch.cat([conv(x) for conv in self.convs], dim=1))


class TorchvisionStyle(nn.Module):
    def __init__(self, output_stride=8, rates=None):
        super().__init__()
        self.backbone = Backbone({8: (False, True, True), 16: (False, False, True), 32: (False,) * 3}[output_stride])
        rates = rates or [rate * 8 // output_stride for rate in (12, 24, 36)]
        head = (ASPP(32, rates), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
        self.classifier = nn.Sequential(*head)
        self.aux_classifier = nn.Sequential(nn.Conv2d(24, 6, 3, padding=1), nn.Conv2d(6, 4, 1))

    def forward(self, x):
        input_shape = x.shape[-2:]
        features = self.backbone(x)
        result = OrderedDict()
        result["out"] = F.interpolate(self.classifier(features["out"]), input_shape, mode="bilinear")
        result["aux"] = F.interpolate(self.aux_classifier(features["aux"]), input_shape, mode="bilinear")
        return result


# -- in segmentation_models_pytorch's style ---------------------------------------------------------------------------


class BasicBlock(nn.Module):
    def __init__(self, inplanes, planes, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class Encoder(nn.Module):
    def __init__(self, output_stride):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 7, 2, 3, bias=False)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(6, 6), BasicBlock(6, 6))
        self.layer2 = nn.Sequential(BasicBlock(6, 8, 2), BasicBlock(8, 8))
        self.layer3 = nn.Sequential(BasicBlock(8, 10, 2), BasicBlock(10, 10))
        self.layer4 = nn.Sequential(BasicBlock(10, 12, 2), BasicBlock(12, 12))
        if output_stride <= 16:
            self.make_dilated(self.layer4, 16 // output_stride * 2)
        if output_stride == 8:
            self.make_dilated(self.layer3, 2)

    @staticmethod
    def make_dilated(stage, rate):
        for mod in stage.modules():
            if isinstance(mod, nn.Conv2d):
                mod.stride = (1, 1)
                mod.dilation = (rate, rate)
                kh, _ = mod.kernel_size
                mod.padding = ((kh // 2) * rate, (kh // 2) * rate)

    def forward(self, x):
        features = [x, F.relu(self.conv1(x))]
        features.append(self.layer1(self.maxpool(features[-1])))
        for layer in (self.layer2, self.layer3, self.layer4):
            features.append(layer(features[-1]))
        return features


class SeparableConv2d(nn.Sequential):
    def __init__(self, inputs, outputs, dilation=1):
        super().__init__(
            nn.Conv2d(inputs, inputs, 3, padding=dilation, dilation=dilation, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class SmpASPP(nn.Module):
    def __init__(self, inputs, outputs, rates):
        super().__init__()
        first = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.ReLU())
        self.convs = nn.ModuleList([first, *(SeparableConv2d(inputs, outputs, rate) for rate in rates)])
        self.project = nn.Sequential(nn.Conv2d(4 * outputs, outputs, 1, bias=False), nn.ReLU())

    def forward(self, x):
        return self.project(torch.cat([conv(x) for conv in self.convs], dim=1))


class PlusDecoder(nn.Module):
    def __init__(self, output_stride, rates):
        super().__init__()
        self.aspp = nn.Sequential(SmpASPP(12, 8, rates), SeparableConv2d(8, 8))
        self.up = nn.UpsamplingBilinear2d(scale_factor=output_stride // 4)
        self.block1 = nn.Sequential(nn.Conv2d(6, 4, 1, bias=False), nn.ReLU())
        self.block2 = SeparableConv2d(12, 8)

    def forward(self, features):
        aspp_features = self.up(self.aspp(features[-1]))
        return self.block2(torch.cat([aspp_features, self.block1(features[2])], dim=1))


class PlainDecoder(nn.Sequential):
    def __init__(self, rates):
        super().__init__(SmpASPP(12, 8, rates), nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.ReLU())

    def forward(self, features):
        return super().forward(features[-1])


class SmpStyle(nn.Module):
    def __init__(self, output_stride, rates, plus):
        super().__init__()
        self.output_stride = output_stride
        self.encoder = Encoder(output_stride)
        self.decoder = PlusDecoder(output_stride, rates) if plus else PlainDecoder(rates)
        up = nn.UpsamplingBilinear2d(scale_factor=4 if plus else output_stride)
        self.segmentation_head = nn.Sequential(nn.Conv2d(8, 3, 1), up, nn.Identity())

    def forward(self, x):
        if x.shape[2] % 32 or x.shape[3] % 32:
            raise RuntimeError(f"Wrong input shape {tuple(x.shape[2:])}: should be divisible by 32")
        return self.segmentation_head(self.decoder(self.encoder(x)))


# -- what the tests ask ------------------------------------------------------------------------------------------------

Settings = dict[str, tuple[object, ...]]


def settings(model: nn.Module) -> Settings:
    found: Settings = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            found[name] = (module.stride, module.dilation, module.padding)
        elif isinstance(module, nn.Upsample):
            found[name] = (module.scale_factor,)
    return found


def live(model: nn.Module) -> nn.Module:
    """Double precision, weights under which every layer matters."""
    generator = torch.Generator().manual_seed(3)
    for value in model.state_dict().values():
        if value.ndim == 4:
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5)
    return model.eval().double()


def image(height: int = 128, width: int = 160) -> Tensor:
    return torch.randn(1, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("loaded", [8, 16, 32])
@torch.inference_mode()
def test_torchvision_style_is_as_if_built_so(loaded: int) -> None:
    model = live(TorchvisionStyle(loaded))
    before = loaded
    for output_stride in (8, 32, 16, 8, 16, 32):
        native = TorchvisionStyle(output_stride).eval().double()
        native.load_state_dict(model.state_dict())
        old = settings(model)
        change = set_output_stride(model, output_stride)
        assert settings(model) == settings(native)
        rates = {stride: tuple(rate * 8 // stride for rate in (12, 24, 36)) for stride in (8, 16, 32)}
        changed = tuple(name for name, values in settings(model).items() if values != old[name])
        assert change == StrideChange(output_stride, before, loaded, rates[loaded], rates[output_stride], changed)
        before = output_stride
        x = image(129, 97)
        for name, logits in model(x).items():
            assert torch.equal(logits, native(x)[name])


def test_rates_scale_from_the_loaded_ones() -> None:
    """Not from the paper's: torchvision's MobileNetV3 has those of stride 8 at 16."""
    model = TorchvisionStyle(16, rates=(12, 24, 36))
    assert set_output_stride(model, 8).scaled_rates == (24, 48, 72)
    change = set_output_stride(model, 32)
    assert (change.trained_output_stride, change.trained_rates, change.scaled_rates) == (16, (12, 24, 36), (6, 12, 18))


def last_dilations(model: SmpStyle) -> list[tuple[int, int]]:
    stages = (model.encoder.layer3, model.encoder.layer4)
    convs = [conv for stage in stages for block in stage for conv in (block.conv1, block.conv2)]
    return [(conv.stride[0], conv.dilation[0]) for conv in convs]


# layer3's and layer4's (stride, dilation) per loaded and wanted stride. segmentation_models_pytorch dilates the strided
# convolution too, so a network loaded dilated keeps that: its taps stay where they were in the image.
ONE = (1, 1)
SMP = {
    (32, 16): [(2, 1), ONE, ONE, ONE, ONE, (1, 2), (1, 2), (1, 2)],
    (32, 8): [ONE, (1, 2), (1, 2), (1, 2), (1, 2), (1, 4), (1, 4), (1, 4)],
    (16, 32): [(2, 1), ONE, ONE, ONE, (2, 2), ONE, ONE, ONE],
    (16, 8): [ONE, (1, 2), (1, 2), (1, 2), (1, 4), (1, 4), (1, 4), (1, 4)],
    (8, 32): [(2, 2), ONE, ONE, ONE, (2, 2), ONE, ONE, ONE],
    (8, 16): [(2, 2), ONE, ONE, ONE, (1, 2), (1, 2), (1, 2), (1, 2)],
}


@pytest.mark.parametrize("plus", [False, True], ids=["v3", "v3+"])
@pytest.mark.parametrize("loaded", [8, 16, 32])
@torch.inference_mode()
def test_smp_style_sees_what_it_saw(loaded: int, plus: bool) -> None:
    """Full-sized scores as before, coarse features of the encoder a subset of its fine ones, upsamplers following."""
    model = live(SmpStyle(loaded, (12, 24, 36), plus))
    original, old, x = copy.deepcopy(model), settings(model), image()
    features = {loaded: model.encoder(x)[-1]}
    for output_stride in {8, 16, 32} - {loaded}:
        change = set_output_stride(model, output_stride)
        assert last_dilations(model) == SMP[loaded, output_stride]
        assert change.trained_rates == (12, 24, 36)
        assert change.scaled_rates == tuple(rate * loaded // output_stride for rate in (12, 24, 36))
        assert {"decoder.up" if plus else "segmentation_head.1"} == {n for n in change.changed if n in UPSAMPLERS}
        assert model(x).shape == (1, 3, 128, 160)
        # Written down anew: what a network at this stride should compute from this encoder's features.
        rebuilt = SmpStyle(output_stride, change.scaled_rates, plus).eval().double()
        rebuilt.load_state_dict(model.state_dict())
        torch.testing.assert_close(model.decoder(model.encoder(x)), rebuilt.decoder(model.encoder(x)), rtol=0, atol=0)
        features[output_stride] = model.encoder(x)[-1]
    torch.testing.assert_close(features[8][:, :, ::2, ::2], features[16], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(features[16][:, :, ::2, ::2], features[32], rtol=1e-10, atol=1e-12)
    set_output_stride(model, loaded)
    assert settings(model) == old
    assert torch.equal(model(x), original(x))


UPSAMPLERS = ("decoder.up", "segmentation_head.1")


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large"])
def test_tracing_finds_what_our_networks_know(name: str) -> None:
    """Our own networks know their strides; wrapped in a foreign module, tracing must come to the same."""
    ours = torchvision_deeplabv3(name, num_classes=2)
    foreign = nn.Sequential(OrderedDict(network=torchvision_deeplabv3(name, num_classes=2)))
    for output_stride in (8, 16, 32, 8):
        known, traced = set_output_stride(ours, output_stride), set_output_stride(foreign, output_stride)
        assert settings(foreign.network) == settings(ours)
        assert traced.changed == tuple(f"network.{name}" for name in known.changed)
        assert traced.scaled_rates == known.scaled_rates


def test_our_networks_report() -> None:
    model = deeplabv3("mobilenet_v2", num_classes=2, decoder="plus")
    change = set_output_stride(model, 8)
    assert (change.output_stride, change.previous_output_stride, change.trained_output_stride) == (8, 16, 16)
    assert (change.trained_rates, change.scaled_rates) == ((6, 12, 18), (12, 24, 36))
    assert change.changed[0] == "backbone.features.7.conv.1.0"
    assert change.changed[-3:] == tuple(f"aspp.convs.{i}.0" for i in (1, 2, 3))
    assert set_output_stride(model, 8).changed == ()
    with pytest.raises(InputError, match="output stride 4 is not possible here"):
        set_output_stride(model, 4)


def test_weights_and_mode_stay() -> None:
    model = TorchvisionStyle(16).train()
    model.backbone.eval()
    state = copy.deepcopy(model.state_dict())
    set_output_stride(model, 8)
    assert model.training
    assert not model.backbone["layer4"].training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())
    copied = copy.deepcopy(model)
    assert set_output_stride(copied, 16).trained_output_stride == 16
    assert settings(copied) == settings(TorchvisionStyle(16))


def test_a_hand_that_turned_since_is_heeded() -> None:
    model = TorchvisionStyle(32)
    set_output_stride(model, 8)
    for i in (1, 2, 3):
        conv = model.classifier[0].convs[i][0]
        conv.dilation = conv.padding = (4 * i, 4 * i)
    change = set_output_stride(model, 16)
    assert (change.trained_output_stride, change.trained_rates, change.scaled_rates) == (8, (4, 8, 12), (2, 4, 6))


# -- what cannot be ----------------------------------------------------------------------------------------------------


class ForeignUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.d, self.e = nn.Conv2d(8, 4, 3, 1, 1), nn.Conv2d(8, 2, 3, 1, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(a)
        c = F.interpolate(self.c(b), b.shape[2:])
        return self.e(torch.cat([a, F.interpolate(self.d(torch.cat([b, c], 1)), a.shape[2:])], 1))


class Trunk(nn.Module):
    """Convolutions 3x3 of (stride, dilation), one after the other, then ASPP; `residual` ones add their input."""

    def __init__(self, *layers, rates=(6, 12, 18), pool=False, residual=()):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(3 if i == 0 else 4, 4, 3, stride, dilation, dilation)
            for i, (stride, dilation) in enumerate(layers)
        )
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.residual = residual
        self.aspp = ASPP(4, rates)

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            y = layer(x)
            x = y + x if i in self.residual else y
        return self.aspp(self.pool(x))


class Upsampling(nn.Module):
    def __init__(self, inner, scale):
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, x):
        return F.interpolate(self.inner(x), scale_factor=self.scale)


class Repeated(Trunk):
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.aspp(self.layers[-1](x))


class Crooked(nn.Module):
    def forward(self, x):
        raise ValueError("two lines\nof sorrow")


def reflecting() -> nn.Module:
    model = Trunk(*[(2, 1)] * 4, (1, 1))
    model.layers[-1].padding_mode = "reflect"
    return model


S, D1, D2, D4 = (2, 1), (1, 1), (1, 2), (1, 4)
IMPOSSIBLE: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "stride": (lambda: Trunk(S, S, S), 12, "output stride 12 is not possible here: choose 8, 16 or 32"),
    "u-net": (ForeignUNet, 8, r"ForeignUNet has a decoder with skips: .* at stride 1, 2, which ties"),
    "our u-net": (lambda: unet(num_classes=2), 16, r"decoder joins encoder features at strides 1, 2, 4 \(skips\)"),
    "no pyramid": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)), 8, "Sequential has no atrous pyramid"),
    "half a rate": (
        lambda: Trunk(S, S, S, D1, D2, rates=(3, 6, 9), residual=(3,)),
        16,
        r"rate 3 and padding \(3, 3\).*1/2",
    ),
    "pooled": (lambda: Trunk(S, S, S, pool=True), 8, "max_pool2d.* brings the trunk to stride 16: only a conv"),
    "too fast": (lambda: Trunk(S, S, (4, 1), D1), 8, "layers.2 goes from stride 4 to 16 at once: 8 is not on the way"),
    "never lost": (lambda: Trunk(S, S, S, D1), 16, "tell of 0 lost strides, so 8 is the coarsest"),
    "lost once": (lambda: Trunk(S, S, S, D1, D2), 32, "tell of 1 lost strides, so 16 is the coarsest"),
    "multi-grid": (
        lambda: Trunk(S, S, S, D1, D2, D4, D2),
        16,
        r"dilations \(1, 2, 4, 2\) do not double .*layers.6 has 2",
    ),
    "either": (lambda: Trunk(S, S, S, D1, D1, D2, D2), 16, "2 places would serve"),
    "neither": (lambda: Trunk(S, S, S, D1, D2, residual=(3, 4)), 16, "turned, Trunk does not run on a .* image"),
    "fixed scale": (lambda: Upsampling(Trunk(S, S, S, S), 16), 8, "it upsamples by a factor written into its code"),
    "reused": (lambda: Repeated(S, S, S, S), 16, "layers.3 is used at several places"),
    "reflecting": (reflecting, 8, "layers.4 pads with reflect: only zero padding can follow"),
    "broken": (Crooked, 8, "Crooked does not run on a 384x512 image: two lines$"),
    "two": (lambda: nn.Sequential(Trunk(S, S), nn.Conv2d(8, 3, 1), Trunk(S)), 8, "has 2 atrous pyramids"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_says_why_and_changes_nothing(case: str) -> None:
    build, output_stride, reason = IMPOSSIBLE[case]
    model = build()
    old = settings(model)
    with pytest.raises(InputError, match=reason) as caught:
        set_output_stride(model, output_stride)
    assert "\n" not in str(caught.value)
    assert settings(model) == old
    assert all(not module._forward_hooks for module in model.modules())


def test_torch_does_not_log_what_tracing_tries(capfd: pytest.CaptureFixture[str]) -> None:
    set_output_stride(TorchvisionStyle(8), 32)
    assert capfd.readouterr() == ("", "")
