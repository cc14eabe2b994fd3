import copy
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
from safetensors.torch import save_file
from torch import nn

from edgeseg.benchmarks import reference_data, reference_model, reference_networks, reference_training
from edgeseg.benchmarks.checkpoints import read_checkpoint
from edgeseg.benchmarks.reference_curves import draw_curves
from edgeseg.errors import EdgesegError, InputError
from edgeseg.models import deeplabv3, unet
from edgeseg.scene import street_scene

F = nn.functional


def _dataset(folder: Path, count: int) -> Path:
    """Drawn streets in the layout of CamVid: two sequences, class maps with a void corner."""
    for part in ("images", "labels"):
        (folder / part / "train").mkdir(parents=True)
    for index in range(count):
        image, classes = street_scene(index, (64, 96))
        classes[:8, :8] = 11
        name = f"{'ab'[index % 2]}_{index:03}"
        cv2.imwrite(str(folder / "images" / "train" / f"{name}.png"), image[..., ::-1])
        cv2.imwrite(str(folder / "labels" / "train" / f"{name}.png"), classes)
    return folder


def test_a_part_of_each_sequence_is_held_out(tmp_path):
    photos = reference_data.read_photos(_dataset(tmp_path, 10), "train", 0.2)
    assert (len(photos.train), len(photos.held_out)) == (8, 2)
    image, label = photos.held_out[0]
    np.testing.assert_array_equal(image, street_scene(8, (64, 96))[0])
    assert label[0, 0] == reference_data.VOID
    assert label[8:].max() < reference_data.CLASSES


def test_views_move_image_and_label_together():
    """Of an image that shows its own class map, every view still does, but at edges."""
    classes = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 11, (6, 8), np.uint8), 24, 0), 24, 1)
    image = np.repeat((classes * 20)[..., None], 3, 2).astype(np.uint8)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        matrix = reference_data.view_matrix((144, 192), (64, 64), rng)
        view, label = reference_data.warp(image, classes, matrix, (64, 64))
        same = np.abs(view[..., 0].astype(int) - label.astype(int) * 20) <= 1
        flat = cv2.morphologyEx(label, cv2.MORPH_GRADIENT, np.ones((9, 9))) == 0
        inner = (slice(4, -4), slice(4, -4))
        assert (same | (label == reference_data.VOID))[inner][flat[inner]].all()
        assert flat[inner].mean() > 0.2


def test_batches_are_a_function_of_seed_and_step():
    photos = tuple(street_scene(seed, (64, 96)) for seed in range(5))
    batches, again = (reference_data.Batches(photos, photos[:1], (32, 64), 2, 7) for _ in range(2))
    for step in (3, 0):
        for mine, other in zip(batches(step), again(step), strict=True):
            np.testing.assert_array_equal(mine, other)
    other = reference_data.Batches(photos, photos[:1], (32, 64), 2, 8)
    assert not np.array_equal(batches(0)[0], other(0)[0])


@pytest.mark.parametrize("source", [11, 22, 44, 45])
def test_upsampling_as_a_matrix_is_torchs(source):
    x = torch.randn(2, 3, source, 30, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(x, (352, 480), mode="bilinear", align_corners=False)
    ours = reference_training.upsampling(352, source) @ x @ reference_training.upsampling(480, 30).T
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)


def test_lovasz_softmax_of_hard_predictions_is_one_minus_miou():
    rng = np.random.default_rng(0)
    predicted, label = rng.integers(0, 4, (2, 2, 6, 7))
    label[0, 0] = reference_data.VOID
    kept = label != reference_data.VOID
    ious = []
    for index in np.unique(label[kept]):
        mine, true = (predicted == index) & kept, (label == index) & kept
        ious.append((mine & true).sum() / (mine | true).sum())
    hard = F.one_hot(torch.from_numpy(predicted), 4).permute(0, 3, 1, 2).double()
    loss = reference_training.lovasz_softmax(hard, torch.from_numpy(label))
    assert float(loss) == pytest.approx(1 - np.mean(ious), abs=1e-12)


