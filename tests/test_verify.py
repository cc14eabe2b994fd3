"""`edgeseg verify` on bundles that are right, wrong, and certified; and what `precision="auto"` makes of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import edgeseg
from edgeseg import images
from edgeseg.bundle import Bundle, describe_file, write
from edgeseg.calibration.datasets import open_dataset
from edgeseg.calibration.verification import verify
from edgeseg.cli import main
from edgeseg.errors import BackendError, BundleError, InputError
from edgeseg.manifest import Certificate, Manifest
from edgeseg.testing import TINY, street_scene

CPU, TENSORRT = "os16-int8-cpu.onnx", "os16-int8-tensorrt.onnx"


@pytest.fixture
def bundle(tiny_int8: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_int8, tmp_path / "tiny.edgeseg"))


@pytest.fixture(scope="module")
def labelled(tiny_int8: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty scenes, labelled with what TINY says of them in fp32 at stride 16: int8 can only lose."""
    folder = tmp_path_factory.mktemp("labelled")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    with edgeseg.load(TINY, backend="ort", cache=None) as segmenter:
        for seed in range(20):
            frame = street_scene(seed, (64, 96))[0]
            images.write(folder / "images" / f"{seed}.png", frame)
            cv2.imwrite(str(folder / "labels" / f"{seed}.png"), segmenter(frame).class_map)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["verify", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def rewrite(path: Path, change: Callable[[Manifest], Manifest], **files: bytes) -> None:
    """The bundle with another manifest and other files, their hashes right."""
    manifest = Bundle.open(path).manifest
    content = {name: (path / name).read_bytes() for name in manifest.files} | files
    listed = {name: describe_file(data) for name, data in content.items()}
    write(path, change(dataclasses.replace(manifest, files=listed)), content, overwrite=True)


def certify(path: Path, **certificate: Any) -> None:
    made = Certificate("ort", "cpu", "", 101, "", 60, 59.88, -0.12, (-0.2, 0), {}, 1, "", 1, 0.2)
    made = dataclasses.replace(made, **certificate)

    def change(manifest: Manifest) -> Manifest:
        variants = [dataclasses.replace(v, certificates=(made,) * (v.file == CPU)) for v in manifest.variants]
        return dataclasses.replace(manifest, variants=tuple(variants))

    rewrite(path, change)


def test_every_backend_computes_every_variant_it_takes(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = verify(bundle)
    assert found.ok
    assert not found.notes
    here = [(check.variant.file, check.backend) for check in found.golden]
    fp32 = ["os8-fp32.onnx", "os16-fp32.onnx"]
    assert here == [
        *((file, name) for name in ("openvino", "ort") for file in (*fp32, "os8-int8-cpu.onnx", CPU)),
        ("os16-fp32.onnx", "simulate"),
        (TENSORRT, "simulate"),
    ]
    code, out, err = run(capsys, bundle)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if line.startswith("os")]
    assert [row[0] for row in rows] == [file for file, _ in here]
    assert all(row[-1] == "ok" for row in rows)


def test_the_embedded_bundle_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--backend", "ort")
    assert code == 0
    assert "os32-fp32.onnx" in out
    assert "openvino" not in out


def test_a_named_backend_and_json(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, bundle, "--backend", "ort", "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["certificates"]) == (0, True, [])
    assert {row["backend"] for row in report["golden"]} == {"ort"}
    assert report["notes"] == [f"{TENSORRT} is not checked: ort does not take the encoding tensorrt"]
    worst = next(row["worst"] for row in report["golden"] if row["variant"] == CPU)
    assert worst["error"] <= worst["tolerance"]["logits"] == 0.2


def test_a_graph_that_is_another_fails_after_the_whole_table(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(bundle / CPU)
    weight = next(
        t for t in graph.graph.initializer if t.data_type == onnx.TensorProto.INT8 and t.dims[:] == [5, 48, 1, 1]
    )
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    rewrite(bundle, lambda manifest: manifest, **{CPU: graph.SerializeToString()})
    code, out, err = run(capsys, bundle)
    assert (code, err) == (1, "")
    rows = {tuple(line.split()[:3:2]): line.split()[-1] for line in out.splitlines() if line.startswith("os")}
    wrong = {key for key, verdict in rows.items() if verdict == "FAILED"}
    assert wrong == {(CPU, "openvino"), (CPU, "ort")}
    assert len(rows) == 10


def test_what_no_runtime_opens_is_a_row(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(bundle, lambda manifest: manifest, **{CPU: b""})
    code, out, _ = run(capsys, bundle, "--backend", "ort")
    assert code == 1
    assert f"FAILED: ONNX Runtime cannot open {CPU}" in out


def test_damage_is_one_line(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((bundle / CPU).read_bytes())
    data[99] ^= 1
    (bundle / CPU).write_bytes(data)
    code, out, err = run(capsys, bundle)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"{CPU} is damaged" in err
    assert "copy it again, or calibrate the bundle again" in err
    for arguments, told in (
        (["--certify"], "name them with --data"),
        (["--device", "toaster"], "no device 'toaster'"),
        (["--backend", "magic"], "unknown backend"),
        (["--max-drop", "nan"], "max_drop is nan"),
        (["--data", "/no/where"], "missing"),
    ):
        code, out, err = run(capsys, TINY, *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1), err
        assert told in err


# certificates


def test_measured_certified_and_loaded(bundle: Path, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = [bundle, "--data", labelled, "--max-drop", "30"]
    code, out, _ = run(capsys, *calls)
    assert code == 0
    assert out.count(" on 20 images, ") == 5  # openvino and ort at two strides, and the simulation
    assert "int8 is not certified" in edgeseg.load(bundle, backend="ort").choice
    before = {path.name: path.read_bytes() for path in bundle.iterdir() if path.name != "manifest.json"}
    assert run(capsys, *calls, "--certify", "--json")[0] == 0
    assert before == {path.name: path.read_bytes() for path in bundle.iterdir() if path.name != "manifest.json"}
    variant = Bundle.open(bundle).variant(16, "int8", "cpu")
    assert [(found.backend, found.device) for found in variant.certificates] == [("openvino", "cpu"), ("ort", "cpu")]
    for backend, certificate in zip(("openvino", "ort"), variant.certificates, strict=True):
        with edgeseg.load(bundle, backend=backend) as segmenter:
            assert segmenter.choice == (
                f"{backend} on cpu, int8, certified: {certificate.difference:+.2f} mIoU on 20 images, "
                f"output stride 16 (backend as asked)"
            )
            assert segmenter.variant == variant
            assert segmenter.info.precision == "int8"
    # the same again: as recorded; then with a limit that is too strict, which is what auto goes by from then on
    code, out, _ = run(capsys, *calls)
    assert code == 0
    assert out.count("the bundle's certificate") == 5
    assert certificate.difference < 0, "int8 loses nothing: this proves nothing"
    code, out, _ = run(capsys, *calls[:-1], "0", "--certify", "--backend", "ort")
    assert code == 1
    assert len(Bundle.open(bundle).variant(16, "int8", "cpu").certificates) == 2
    assert "ort on cpu, fp32 (int8 has -" in edgeseg.load(bundle, backend="ort").choice
    assert "openvino on cpu, int8, certified" in edgeseg.load(bundle).choice


def test_worse_than_the_certificate_fails(bundle: Path, labelled: Path) -> None:
    data = open_dataset(labelled, classes=Bundle.open(bundle).manifest.classes)
    now = next(loss.measured for loss in verify(bundle, data, backend="ort", max_drop=99).losses)
    assert now is not None
    certify(bundle, data=now.data, difference=1, interval=(0.5, 1.5))
    loss = next(loss for loss in verify(bundle, data, backend="ort", max_drop=99).losses if loss.recorded)
    assert (loss.as_recorded, loss.ok) == (False, False)
    certify(bundle, data="of other images", difference=1, interval=(0.5, 1.5))
    assert verify(bundle, data, backend="ort", max_drop=99).ok


@pytest.mark.parametrize(
    ("key", "told"), [("images", "calibration images"), ("guard_images", "chose the float layers")]
)
def test_images_that_calibration_saw_are_refused(bundle: Path, labelled: Path, key: str, told: str) -> None:
    data = open_dataset(labelled, classes=Bundle.open(bundle).manifest.classes)
    ranges = json.dumps({"images": [], key: [list(data.digests())[2]]}).encode()
    rewrite(bundle, lambda manifest: manifest, **{"ranges.json": ranges})
    with pytest.raises(InputError, match=f"1 of the 20 images are among the .*{told} of tiny.edgeseg, "):
        verify(bundle, data)


@pytest.mark.parametrize("table", [b"[]", b"{}", b'{"images": [', b'{"images": ["0"]}', b'{"images": {}}', b"\xff"])
def test_a_table_of_ranges_that_is_none(bundle: Path, table: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(bundle, lambda manifest: manifest, **{"ranges.json": table})
    code, out, err = run(capsys, bundle)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "ranges.json is not a table of ranges (" in err


def test_images_that_do_not_serve_are_refused_first(bundle: Path, labelled: Path) -> None:
    rewrite(bundle, lambda manifest: manifest, **{"golden.npz": b"whatever runs a golden frame fails"})
    with pytest.raises(InputError, match=r"no label for .*0\.png: give the folder of the labels \(--labels\)"):
        verify(bundle, labelled / "images")
    with pytest.raises(InputError, match=r"images is a list: give edgeseg\.calibration\.datasets\.open_dataset"):
        verify(bundle, [1])  # type: ignore[arg-type]
    data = open_dataset(labelled, classes=Bundle.open(bundle).manifest.classes)
    with pytest.raises(InputError, match="a certificate needs 20 different images or more, these are 19: "):
        verify(bundle, data.take(19, 0), certify=True)
    with pytest.raises(InputError, match="images is empty"):
        verify(bundle, data.take(0, 0))
    for drop in (float("nan"), float("inf"), -1):
        with pytest.raises(InputError, match=f"max_drop is {drop}"):
            verify(bundle, labelled, max_drop=drop)


def test_few_images_are_told(bundle: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        shutil.copy(labelled / kind / "3.png", tmp_path / kind)
    code, out, _ = run(capsys, bundle, "--data", tmp_path, "--max-drop", "30", "--backend", "ort")
    assert code == 0
    assert out.count(" on 1 image, ") == out.count("too few images to rely on: a certificate needs 20") == 2
    assert "-0.000" not in out
    certify(bundle)
    notes = verify(bundle, labelled, backend="ort", certify=True, max_drop=30).notes
    assert f"{CPU} on ort: certified on 20 images in place of 101" in notes


def test_a_bundle_without_int8_says_so(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, TINY, "--data", labelled)
    assert code == 0
    assert out.splitlines()[-1].startswith("no int8 variant, so no loss to measure")


# what load makes of it


def test_int8_is_taken_by_encoding(bundle: Path) -> None:
    for backend in ("openvino", "ort", "simulate"):
        with edgeseg.load(bundle, backend=backend, precision="int8") as segmenter:
            assert segmenter.variant.file == CPU
    with pytest.raises(BackendError, match=r"tiny.edgeseg on cpu: openvino, ort: the backend computes fp32 or int8 on"):
        edgeseg.load(bundle, precision="fp16")
    rewrite(bundle, lambda m: dataclasses.replace(m, variants=tuple(v for v in m.variants if v.encoding != "cpu")))
    for backend, reason in (("openvino", "silently wrong"), ("ort", "3 to 6 times slower")):
        with pytest.raises(BackendError, match=rf"{backend} takes \(tensorrt: .*{reason}\): .*edgeseg calibrate"):
            edgeseg.load(bundle, backend=backend, precision="int8")
    with edgeseg.load(bundle, backend="simulate", precision="int8") as segmenter:
        assert segmenter.variant.file == TENSORRT
    with pytest.raises(
        BundleError, match=r"stride 8 in int8: it has 8 fp32, 16 fp32, 16 int8 \(tensorrt\); .*calibrate"
    ):
        edgeseg.load(bundle, output_stride=8, precision="int8")


@pytest.mark.parametrize(
    ("certificate", "said"),
    [
        ({}, "int8, certified: -0.12 mIoU on 101 images"),
        ({"difference": -0.3}, "fp32 (int8 has -0.30 mIoU on 101 images, allowed is -0.2)"),
        ({"images": 19}, "fp32 (int8 has -0.12 mIoU on 19 images, a certificate needs 20)"),
        ({"difference": -0.001}, "int8, certified: +0.00 mIoU on 101 images"),
        ({"device": "gpu"}, "fp32 (int8 is not certified for it)"),
        ({"backend": "openvino"}, "fp32 (int8 is not certified for it)"),
    ],
)
def test_auto_precision_goes_by_this_backends_certificate(bundle: Path, certificate: dict[str, Any], said: str) -> None:
    certify(bundle, **certificate)
    assert edgeseg.load(bundle, backend="ort").choice == f"ort on cpu, {said}, output stride 16 (backend as asked)"


def test_certified_int8_that_this_machine_computes_wrong_falls_back(bundle: Path) -> None:
    """A certificate is another machine's word; the golden frame is this one's."""
    certify(bundle)
    other = (bundle / "os8-int8-cpu.onnx").read_bytes()
    rewrite(bundle, lambda manifest: manifest, **{CPU: other})
    with pytest.warns(RuntimeWarning, match="fell back from ort int8 to ort fp32: .*the int8 graph rightly"):
        segmenter = edgeseg.load(bundle, backend="ort")
    assert segmenter.variant.precision == "fp32"
    assert "fp32 (int8 is certified, but onnxruntime" in segmenter.choice
    assert "does not compute the int8 graph rightly), output stride 16" in segmenter.choice
    frame = street_scene(3, (64, 96))[0]
    with edgeseg.load(TINY, backend="ort") as right:
        assert np.array_equal(segmenter(frame).class_map, right(frame).class_map)
