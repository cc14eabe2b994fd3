"""Export against torch, and every way it must refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="torch is for export; its CPU build is here for Python 3.11 only")

from torch import nn

import edgeseg
from edgeseg import images
from edgeseg.bundle import Bundle
from edgeseg.errors import BundleError, ExportError, InputError
from edgeseg.models import deeplabv3
from edgeseg.testing import street_scene

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMES = ["a", "b", "c", "d"]


class Small(nn.Module):
    """Strides 2 and 2, so output stride 4; nothing to turn."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(8, channels, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return y


def export(model: nn.Module, path: Path, **changes: object) -> Bundle:
    settings: dict[str, object] = {
        "input_size": (32, 48), "classes": NAMES, "mean": MEAN, "std": STD, "output_strides": (4,),
    } | changes  # fmt: skip
    return edgeseg.export(model, path, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(5)
    model = deeplabv3("mobilenet_v2", num_classes=4)
    return export(
        model, tmp_path_factory.mktemp("export") / "lab.edgeseg", input_size=(96, 128), output_strides=(8, 16, 32)
    )


def test_three_strides_share_one_weights_file(bundle: Bundle) -> None:
    sizes = {name: info.bytes for name, info in bundle.manifest.files.items()}
    parameters = sum(p.numel() for p in deeplabv3("mobilenet_v2", num_classes=4).parameters())
    assert sizes["weights-fp32.bin"] < 4 * parameters
    assert all(sizes[f"os{stride}-fp32.onnx"] < 100_000 for stride in (8, 16, 32))
    assert {variant.weights for variant in bundle.manifest.variants} == {"weights-fp32.bin"}


def test_parity_is_in_the_manifest(bundle: Bundle) -> None:
    for variant in bundle.manifest.variants:
        assert variant.parity is not None
        assert variant.parity.max_abs_logit_error <= 1e-3
        assert variant.parity.mask_agreement >= 0.9999
        assert variant.parity.reference == f"torch {torch.__version__}"


def test_the_graph_goes_from_pixels_to_logits(bundle: Bundle) -> None:
    for variant in bundle.manifest.variants:
        proto = onnx.load(bundle.path / variant.file)
        onnx.checker.check_model(proto, full_check=True)
        (pixels,), (logits,) = proto.graph.input, proto.graph.output
        shape = [dim.dim_value for dim in pixels.type.tensor_type.shape.dim]
        assert (pixels.name, pixels.type.tensor_type.elem_type, shape) == (
            "pixels",
            onnx.TensorProto.UINT8,
            [1, 96, 128, 3],
        )
        assert logits.name == "logits"
        assert tuple(dim.dim_value for dim in logits.type.tensor_type.shape.dim) == (1, *variant.logits_shape)
        kinds = [node.op_type for node in proto.graph.node]
        assert kinds[:2] == ["Cast", "Transpose"]
        assert "BatchNormalization" not in kinds
        assert "Resize" not in kinds
        text = str(proto.graph.node)
        assert str(Path.home()) not in text
        assert ".py" not in text


def test_two_exports_are_the_same_bytes(tmp_path: Path) -> None:
    first, second = export(Small(), tmp_path / "a.edgeseg"), export(Small(), tmp_path / "b" / "a.edgeseg")
    for name in first.manifest.files:
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes(), name
    assert first.manifest == second.manifest


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_masks_equal_torch_on_photos_of_any_size(bundle: Bundle, backend: str, data: Path) -> None:
    """From the photo's file to the mask, against torch with the usual float preprocessing, at every stride."""
    import cv2

    torch.manual_seed(5)
    model = deeplabv3("mobilenet_v2", num_classes=4).eval()
    photos = sorted((data / "data" / "camvid" / "images" / "val").iterdir())[::40]
    for stride in (8, 16, 32):
        model.set_output_stride(stride)
        with edgeseg.load(bundle.path, backend=backend, output_stride=stride) as segmenter:
            for path in photos:
                frame = images.read(path)
                small = cv2.resize(frame, (128, 96), interpolation=cv2.INTER_LINEAR)
                x = (small / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
                with torch.inference_mode():
                    logits = model(torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32)))
                up = nn.functional.interpolate(logits, frame.shape[:2], mode="bilinear", align_corners=False)
                mask = up.argmax(1)[0].numpy()
                assert np.mean(segmenter(frame).class_map == mask) >= 0.9999


def test_the_callers_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = deeplabv3("mobilenet_v2", num_classes=4, output_stride=8).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export(model, tmp_path / "x.edgeseg", input_size=(64, 64), output_strides=(32,))
    assert model.training
    assert model.output_stride == 8
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_channel_heads_are_thresholded(tmp_path: Path) -> None:
    made = export(Small(1), tmp_path / "binary.edgeseg", classes=["ground", "thing"])
    assert made.manifest.head == "sigmoid"
    frame = street_scene(4, (64, 96))[0]
    with edgeseg.load(made.path, backend="ort") as segmenter:
        result = segmenter(frame, confidence=True)
        strict = segmenter(frame, threshold=0.9)
    assert set(np.unique(result.class_map)) <= {0, 1}
    assert [info.name for info in result.classes] == ["ground", "thing"]
    assert (strict.class_map <= result.class_map).all()