@pytest.mark.parametrize("dilation", [1, 2, 4])
@pytest.mark.parametrize("size", [(12, 16), (11, 15)])
def test_a_phased_convolution_is_the_dilated_one(dilation, size):
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, 3, padding=dilation, dilation=dilation, groups=6).double()
    phased = reference_networks.PhasedConv2d(6, 6, 3, padding=dilation, dilation=dilation, groups=6).double()
    phased.load_state_dict(plain.state_dict())
    x = torch.randn(2, 6, *size, dtype=torch.double, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    weight = torch.randn(2, 6, *size, dtype=torch.double)
    for module, value in ((plain, x), (phased, other)):
        (module(value) * weight).sum().backward()
    torch.testing.assert_close(phased(other), plain(x))
    torch.testing.assert_close(other.grad, x.grad)
    torch.testing.assert_close(phased.weight.grad, plain.weight.grad)


def test_gradients_of_dilated_convolutions_in_bfloat16():
    """At this size and channels last, as the recipe trains, torch 2.13's own are garbage."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(384, 384, 3, padding=2, dilation=2, groups=384, bias=False))
    x, weight = torch.randn(2, 2, 384, 22, 30)
    layers, x = (value.to(memory_format=torch.channels_last) for value in (layers, x))
    (layers(x) * weight).sum().backward()
    wanted, layers[0].weight.grad = layers[0].weight.grad, None
    reference_networks.by_phases(layers)
    with torch.autocast("cpu", torch.bfloat16):
        y = layers(x)
    (y.float() * weight).sum().backward()
    assert float((layers[0].weight.grad - wanted).norm() / wanted.norm()) < 0.01


def test_training_from_random_weights():
    torch.set_num_threads(1)  # several wait for each other where the machine is busy
    torch.manual_seed(0)
    plain = reference_networks.RECIPES["deeplabv3_mobilenet_v2"].build()
    phased = copy.deepcopy(plain)
    reference_networks.by_phases(phased)
    states = plain.state_dict(), phased.state_dict()
    assert list(states[0]) == list(states[1])
    x = torch.randn(1, 3, 64, 96)
    for output_stride in (8, 16, 32):
        for model in (plain, phased):
            model.eval().set_output_stride(output_stride)
        with torch.inference_mode():
            torch.testing.assert_close(phased(x), plain(x), rtol=1e-5, atol=1e-6)
    views, labels = (np.stack(part) for part in zip(*(street_scene(seed, (64, 96)) for seed in range(2)), strict=True))
    schedule = reference_training.Schedule(steps=20, shares=((8, 0.5), (16, 0.5)), warmup=1)
    run = reference_training.Run(phased, schedule, np.ones(11, np.float32))
    losses = [run.train_on(views, labels) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert all(value.isfinite().all() for value in run.average.values())


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_folding_norms_and_back_leaves_the_network(output_stride):
    torch.manual_seed(0)
    plain = deeplabv3("mobilenet_v2", num_classes=11, output_stride=output_stride).eval()
    for name, value in plain.state_dict().items():
        if "backbone" in name and name.endswith(("running_mean", "1.bias")):
            value.normal_(0, 0.1)
    folded = deeplabv3("mobilenet_v2", num_classes=11, output_stride=output_stride).eval()
    folded.load_state_dict(plain.state_dict())
    names = reference_networks.fold_norms(folded)
    again = deeplabv3("mobilenet_v2", num_classes=11, output_stride=output_stride).eval()
    again.load_state_dict(reference_networks.unfold_norms(folded.state_dict(), names), strict=False)
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), plain(x), rtol=0, atol=2e-5)
        torch.testing.assert_close(again(x), plain(x), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "model",
    [
        lambda: deeplabv3("mobilenet_v2", num_classes=3),
        lambda: deeplabv3("mobilenet_v2", num_classes=5, decoder="subpixel"),
        lambda: unet(num_classes=4, bottleneck_stride=16, base_channels=4),
    ],
)
def test_a_checkpoint_says_what_it_is_of(model, tmp_path):
    torch.manual_seed(0)
    network, x = model().eval(), torch.randn(1, 3, 64, 96)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    with torch.inference_mode():
        torch.testing.assert_close(read_checkpoint(tmp_path / "w.safetensors")(x), network(x))


def test_what_is_no_checkpoint(tmp_path):
    save_file({"fc.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="no checkpoint of a reference network"):
        read_checkpoint(tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="is no backbone of this network"):
        reference_networks.start_from(deeplabv3("mobilenet_v2", num_classes=3), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="multiples of 32"):
        reference_networks.RECIPES["unet8"].changed(epochs=None, size=(100, 96), batch=None)
    with pytest.raises(InputError, match="holds no training run"):
        draw_curves([tmp_path])


def _arguments(folder: Path, data: Path) -> list[str]:
    arguments = ["train", "deeplabv3_mobilenet_v2", "--data", str(data), "-o", str(folder), "--size", "64x96"]
    arguments += ["--batch", "2", "--epochs", "3", "--streets", "2", "--checkpoint-every", "2", "--threads", "1"]
    return [*arguments, "--held-out", "0.25"]


def _train(folder: Path, data: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edgeseg.benchmarks.reference_model", *_arguments(folder, data), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _steps(folder: Path) -> list[int]:
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}") and "loss" in line]


def test_a_killed_run_ends_at_the_weights_of_an_unbroken_one(tmp_path):
    """As the embedded network was trained: from a backbone with its norms folded away, scored on the way."""
    data = _dataset(tmp_path / "data", 8)
    torch.manual_seed(3)
    network = deeplabv3("mobilenet_v2", num_classes=2)
    backbone = {name: value for name, value in network.state_dict().items() if name.startswith("backbone.")}
    save_file(backbone, tmp_path / "backbone.safetensors")
    more = ("--backbone", str(tmp_path / "backbone.safetensors"), "--score-every", "1")
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    first, second = _train(unbroken, data, *more), _train(killed, data, *more)
    deadline = time.monotonic() + 120
    while len(_steps(killed)) < 5 and second.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    assert second.returncode == -signal.SIGKILL
    assert not (killed / "deeplabv3_mobilenet_v2.safetensors").exists()
    with (killed / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "held_out": [{"iou": {}')  # as a kill within a line leaves it
    again = _train(killed, data, *more)
    for process in (first, again):
        assert process.communicate(timeout=120)[1] == ""
        assert process.returncode == 0
    assert _steps(killed) == _steps(unbroken) == list(range(1, 10))
    weights = [(folder / "deeplabv3_mobilenet_v2.safetensors").read_bytes() for folder in (unbroken, killed)]
    assert weights[0] == weights[1]
    states = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (unbroken, killed)]
    for part in ("model", "average"):
        for name, value in states[0][part].items():
            assert torch.equal(value, states[1][part][name]), name
    scored = [[line for line in (folder / "log.jsonl").read_text().splitlines() if "held_out" in line]
              for folder in (unbroken, killed)]  # fmt: skip
    assert scored[0] == scored[1]
    assert len(scored[0]) == 3
    assert draw_curves([killed, unbroken]).shape[2] == 3


def test_an_interrupted_run_says_so_in_a_line_and_goes_on(tmp_path):
    data, folder = _dataset(tmp_path / "data", 8), tmp_path / "run"
    process = _train(folder, data)
    deadline = time.monotonic() + 120
    while len(_steps(folder)) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120)[1].strip() == "reference_model: interrupted"
    assert process.returncode == 130
    kept = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    assert kept >= 4
    assert CliRunner().invoke(reference_model.main, _arguments(folder, data)).exit_code == 0
    assert _steps(folder) == list(range(1, 10))


def _refused(arguments: list[str]) -> str:
    result = CliRunner().invoke(reference_model.main, arguments)
    assert isinstance(result.exception, EdgesegError), result.output
    return str(result.exception)


def test_what_a_run_refuses(tmp_path):
    data, folder = _dataset(tmp_path / "data", 4), tmp_path / "run"
    train = ["train", "deeplabv3_mobilenet_v2", "--data", str(data), "-o", str(folder), "--size", "32x32"]
    train += ["--batch", "2", "--epochs", "1", "--streets", "0", "--threads", "1"]
    assert "leaves none held out" in _refused([*train, "--held-out", "0.1"])
    assert "--score-every 5: nothing is held out" in _refused([*train, "--score-every", "5"])
    assert not folder.exists()
    (tmp_path / "file").touch()
    assert "cannot use" in _refused([*train, "-o", str(tmp_path / "file")])
    assert CliRunner().invoke(reference_model.main, train).exit_code == 0
    assert "seed is 1 and was 0" in _refused([*train, "--seed", "1"])
    checkpoint = (folder / "checkpoint.pt").read_bytes()
    (folder / "checkpoint.pt").write_bytes(checkpoint[:1000])
    assert "is damaged: delete it" in _refused(train)
    (folder / "run.json").write_text("[")
    assert "run.json is damaged" in _refused(train)
    (folder / "run.json").unlink()

    label = data / "labels" / "train" / "a_000.png"
    content = label.read_bytes()
    cv2.imwrite(str(label), np.zeros((32, 48), np.uint8))
    assert "a_000.png is uint8 of shape (32, 48): a grey 8-bit image of 64x96" in _refused(train)
    label.write_bytes(content[:40])
    assert "is no image" in _refused(train)
    for path in (data / "labels" / "train").iterdir():
        cv2.imwrite(str(path), np.full((64, 96), 11, np.uint8))
    assert "no pixel of these photos is labelled" in _refused(train)


def test_other_data_is_another_run(tmp_path):
    def settings(pairs):
        return reference_data.digest(reference_data.Photos(pairs, ()))

    pairs = tuple(street_scene(seed, (64, 96)) for seed in range(2))
    changed = pairs[0][1].copy()
    changed[3, 4] ^= 1
    assert settings(pairs) == settings(tuple(pairs))
    assert len({settings(pairs), settings(pairs[::-1]), settings(((pairs[0][0], changed), pairs[1]))}) == 3


def test_views_without_labels_change_nothing_by_themselves():
    logits = torch.randn(2, 11, 4, 6, requires_grad=True)
    labels = torch.full((2, 32, 48), reference_data.VOID)
    loss = reference_training.loss_of(logits, labels, torch.ones(11), 0.5, (1, 0))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()
    labels[0, 3, 2] = 4  # on the grid of the cross-entropy, not on that of the Lovasz part
    assert torch.isfinite(reference_training.loss_of(logits, labels, torch.ones(11), 0.5, (1, 0)))


def test_classes_that_never_occur_leave_the_weights_finite():
    label = np.zeros((4, 8), np.uint8)
    label[:, 6:] = 3
    weights = reference_data.class_weights(((np.zeros((4, 8, 3), np.uint8), label),))
    assert weights[0] / weights[3] == pytest.approx((8 / 24) ** 0.5)
    assert np.isfinite(weights).all()
