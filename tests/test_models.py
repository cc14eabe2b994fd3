"""The networks against the papers, and against the supplied weights on real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is for export; its CPU build is here for Python 3.11 only")

from safetensors.torch import save_file
from torch import nn

from edgeseg.errors import InputError
from edgeseg.models import deeplabv3, load_weights

CHECKPOINT = "models/deeplabv3_mobilenet_v2_camvid.safetensors"


def convolutions(model: nn.Module) -> list[tuple[int, int]]:
    """(stride, dilation) of every 3x3 convolution, in order."""
    found = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert all(m.padding == m.dilation for m in found)
    return [(m.stride[0], m.dilation[0]) for m in found]


# One 3x3 convolution per block of Table 2 (Sandler et al. 2018), then ASPP's three (Chen et al. 2017, 3.3).
EXPECTED = {
    32: [(2, 1), (1, 1), (2, 1), (1, 1), (2, 1), (1, 1), (1, 1), (2, 1), *[(1, 1)] * 6, (2, 1), *[(1, 1)] * 3]
    + [(1, 3), (1, 6), (1, 9)],
    16: [(2, 1), (1, 1), (2, 1), (1, 1), (2, 1), (1, 1), (1, 1), (2, 1), *[(1, 1)] * 7, *[(1, 2)] * 3]
    + [(1, 6), (1, 12), (1, 18)],
    8: [(2, 1), (1, 1), (2, 1), (1, 1), (2, 1), (1, 1), (1, 1), (1, 1), *[(1, 2)] * 7, *[(1, 4)] * 3]
    + [(1, 12), (1, 24), (1, 36)],
}


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_strides_turn_into_dilation(output_stride: int) -> None:
    model = deeplabv3("mobilenet_v2", num_classes=7, output_stride=output_stride).eval()
    assert convolutions(model) == EXPECTED[output_stride]
    for height, width in ((97, 129), (64, 96)):
        with torch.inference_mode():
            logits = model(torch.rand(1, 3, height, width))
        assert logits.shape == (1, 7, -(-height // output_stride), -(-width // output_stride))


def test_the_knob_turns_both_ways() -> None:
    model = deeplabv3("mobilenet_v2", num_classes=3)
    for output_stride in (8, 32, 16, 8, 16):
        model.set_output_stride(output_stride)
        assert convolutions(model) == EXPECTED[output_stride]


def test_dilated_convolutions_see_what_strided_ones_saw() -> None:
    """The stride-32 features are a subset of the stride-8 ones: what "the same weights at another stride" means.

    On an image whose size is 1 more than a multiple of 32, the trunk at output stride 8 holds, at every fourth
    position, exactly what the trunk at 32 computes there, away from the border's padding.
    """
    torch.manual_seed(0)
    trunk = deeplabv3("mobilenet_v2", num_classes=3).backbone.eval()
    image = torch.rand(1, 3, 32 * 24 + 1, 32 * 24 + 1)
    with torch.inference_mode():
        trunk.set_output_stride(32)
        coarse = trunk(image)
        trunk.set_output_stride(8)
        fine = trunk(image)[:, :, ::4, ::4]
    inner = slice(9, -9)
    torch.testing.assert_close(fine[..., inner, inner], coarse[..., inner, inner], rtol=1e-4, atol=1e-5)


def test_the_pooled_branch_is_an_upsampled_mean() -> None:
    aspp = deeplabv3("mobilenet_v2", num_classes=3).aspp.eval()
    x = torch.randn(2, 320, 9, 13)
    with torch.inference_mode():
        pooled = aspp.convs[4](x)
        upsampled = nn.functional.interpolate(pooled, (9, 13), mode="bilinear", align_corners=False)
        parts = [branch(x) for branch in list(aspp.convs)[:4]]
        wanted = aspp.project(torch.cat([*parts, upsampled], 1))
        torch.testing.assert_close(aspp(x), wanted, rtol=1e-5, atol=1e-5)


def test_bad_requests() -> None:
    with pytest.raises(InputError, match="unknown backbone 'vgg': choose one of mobilenet_v2"):
        deeplabv3("vgg", num_classes=3)
    with pytest.raises(InputError, match="output stride 12"):
        deeplabv3("mobilenet_v2", num_classes=3, output_stride=12)
    with pytest.raises(InputError, match="num_classes is 256"):
        deeplabv3("mobilenet_v2", num_classes=256)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("/tmp/edgeseg_evil"),))  # type: ignore[return-value]


def test_weights_files(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = deeplabv3("mobilenet_v2", num_classes=3)
    state = source.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "c.pt")
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "parallel.pt")
    for path in sorted(tmp_path.iterdir()):
        target = deeplabv3("mobilenet_v2", num_classes=3)
        load_weights(target, path)
        assert all(torch.equal(value, state[name]) for name, value in target.state_dict().items())
    with pytest.raises(
        InputError, match=r"does not fit DeepLabV3.*classifier.weight is \(3, 256, 1, 1\), the model has"
    ):
        load_weights(deeplabv3("mobilenet_v2", num_classes=4), tmp_path / "b.pth")
    torch.save({"surprise": torch.zeros(1)}, tmp_path / "d.pt")
    with pytest.raises(InputError, match=r"missing backbone.*and \d+ more; unexpected surprise"):
        load_weights(source, tmp_path / "d.pt")
    (tmp_path / "e.pt").write_bytes(b"junk")
    torch.save({"model": Evil()}, tmp_path / "f.pt")
    (tmp_path / "g.safetensors").write_bytes(b"junk")
    for name in ("e.pt", "f.pt", "g.safetensors"):
        with pytest.raises(InputError, match="cannot read weights"):
            load_weights(source, tmp_path / name)
    assert not Path("/tmp/edgeseg_evil").exists()
    with pytest.raises(InputError, match="no weights at"):
        load_weights(source, tmp_path / "none.pt")


def test_supplied_weights_find_the_street(data: Path) -> None:
    """On ten real images at every stride, the pixel accuracy the weights' README tells of (88-90 %), roughly."""
    import cv2

    from edgeseg import images

    model = deeplabv3("mobilenet_v2", num_classes=11).eval()
    load_weights(model, data / CHECKPOINT)
    folder = data / "data" / "camvid"
    names = sorted(path.stem for path in (folder / "images" / "val").iterdir())[::10]
    for output_stride in (8, 16, 32):
        model.set_output_stride(output_stride)
        right = total = 0
        for name in names:
            frame = images.read(folder / "images" / "val" / f"{name}.png")
            label = cv2.imread(str(folder / "labels" / "val" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
            x = torch.from_numpy(frame.transpose(2, 0, 1)[None] / np.float32(127.5) - 1)
            with torch.inference_mode():
                up = nn.functional.interpolate(model(x.float()), label.shape, mode="bilinear", align_corners=False)
            valid = label < 11
            right += int((up.argmax(1)[0].numpy() == label)[valid].sum())
            total += int(valid.sum())
        assert right / total > 0.85
