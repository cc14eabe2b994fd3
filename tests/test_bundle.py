"""Bundles against whoever damages or crafts them: golden text, flipped bits, paths and weights that lead out."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseg.bundle import Bundle, Golden, describe_file
from edgeseg.errors import BundleError
from edgeseg.manifest import dumps
from edgeseg.testing import TINY

TEXT = (TINY / "manifest.json").read_text(encoding="utf-8")
MODEL = (TINY / "os8-fp32.onnx").read_bytes()
NAMES = ["golden.npz", "os16-fp32.onnx", "os8-fp32.onnx", "weights-fp32.bin"]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "tiny.edgeseg"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    change(data)
    (path / "manifest.json").write_text(json.dumps(data), encoding="utf-8")


def put(path: Path, name: str, data: bytes) -> None:
    """Replace a file and list its new hash: what a forger does who can write the manifest."""
    (path / name).write_bytes(data)
    entry = {"sha256": describe_file(data).sha256, "bytes": len(data)}
    edit(path, lambda manifest: manifest["files"].update({name: entry}))


def golden_at_8(path: Path) -> Golden:
    opened = Bundle.open(path)
    return opened.golden(opened.variant(8, "fp32"))


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(BundleError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# opening


def test_opens_and_says_what_it_has(tiny: Path) -> None:
    opened = Bundle.open(str(tiny))
    assert opened.output_strides == (8, 16)
    assert [info.name for info in opened.manifest.classes] == ["ground", "wall", "sky", "plant", "thing"]
    assert opened.variant(16, "fp32").logits_shape == (5, 4, 6)
    assert "8 fp32" in refusal(lambda: opened.variant(16, "int8"))
    assert "weights-fp32.bin" in refusal(lambda: opened.file("passwd"))
    model = opened.model(opened.variant(8, "fp32"))
    assert (model.path.name, model.input_size, model.logits_shape) == ("os8-fp32.onnx", (64, 96), (5, 8, 12))


def test_model_digest_follows_graph_and_weights(tiny: Path) -> None:
    def digests() -> list[str]:
        opened = Bundle.open(tiny)
        return [opened.model(opened.variant(stride, "fp32")).digest for stride in (8, 16)]

    before = digests()
    assert before[0] != before[1]
    put(tiny, "weights-fp32.bin", bytes((tiny / "weights-fp32.bin").stat().st_size))
    after = digests()
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_golden_frames_are_what_numpy_reads(tiny: Path) -> None:
    with np.load(TINY / "golden.npz") as arrays:
        for stride in (8, 16):
            opened = Bundle.open(tiny)
            golden = opened.golden(opened.variant(stride, "fp32"), 2)
            np.testing.assert_array_equal(golden.frame, arrays["frame2"])
            np.testing.assert_array_equal(golden.logits, arrays[f"frame2_os{stride}_logits"])
            np.testing.assert_array_equal(golden.class_map, arrays[f"frame2_os{stride}_class_map"])


def test_non_ascii_names_stay_readable(tiny: Path) -> None:
    edit(tiny, lambda data: data["classes"][0].update(name="Straße 道路"))
    assert Bundle.open(tiny).manifest.classes[0].name == "Straße 道路"
    assert "Straße 道路" in dumps(Bundle.open(tiny).manifest)


def test_unknown_keys_are_ignored(tiny: Path) -> None:
    def add(data: dict[str, Any]) -> None:
        data["new"] = data["preprocess"]["new"] = data["variants"][0]["new"] = data["files"]["golden.npz"]["new"] = [{}]

    edit(tiny, add)
    assert Bundle.open(tiny).manifest == Bundle.open(TINY).manifest


@pytest.mark.parametrize("number", [2, 0, -1, None])
def test_another_format_names_both_numbers(tiny: Path, number: object) -> None:
    edit(tiny, lambda data: data.update(format=number))
    message = refusal(lambda: Bundle.open(tiny))
    assert f"format {number!r}" in message
    assert "format 1" in message


def test_no_bundle_there(tmp_path: Path) -> None:
    for name in ("none.edgeseg", "x" * 300, "nul\0"):
        assert "does not exist" in refusal(lambda name=name: Bundle.open(tmp_path / name))
    (tmp_path / "file").write_text("x")
    assert "is a file" in refusal(lambda: Bundle.open(tmp_path / "file"))
    assert "is not a bundle" in refusal(lambda: Bundle.open(tmp_path))
    (tmp_path / "manifest.json").mkdir()
    assert "is not a bundle" in refusal(lambda: Bundle.open(tmp_path))


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"not json", TEXT.encode()[:-3], b'{"format": 1', b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 100_000],
    ids=["empty", "brace", "words", "cut", "open", "utf16", "deep-list", "deep-object"],
)
def test_a_manifest_that_is_no_json(tiny: Path, data: bytes) -> None:
    (tiny / "manifest.json").write_bytes(data)
    assert "manifest.json" in refusal(lambda: Bundle.open(tiny))


# damage


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verify", [True, False])
def test_a_missing_or_truncated_file(tiny: Path, name: str, verify: bool) -> None:
    data = (tiny / name).read_bytes()
    (tiny / name).write_bytes(data[:-1])
    message = refusal(lambda: Bundle.open(tiny, verify=verify))
    assert name in message
    assert f"{len(data) - 1} bytes instead of {len(data)}" in message
    (tiny / name).unlink()
    assert name in refusal(lambda: Bundle.open(tiny, verify=verify))
    (tiny / name).mkdir()
    assert "not a plain file" in refusal(lambda: Bundle.open(tiny, verify=verify))


@pytest.mark.parametrize("name", NAMES)
def test_one_flipped_bit(tiny: Path, name: str) -> None:
    data = bytearray((tiny / name).read_bytes())
    data[len(data) // 2] ^= 0x10
    (tiny / name).write_bytes(data)
    assert f"{name} is damaged" in refusal(lambda: Bundle.open(tiny))
    opened = Bundle.open(tiny, verify=False)
    uses: dict[str, Callable[[], object]] = {
        "golden.npz": lambda: opened.golden(opened.variant(8, "fp32")),
        "os8-fp32.onnx": lambda: opened.model(opened.variant(8, "fp32")),
        "os16-fp32.onnx": lambda: opened.model(opened.variant(16, "fp32")),
    }
    for used, use in uses.items():
        if used == name or (name == "weights-fp32.bin" and used.endswith(".onnx")):
            assert f"{name} is damaged" in refusal(use)
        else:
            use()


def npz(path: Path, change: Callable[[dict[str, Any]], object], **options: Any) -> None:
    with np.load(TINY / "golden.npz") as arrays:
        content = dict(arrays)
    change(content)
    np.savez(path, **content, **options)


@pytest.mark.parametrize("key", ["frame0", "frame0_os8_logits", "frame0_os8_class_map"])
def test_golden_lacking_an_array(tiny: Path, key: str) -> None:
    npz(tiny / "golden.npz", lambda arrays: arrays.pop(key))
    put(tiny, "golden.npz", (tiny / "golden.npz").read_bytes())
    assert key in refusal(lambda: golden_at_8(tiny))


def test_golden_frames_that_are_not_there(tiny: Path) -> None:
    opened = Bundle.open(tiny)
    for stride, index in ((8, 3), (8, -1), (32, 0)):
        variant = dataclasses.replace(opened.variant(8, "fp32"), output_stride=stride)
        assert f"golden frame {index} at output stride {stride}" in refusal(
            lambda variant=variant, index=index: opened.golden(variant, index)
        )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("frame0", np.zeros((64, 97, 3), np.uint8)),
        ("frame0", np.zeros((64, 96, 3), np.float32)),
        ("frame0_os8_logits", np.zeros((5, 8, 13), np.float32)),
        ("frame0_os8_logits", np.zeros((5, 8, 12), np.float64)),
        ("frame0_os8_class_map", np.zeros((64, 95), np.uint8)),
        ("frame0_os8_class_map", np.zeros((64, 96), np.int64)),
    ],
)
def test_golden_arrays_of_another_shape(tiny: Path, key: str, value: np.ndarray) -> None:
    npz(tiny / "golden.npz", lambda arrays: arrays.update({key: value}))
    put(tiny, "golden.npz", (tiny / "golden.npz").read_bytes())
    assert "does not fit" in refusal(lambda: golden_at_8(tiny))


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("whole_file", [True, False])
def test_golden_is_never_unpickled(tiny: Path, tmp_path: Path, whole_file: bool) -> None:
    bomb = np.array([Bomb(tmp_path / "executed")], object)
    if whole_file:
        with (tiny / "golden.npz").open("wb") as file:
            np.save(file, bomb, allow_pickle=True)
    else:
        npz(tiny / "golden.npz", lambda arrays: arrays.update(frame0=bomb))
    put(tiny, "golden.npz", (tiny / "golden.npz").read_bytes())
    refusal(lambda: golden_at_8(tiny))
    assert not (tmp_path / "executed").exists()
    np.load(tiny / "golden.npz", allow_pickle=True)["frame0" if not whole_file else 0]
    assert (tmp_path / "executed").exists(), "the bomb would not have gone off at all"


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\x05\x06" + bytes(18), b"garbage" * 99])
def test_golden_that_is_no_archive(tiny: Path, data: bytes) -> None:
    put(tiny, "golden.npz", data)
    assert "golden.npz" in refusal(lambda: golden_at_8(tiny))


# names


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "C:x", "a/b", "a\\b", "..", ".", "", "..\\x", "x\0y", "x\ny", "\ud800", "x\u2028y"]
)
def test_names_that_could_leave_the_directory(tiny: Path, name: str) -> None:
    edit(tiny, lambda data: data["files"].update({name: {"sha256": "0" * 64, "bytes": 0}}))
    assert "manifest.files" in refusal(lambda: Bundle.open(tiny))


def link(path: Path, target: Path) -> None:
    try:
        path.symlink_to(target)
    except OSError as error:
        pytest.skip(f"no symbolic links here: {error}")


@pytest.mark.parametrize("name", [*NAMES, "manifest.json"])
@pytest.mark.parametrize("verify", [True, False])
def test_links_that_lead_out(tiny: Path, tmp_path: Path, name: str, verify: bool) -> None:
    os.replace(tiny / name, tmp_path / "outside")
    link(tiny / name, tmp_path / "outside")
    assert "leads out" in refusal(lambda: Bundle.open(tiny, verify=verify))


def test_links_within_and_to_the_bundle_are_fine(tiny: Path, tmp_path: Path) -> None:
    os.replace(tiny / "golden.npz", tiny / "real")
    link(tiny / "golden.npz", tiny / "real")
    link(tmp_path / "alias", tiny)
    assert golden_at_8(tmp_path / "alias").frame.shape == (64, 96, 3)


def test_a_loop_of_links(tiny: Path) -> None:
    (tiny / "golden.npz").unlink()
    link(tiny / "golden.npz", tiny / "golden.npz")
    assert "golden.npz" in refusal(lambda: Bundle.open(tiny))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("name", ["golden.npz", "manifest.json"])
def test_a_pipe_is_not_waited_for(tiny: Path, name: str) -> None:
    (tiny / name).unlink()
    os.mkfifo(tiny / name)
    if name != "manifest.json":
        edit(tiny, lambda data: data["files"][name].update(bytes=0))
    assert "not a plain file" in refusal(lambda: Bundle.open(tiny))


def test_a_variant_without_weights_may_name_none(tiny: Path) -> None:
    edit(tiny, lambda data: data["variants"][0].pop("weights"))
    opened = Bundle.open(tiny)
    assert "'weights-fp32.bin'" in refusal(lambda: opened.model(opened.variant(8, "fp32")))
