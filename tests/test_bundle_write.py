"""Writing bundles: whole or not at all, and never over anything that is not a bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseg.bundle import Bundle, describe_file, pack_golden, write
from edgeseg.errors import BundleError
from edgeseg.manifest import ClassInfo, FileInfo
from edgeseg.testing import TINY

NAMES = ["golden.npz", "os16-fp32.onnx", "os8-fp32.onnx", "weights-fp32.bin"]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "tiny.edgeseg"))


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(BundleError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def parts() -> tuple[Any, dict[str, bytes]]:
    return Bundle.open(TINY).manifest, {name: (TINY / name).read_bytes() for name in NAMES}


def siblings(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def test_writes_the_same_bytes(tmp_path: Path, parts: tuple[Any, dict[str, bytes]]) -> None:
    path = tmp_path / "new" / "copy.edgeseg"
    assert write(path, *parts) == Bundle.open(path)
    assert contents(path) == contents(TINY)
    assert siblings(path) == ["copy.edgeseg"]


def test_refuses_what_exists(tiny: Path, tmp_path: Path, parts: tuple[Any, dict[str, bytes]]) -> None:
    before = contents(tmp_path)
    assert "--overwrite" in refusal(lambda: write(tiny, *parts))
    assert contents(tmp_path) == before
    (tiny / "note.txt").write_text("gone after overwriting")
    write(tiny, *parts, overwrite=True)
    assert contents(tmp_path) == before
    assert siblings(tiny) == ["tiny.edgeseg"]


@pytest.mark.parametrize("manifest", [None, "{}", "[]", "not json", '{"name": "app", "manifest_version": 3}'])
def test_never_replaces_a_directory_that_is_no_bundle(
    tmp_path: Path, parts: tuple[Any, dict[str, bytes]], manifest: str | None
) -> None:
    path = tmp_path / "thesis"
    path.mkdir()
    (path / "chapter.txt").write_text("years of work")
    if manifest is not None:
        (path / "manifest.json").write_text(manifest)
    before = contents(tmp_path)
    assert "is not a bundle" in refusal(lambda: write(path, *parts, overwrite=True))
    assert "is not a bundle" in refusal(lambda: write(path / "chapter.txt", *parts, overwrite=True))
    assert contents(tmp_path) == before


def test_a_failure_half_way_keeps_the_old_bundle(tiny: Path, parts: tuple[Any, dict[str, bytes]]) -> None:
    manifest, files = parts
    name = "w" * 300 + ".bin"  # longer than any file system takes: the last file cannot be written
    listed = dataclasses.replace(manifest, files={**manifest.files, name: describe_file(b"x")})
    before = contents(tiny.parent)
    message = refusal(lambda: write(tiny, listed, {**files, name: b"x"}, overwrite=True))
    assert f"cannot write {tiny}" in message
    assert contents(tiny.parent) == before
    assert siblings(tiny) == ["tiny.edgeseg"]


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """The operating system refuses to let any file grow past `size` bytes: what a full disk does, for real."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_old_bundle(tiny: Path, parts: tuple[Any, dict[str, bytes]]) -> None:
    before = contents(tiny.parent)
    with no_file_beyond(20_000):
        assert f"cannot write {tiny}" in refusal(lambda: write(tiny, *parts, overwrite=True))
    assert contents(tiny.parent) == before
    assert siblings(tiny) == ["tiny.edgeseg"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda files: files.pop("golden.npz"), "golden.npz"),
        (lambda files: files.update({"golden.npz": b"other"}), "golden.npz"),
        (lambda files: files.update({"../evil": b"x"}), "../evil"),
        (lambda files: files.update({"extra": b"x"}), "extra"),
    ],
)
def test_files_and_manifest_must_agree(
    tiny: Path, parts: tuple[Any, dict[str, bytes]], change: Callable[[dict[str, bytes]], object], named: str
) -> None:
    manifest, files = parts
    change(files)
    before = contents(tiny.parent)
    message = refusal(lambda: write(tiny, manifest, files, overwrite=True))
    assert f"cannot write {tiny}: {named}" in message
    assert contents(tiny.parent) == before