def test_letterbox_fits_the_frame_in(tmp_path: Path) -> None:
    """A mask through a letterboxed network equals torch's upsampled logits, cut to the frame's region."""
    made = export(Small(), tmp_path / "box.edgeseg", fit="letterbox", input_size=(64, 64))
    frame = street_scene(2, (64, 128))[0]
    with edgeseg.load(made.path, backend="ort") as segmenter:
        mask = segmenter(frame).class_map
    padded = np.full((128, 128, 3), 114, np.uint8)
    padded[32:96] = frame
    import cv2

    small = np.full((64, 64, 3), 114, np.uint8)
    small[16:48] = cv2.resize(frame, (64, 32), interpolation=cv2.INTER_LINEAR)
    x = (small / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    with torch.inference_mode():
        logits = Small().eval()(torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32)))
        up = nn.functional.interpolate(logits, (128, 128), mode="bilinear", align_corners=False)
    assert np.mean(mask == up.argmax(1)[0].numpy()[32:96]) >= 0.9999


class Drifting(Small):
    """Traced, it is another network than the one torch runs: what the parity check is for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y + 0.01 if torch.compiler.is_exporting() else y


class Broken(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * float("nan")


class Shuffling(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.mean() > 0 else super().forward(-x)


def test_a_graph_that_strays_from_torch_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"logits differ by 0.01 \(limit 0.001\).*nothing was written"):
        export(Drifting(), tmp_path / "x.edgeseg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "changes", "kind", "told"),
    [
        (Shuffling(), {}, ExportError, "torch.export cannot trace Shuffling"),
        (Broken(), {}, ExportError, "NaN or infinity on a golden frame: check the weights"),
        (Small(), {"mean": (128, 128, 128)}, InputError, "divide by 255"),
        (Small(), {"output_strides": (8,)}, InputError, "output stride"),
        (Small(), {"classes": ["a", "b"]}, InputError, "2 class names for 4 channels"),
        (Small(), {"classes": ["a", "a", "b", "c"]}, InputError, "must be different"),
        (Small(), {"classes": ["a", "", "b", "c"]}, InputError, "not empty"),
        (Small(1), {"classes": ["thing"]}, InputError, "background"),
        (Small(), {"mean": (0.5,)}, InputError, "give three numbers"),
        (Small(), {"std": (0.5, 0, 0.5)}, InputError, "must be positive"),
        (Small(), {"std": (0.5, float("nan"), 0.5)}, InputError, "three numbers"),
        (Small(), {"input_size": (0, 8)}, InputError, "input_size"),
        (Small(), {"fit": "crop"}, InputError, "crop"),
        (Small(), {"output_strides": ()}, InputError, "output_strides"),
        (Small(), {"frames": [np.zeros((8, 8), np.uint8)]}, InputError, "grey"),
        (nn.Conv2d(5, 4, 1), {}, ExportError, "fails on a"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    model: nn.Module, changes: dict[str, object], kind: type[Exception], told: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=told.replace("(", r"\(")) as caught:
        export(model, tmp_path / "x.edgeseg", **changes)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_kept_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "x.edgeseg"
    export(Small(), path)
    kept = (path / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="exists"):
        export(Small(), path)
    with pytest.raises(ExportError):
        export(Drifting(), path, overwrite=True)
    assert (path / "manifest.json").read_bytes() == kept
    export(Small(), path, overwrite=True, classes=["w", "x", "y", "z"])
    assert Bundle.open(path).manifest.classes[0].name == "w"


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeseg.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import torch\ndef net(num_classes, bias=0):\n    return torch.nn.Conv2d(3, num_classes, 3, 2, 1)\n"
    )
    (tmp_path / "names.txt").write_text("one #ff0080\ntwo\n")
    common = ["--size", "32x48", "--output-stride", "2", "-o"]
    assert main(["export", "mine:net", "--classes", "@names.txt", "--set", "bias=1", *common, "a.edgeseg"]) == 0
    captured = capsys.readouterr()
    assert "logits within" in captured.out
    classes = Bundle.open("a.edgeseg").manifest.classes
    assert [(info.name, info.color) for info in classes] == [("one", (255, 0, 128)), ("two", (128, 0, 0))]
    for arguments, told in (
        (["export", "mine:net", "--classes", "a,b", *common, "a.edgeseg"], "exists"),
        (["export", "mine:nothing", "--classes", "a,b", *common, "b.edgeseg"], "has no 'nothing'"),
        (["export", "absent:net", "--classes", "a,b", *common, "b.edgeseg"], "no module 'absent'"),
        (["export", "mine:net", "--set", "size=3", "--classes", "a,b", *common, "b.edgeseg"], "cannot call mine:net"),
        (["export", "mine:net", "--weights", "w.pt", "--classes", "a,b", *common, "b.edgeseg"], "no weights at w.pt"),
        (["export", "mine:net", "--classes", "@none.txt", *common, "b.edgeseg"], "cannot read class names"),
    ):
        assert main(arguments) == 1
        err = capsys.readouterr().err
        assert told in err.splitlines()[-1]
    assert not Path("b.edgeseg").exists()
