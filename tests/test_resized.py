"""A bundle at another input size: the same network, its own int8, and what `bench --size` says of it."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="networks come from torch")
pytest.importorskip("onnxscript", reason="torch exports with it")
pytest.importorskip("onnxruntime")
safetensors = pytest.importorskip("safetensors.torch")

import edgeseg
from edgeseg import cli, images
from edgeseg.benchmarks.checkpoints import read_checkpoint, with_classes
from edgeseg.benchmarks.networks import calm
from edgeseg.benchmarks.peers import compare
from edgeseg.benchmarks.peers_worker import _torch
from edgeseg.benchmarks.quality import torch_masks
from edgeseg.benchmarks.resized import as_asked, resized
from edgeseg.benchmarks.results import read
from edgeseg.bundle import Bundle
from edgeseg.calibration.recipe import calibrate
from edgeseg.calibration.used_images import used_by
from edgeseg.errors import EdgesegError, InputError
from edgeseg.models import unet
from edgeseg.testing import TINY, street_scene

SIZE, OTHER = (32, 48), (40, 64)


@dataclasses.dataclass(frozen=True)
class Street:
    """A small U-Net with int8, its checkpoint, and a folder of two images."""

    bundle: Bundle
    weights: Path
    photos: Path


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Street:
    folder = tmp_path_factory.mktemp("street")
    model = unet(num_classes=3, base_channels=4).eval()
    calm(model)
    safetensors.save_file(model.state_dict(), folder / "unet.safetensors")
    photos = folder / "photos"
    photos.mkdir()
    for seed in range(2):
        images.write(photos / f"{seed}.png", street_scene(seed, SIZE)[0])
    names = ["ground", edgeseg.manifest.ClassInfo("wall", (1, 2, 3)), "sky"]
    exported = edgeseg.export(
        model, folder / "float.edgeseg", input_size=SIZE, classes=names, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3),
        fit="letterbox", interpolation="area",
    )  # fmt: skip
    made = calibrate(exported.path, folder / "street.edgeseg", photos, encodings=("cpu",)).bundle
    return Street(made, folder / "unet.safetensors", photos)


def test_it_is_the_same_network_at_another_size(
    street: Street, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeseg.benchmarks.resized._SCENES", 3)
    steps = list[str]()
    found = resized(street.bundle, OTHER, tmp_path, weights=street.weights, progress=steps.append)
    assert found.path == tmp_path / "street-40x64.edgeseg"
    was, now = street.bundle.manifest, Bundle.open(found.path).manifest
    assert now.preprocess == dataclasses.replace(was.preprocess, input_size=OTHER)
    assert now.classes == was.classes
    assert found.contents == street.bundle.contents == "1 fp32, 1 int8 (cpu)"
    assert [len(used.images) for used in used_by(found).values()] == [3]
    assert {step.partition(":")[0] for step in steps} > {"exporting", "calibrating"}
    stretched = Bundle(
        found.path, dataclasses.replace(now, preprocess=dataclasses.replace(now.preprocess, fit="stretch"))
    )
    frame = street_scene(7, OTHER)[0]
    wanted = torch_masks(stretched, street.weights, 1)(frame)
    for precision, least in (("fp32", 0.9999), ("int8", 0.9)):
        with edgeseg.load(found.path, backend="ort", precision=precision, cache=None) as segmenter:
            assert np.mean(segmenter(frame).class_map == wanted) >= least, precision


@pytest.mark.parametrize("count", [2, 3, 5])
def test_with_other_classes_the_networks_own_stay_as_they_are(street: Street, count: int) -> None:
    image = torch.rand(1, 3, *SIZE)
    with torch.inference_mode():
        own = read_checkpoint(street.weights)(image)
        found = []
        for _ in range(2):
            model = read_checkpoint(street.weights)
            with_classes(model, count)
            found.append(model(image))
    assert found[0].shape == (1, count, *SIZE)
    assert torch.equal(found[0], found[1])
    assert torch.allclose(found[0][:, :3], own[:, :count], atol=1e-5)
    wins = found[0].argmax(dim=1)
    assert count < 5 or 0 < (wins >= 3).float().mean() < 0.5


@pytest.mark.parametrize("count", [2, 5])
def test_a_bundle_with_other_classes(street: Street, tmp_path: Path, count: int) -> None:
    weights, photos = street.weights, street.photos
    found, said = as_asked(street.bundle, None, tmp_path, weights=weights, calibrate_on=photos, classes=count)
    its = {2: "the first 2 classes of 3", 5: "5 classes, 2 of them untrained"}[count]
    assert said.endswith(f"at 32x48, its int8 calibrated on 2 images of {photos}, without a guard, with {its}")
    assert [one.name for one in found.manifest.classes] == ["ground", "wall", "sky", "class 3", "class 4"][:count]
    assert {variant.logits_shape[0] for variant in found.manifest.variants} == {count}
    assert found.contents == "1 fp32, 1 int8 (cpu)"
    frame, preprocess = street_scene(7, SIZE)[0], found.manifest.preprocess
    about = {"unit_mean": preprocess.mean, "unit_std": preprocess.std, "compiled": False}
    same = _torch({"weights": weights, "channels": count, "output_stride": 1, "threads": 0, "size": SIZE, **about})
    with edgeseg.load(found.path, backend="ort", precision="fp32", cache=None) as segmenter:
        assert np.mean(segmenter(frame).class_map == same.run(frame)) > 0.999  # peers race with that


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"size": (16, 64)}, "input size is 16x64: give height x width, each 32 to 8192"),
        ({"classes": 256}, "256 classes were asked for: give 2 to 255"),
        ({"output_strides": [8]}, "no output stride 8: it has 1"),
        ({"weights": Path("none.pt")}, "no weights at none.pt"),
        (
            {"bundle": Bundle.open(TINY)},
            r"checkpoint of .*tiny.edgeseg \(a U-Net cannot run at output stride 16\): give the one",
        ),
    ],
)
def test_what_cannot_be_is_told_at_once(street: Street, tmp_path: Path, arguments: dict[str, Any], told: str) -> None:
    given = {"bundle": street.bundle, "size": OTHER, "folder": tmp_path, "weights": street.weights, **arguments}
    with pytest.raises(EdgesegError, match=told):
        resized(**given)


def test_another_networks_checkpoint_is_refused(street: Street, tmp_path: Path) -> None:
    state = safetensors.load_file(street.weights)
    safetensors.save_file(
        {**state, "classifier.bias": state["classifier.bias"] + torch.tensor([0, 0, 0.1])}, tmp_path / "b.safetensors"
    )
    with pytest.raises(
        InputError, match=r"street.edgeseg: at output stride 1 its mask of a golden frame has 9\d\.\d\d%"
    ):
        resized(street.bundle, OTHER, tmp_path, weights=tmp_path / "b.safetensors")


def test_without_torch_the_package_is_named(street: Street) -> None:
    code = "import sys; sys.modules['torch'] = None; from edgeseg.cli import main; sys.exit(main(sys.argv[1:]))"
    options = ["bench", street.bundle.path, "--size", "40x64", "--weights", street.weights]
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == 'edgeseg: exporting needs the package torch: pip install "edgeseg[export]"\n'


def test_bench_at_another_size(street: Street, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--backend",
        "ort",
        "--frames",
        "90x160",
        "--seconds",
        "1",
        "--no-start",
        "--json",
        tmp_path / "out.json",
    ]
    options += ["--size", "40x64", "--weights", street.weights, "--calibrate-on", street.photos]
    assert cli.main(["bench", *map(str, [street.bundle.path, *options])]) == 0
    said = f"network exported anew at 40x64, its int8 calibrated on 2 images of {street.photos}, without a guard"
    assert said in capsys.readouterr().out.splitlines()
    found = read(tmp_path / "out.json")
    assert (found.bundle, found.input_size) == ("street-40x64", OTHER)
    assert [one.configuration.precision for one in found.measurements] == ["fp32", "int8"]
    assert found.method.startswith(f"Measured is the {said}. ")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--size", "40x64"], r"--size exports the network anew: give the bundle's checkpoint with --weights"),
        (["--calibrate-on", "."], "--calibrate-on is about int8 of what --size exports anew: give that too"),
        (["--weights", "w.pt"], "--weights is for --data, --size or --peers: give one of these too"),
        (["--size", "40x64", "--weights", "w.pt", "--backend", "none"], "unknown backend 'none'"),
        (["--size", "40x64", "--weights", "W", "--calibrate-on", ".", "--precision", "fp32"], "and none is measured"),
        (["--size", "40x64", "--weights", "W", "--calibrate-on", "PHOTOS", "--data", "PHOTOS"],
         "2 of the 2 images to calibrate on are among the images to measure on"),
    ],
)  # fmt: skip
def test_bad_options_are_one_line(
    street: Street, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"W": str(street.weights), "PHOTOS": str(street.photos)}
    assert cli.main(["bench", str(street.bundle.path), *(named.get(one, one) for one in options)]) == 1
    error = capsys.readouterr().err
    assert re.search(told, error)
    assert error.count("\n") == 1


def test_peers_at_another_size_need_the_checkpoint(street: Street, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="with --weights"):
        compare(path=street.bundle.path, output_stride=1, precision="fp32", frame=(90, 160), size=OTHER)
    with pytest.raises(InputError, match="--classes exports the network anew"):
        compare(path=street.bundle.path, output_stride=1, precision="fp32", frame=(90, 160), classes=5)
    embedded = Bundle.open(edgeseg.EMBEDDED, verify=False)
    with pytest.raises(InputError, match=r"in a checkout weights/deeplabv3_mobilenet_v2\.safetensors"):
        as_asked(embedded, OTHER, tmp_path, weights=None, calibrate_on=None)