def test_a_manifest_that_could_not_be_read_back_is_not_written(
    tmp_path: Path, parts: tuple[Any, dict[str, bytes]]
) -> None:
    manifest, files = parts
    classes = (ClassInfo("ground", (0, 0, 300)), *manifest.classes[1:])
    bad = dataclasses.replace(manifest, classes=classes)
    assert "color is [0, 0, 300]" in refusal(lambda: write(tmp_path / "x", bad, files))
    evil = dataclasses.replace(manifest, files={**manifest.files, "../evil": FileInfo("0" * 64, 1)})
    assert "'../evil'" in refusal(lambda: write(tmp_path / "x", evil, {**files, "../evil": b"x"}))
    assert list(tmp_path.iterdir()) == []


def test_writing_where_nothing_can_be(tmp_path: Path, parts: tuple[Any, dict[str, bytes]]) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "b.edgeseg", tmp_path / ("x" * 300), tmp_path / "nul\0"):
        assert "cannot write" in refusal(lambda path=path: write(path, *parts))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_link_to_a_bundle_stays_a_link(tiny: Path, tmp_path: Path, parts: tuple[Any, dict[str, bytes]]) -> None:
    (tiny / "note.txt").write_text("x")
    try:
        (tmp_path / "latest").symlink_to(tiny)
    except OSError as error:
        pytest.skip(f"no symbolic links here: {error}")
    write(tmp_path / "latest", *parts, overwrite=True)
    assert (tmp_path / "latest").is_symlink()
    assert contents(tiny) == contents(TINY)
    assert siblings(tiny) == ["latest", "tiny.edgeseg"]


def test_overwriting_the_directory_one_stands_in(
    tiny: Path, parts: tuple[Any, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny / "note.txt").write_text("x")
    monkeypatch.chdir(tiny)
    write(Path("."), *parts, overwrite=True)
    assert contents(tiny) == contents(TINY)


def test_packing_golden_frames_is_deterministic() -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(2)]
    answers = {(8, "float"): [(rng.random((2, 1, 1), np.float32), np.zeros((8, 8), np.uint8)) for _ in frames]}
    packed = pack_golden(frames, answers)
    assert packed == pack_golden([frame.copy() for frame in frames], answers)
    assert packed != pack_golden(frames[::-1], answers)


def test_golden_answers_are_named_by_stride_and_encoding(tmp_path: Path) -> None:
    bundle = Bundle.open(TINY)
    golden = {v: [bundle.golden(v, index) for index in range(3)] for v in bundle.manifest.variants}
    frames = [one.frame for one in golden[bundle.manifest.variants[0]]]
    answers = {(v.output_stride, "float"): [(one.logits, one.class_map) for one in golden[v]] for v in golden}
    (tmp_path / "same.npz").write_bytes(pack_golden(frames, answers))  # its bytes are the zipfile module's choice
    with np.load(tmp_path / "same.npz") as ours, np.load(TINY / "golden.npz") as theirs:
        assert ours.files == theirs.files
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs.files)
    other = [(logits + 1, class_map) for logits, class_map in answers[8, "float"]]
    packed = pack_golden(frames, {**answers, (8, "cpu"): answers[8, "float"], (8, "tensorrt"): other})
    (tmp_path / "golden.npz").write_bytes(packed)
    with np.load(tmp_path / "golden.npz") as arrays:
        assert {"frame2_os8_logits", "frame0_os8_cpu_logits", "frame1_os8_tensorrt_class_map"} <= set(arrays)
    files = {name: (TINY / name).read_bytes() for name in NAMES} | {"golden.npz": packed}
    listed = {name: describe_file(data) for name, data in files.items()}
    made = write(tmp_path / "b.edgeseg", dataclasses.replace(bundle.manifest, files=listed), files)
    variant = dataclasses.replace(made.variant(8, "fp32"), precision="int8", encoding="tensorrt_fp16")
    np.testing.assert_array_equal(made.golden(variant, 1).logits, other[1][0])
    assert "in int8" in refusal(lambda: made.golden(dataclasses.replace(variant, output_stride=16, encoding="cpu")))
