"""The cache on disk: listed, cleared and kept small without touching anything else, and never believed when damaged."""

from __future__ import annotations

import json
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import edgeseg
from edgeseg import caching
from edgeseg._files import locked
from edgeseg.backends.engines import EngineKey, EngineStore
from edgeseg.backends.ov_blobs import RECORD
from edgeseg.cli import main
from edgeseg.errors import InputError
from edgeseg.testing import TINY, street_scene

MODEL, OTHER = "0123456789abcdef" * 2, "f" * 32
FRAME = street_scene(0, (96, 128))[0]


def engine(cache: Path, gpu: str, used: float, size: int = 1000, model: str = MODEL) -> Path:
    """An engine in its place, last used so many seconds after 1970."""
    key = EngineKey({"file": "os16-fp32.onnx", "gpu": gpu, "precision": "fp16"}, (), {"bundle": "street.edgeseg"})
    path = EngineStore(cache / "tensorrt" / model).add(key, bytes(size))
    assert path is not None
    os.utime(path, (used, used))
    return path


def blob(cache: Path, used: float, size: int = 1000, model: str = MODEL) -> Path:
    """A folder as the OpenVINO backend leaves it; returns the blob."""
    folder = cache / "openvino" / model / "0a1b2c3d"
    folder.mkdir(parents=True)
    facts = {"device": "cpu", "precision": "int8", "file": "os8-int8-cpu.onnx", "bundle": "street.edgeseg"}
    for name, data in (("17.blob", bytes(size)), (RECORD, json.dumps({"facts": facts, "blobs": {}}).encode())):
        (folder / name).write_bytes(data)
        os.utime(folder / name, (used, used))
    (folder / ".lock").touch()
    return folder / "17.blob"


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != ".lock")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["cache", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_entries_are_engines_and_folders_of_blobs(tmp_path: Path) -> None:
    first, second = engine(tmp_path, "Orin", 1000), engine(tmp_path, "Xavier", 2000, 50)
    whole = blob(tmp_path, 3000, 700)
    (tmp_path / "tensorrt" / MODEL / "0123456789abcdef.half.onnx").write_bytes(bytes(10))
    (tmp_path / "tensorrt" / MODEL / "notes.txt").write_text("mine")
    EngineStore(tmp_path / "tensorrt" / "timing").add(EngineKey({"gpu": "Orin"}), b"measured")
    found = {entry.path: entry for entry in caching.entries(tmp_path)}
    assert {entry.model for entry in found.values()} == {MODEL, "timing"}
    assert (found[first].used, found[first].facts["gpu"], found[first].bytes) == (1000, "Orin", first.stat().st_size)
    assert found[second].bytes == second.stat().st_size
    assert found[whole.parent].facts["device"] == "cpu"
    assert found[whole.parent].bytes == 700 + (whole.parent / RECORD).stat().st_size
    assert found[first.parent].files == (first.parent / "0123456789abcdef.half.onnx",)
    assert len(found) == 5


def test_clear_leaves_what_is_not_edgesegs(tmp_path: Path) -> None:
    engine(tmp_path, "Orin", 1000)
    blob(tmp_path, 3000)
    outside = tmp_path.parent / "outside"
    (outside / MODEL).mkdir(parents=True)
    (outside / MODEL / "theirs.engine").write_text("theirs")
    (tmp_path / "linked").symlink_to(outside)
    (tmp_path / "tensorrt" / MODEL / "sub").mkdir()
    theirs = ["notes.txt", "openvino/ab/17.blob", f"tensorrt/{MODEL}/notes.txt", f"tensorrt/{MODEL}/sub/a.engine"]
    for name in theirs:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("theirs")
    before = caching.entries(tmp_path)
    assert caching.clear(tmp_path, "magic").removed == ()
    done = caching.clear(tmp_path)
    assert (len(done.removed), done.kept, done.bytes) == (2, (), sum(entry.bytes for entry in before))
    assert [name for name in tree(tmp_path) if (tmp_path / name).is_file()] == theirs
    assert (outside / MODEL / "theirs.engine").exists()


def test_clear_takes_empty_folders_along(tmp_path: Path) -> None:
    for model in (MODEL, OTHER):
        engine(tmp_path, "Orin", 1000, model=model)
    blob(tmp_path, 3000)
    assert len(caching.clear(tmp_path, "openvino").removed) == 1
    assert not (tmp_path / "openvino").exists()
    assert len(caching.clear(tmp_path, older_than_s=60).removed) == 2
    assert tree(tmp_path) == []
    assert caching.entries(tmp_path) == ()


@pytest.mark.parametrize(
    "inside", ["notes.txt", "openvino/notes.txt", "edgeseg/openvino/0/1.blob", MODEL + "/1.engine"]
)
def test_a_folder_of_other_things_is_refused(tmp_path: Path, inside: str) -> None:
    (tmp_path / inside).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / inside).write_text("theirs")
    for action in (caching.entries, caching.clear):
        with pytest.raises(InputError, match=f"is no cache of edgeseg: it holds {inside.partition('/')[0]}"):
            action(tmp_path)
    caching.prune(tmp_path, 0)
    assert (tmp_path / inside).exists()
    with pytest.raises(InputError, match="is a file"):
        caching.entries(tmp_path / inside)


def test_prune_removes_what_was_not_used_for_longest(tmp_path: Path) -> None:
    oldest, old, new = (engine(tmp_path, gpu, used) for gpu, used in (("A", 1000), ("B", 2000), ("C", 4000)))
    whole = blob(tmp_path, 3000)
    total = sum(entry.bytes for entry in caching.entries(tmp_path))
    assert caching.prune(tmp_path, total).removed == ()
    assert [entry.path for entry in caching.prune(tmp_path, total - 1).removed] == [oldest]
    with locked(old.parent / ".lock"):
        done = caching.prune(tmp_path, 2 * new.stat().st_size)
    assert [entry.path for entry in done.kept] == [old]
    assert [entry.path for entry in done.removed] == [whole.parent]
    os.utime(old)
    assert [entry.path for entry in caching.prune(tmp_path, 0, keep=new).removed] == [old]
    assert [entry.path for entry in caching.prune(tmp_path, 0, keep=new.parent).removed] == []
    assert [entry.path for entry in caching.prune(tmp_path, 0).removed] == [new]
    assert tree(tmp_path) == []
    assert caching.prune(tmp_path / "none", 0).removed == ()


@pytest.mark.parametrize(
    ("text", "limit"),
    [("", 4 << 30), ("1000", 1000), ("0", 0), ("1.5k", 1536), ("500M", 500 << 20), ("2 GiB", 2 << 30)],
)
def test_the_limit_is_the_environments(monkeypatch: pytest.MonkeyPatch, text: str, limit: int) -> None:
    monkeypatch.setenv(caching.LIMIT_VARIABLE, text)
    assert caching.limit_bytes() == limit


@pytest.mark.parametrize("text", ["much", "-1", "1e9", "4T", "nan", "1_000", "9" * 40])
def test_a_limit_that_is_no_size_is_told(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(caching.LIMIT_VARIABLE, text)
    with pytest.warns(RuntimeWarning, match=f"EDGESEG_CACHE_LIMIT is '{text}': give bytes"):
        assert caching.limit_bytes() == 4 << 30


def test_list_and_clear_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = engine(tmp_path, "Orin, sm_87", 86400)
    blob(tmp_path, 2 * 86400)
    code, out, err = run(capsys, "list", "--cache", tmp_path)
    assert (code, err) == (0, "")
    head, first, second, total = out.splitlines()
    assert head.split() == ["backend", "model", "for", "size", "last", "used"]
    assert "openvino  os8-int8-cpu.onnx of street.edgeseg (01234567)  cpu, int8" in first
    assert "tensorrt  os16-fp32.onnx of street.edgeseg (01234567)     Orin, sm_87, fp16" in second
    assert "1970-01-0" in second
    assert total.startswith(f"{tmp_path}: 2 compiled networks, 0.0 MB (limit ")
    report = json.loads(run(capsys, "list", "--json", "--cache", tmp_path)[1])
    assert [entry["path"] for entry in report["entries"]] == [str(path.parents[2] / "openvino/" / MODEL / "0a1b2c3d"),
                                                             str(path)]  # fmt: skip
    assert report["bytes"] == sum(entry["bytes"] for entry in report["entries"])
    with locked(path.parent / ".lock"):
        code, out, err = run(capsys, "clear", "--backend", "tensorrt", "--cache", tmp_path)
    assert (code, err.count("\n")) == (1, 1)
    assert f"kept {path}" in err
    assert "removed 1 compiled network, 0.0 MB" in run(capsys, "clear", "--older-than", "30", "--backend", "openvino",
                                                      "--cache", tmp_path)[1]  # fmt: skip
    assert path.exists()
    assert "removed 1 compiled network, 0.0 MB" in run(capsys, "clear", "--cache", tmp_path)[1]
    assert run(capsys, "list", "--cache", tmp_path)[1].count("\n") == 1
    assert run(capsys)[1].startswith("Usage: edgeseg cache")


def test_without_a_folder_it_is_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert run(capsys, "list")[1].startswith(f"{tmp_path / 'edgeseg'}: 0 compiled networks")
    path = engine(tmp_path / "edgeseg", "Orin", 1000)
    assert run(capsys, "clear")[0] == 0
    assert not path.exists()


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photo.jpg").write_text("no image")
    for arguments, told in (
        (["list", "--cache", tmp_path / "none"], "no cache at"),
        (["list", "--cache", ""], "no cache of edgeseg"),
        (["list", "--cache", tmp_path], "no cache of edgeseg: it holds photo.jpg"),
        (["clear", "--cache", tmp_path], "no cache of edgeseg: it holds photo.jpg"),
        (["clear", "--cache", tmp_path / "photo.jpg"], "is a file"),
        (["clear", "--backend", "magic"], "unknown backend 'magic': choose one of openvino"),
        (["clear", "--older-than", "-1"], "-1"),
        (["clear", "--older-than", "nan"], "not a finite number"),
        (["clear", "--older-than", "week"], "'week'"),
        (["clear", "everything"], "everything"),
        (["empty"], "No such command 'empty'"),
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1), arguments
        assert err.startswith("edgeseg: ")
        assert told in err
    assert (tmp_path / "photo.jpg").exists()


def openvino_mask(cache: Path) -> tuple[bytes, list[str]]:
    """The tiny network's mask by OpenVINO, its golden frame unchecked, and the warnings."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with edgeseg.load(TINY, backend="openvino", cache=cache, self_test=False) as segmenter:
            mask = segmenter(FRAME).class_map.tobytes()
    return mask, [str(warning.message) for warning in told]


def test_a_damaged_blob_is_compiled_again_and_never_believed(tmp_path: Path) -> None:
    """Without the golden frame: OpenVINO itself loads a blob with a page of zeros and computes something else."""
    pytest.importorskip("openvino")
    right, told = openvino_mask(tmp_path)
    (path,) = tmp_path.rglob("*.blob")
    record, whole = path.parent / RECORD, path.read_bytes()
    stamp = path.stat().st_mtime_ns
    assert told == []
    assert openvino_mask(tmp_path) == (right, [])
    assert path.stat().st_mtime_ns == stamp, "a whole blob is used"

    def zeroed(data: bytes) -> bytes:
        at = len(data) // 2
        return data[:at] + bytes(4096) + data[at + 4096 :]

    for damage, reason in (
        (lambda: path.write_bytes(zeroed(whole)), "its digest is another"),
        (lambda: path.write_bytes(whole[:-1]), "its digest is another"),
        (lambda: record.write_bytes(zeroed(record.read_bytes())), "blobs.json does not know it"),
        (lambda: record.write_text('{"facts": {}, "blobs": {"x": 1}}'), "blobs.json does not know it"),
        (lambda: record.write_bytes(b"[" * 100_000), "blobs.json does not know it"),
        (record.unlink, "blobs.json does not know it"),
    ):
        damage()
        mask, told = openvino_mask(tmp_path)
        assert mask == right
        (line,) = told
        assert line == f"the compiled network in {path} is damaged ({reason}): it is compiled again"
        assert path.stat().st_mtime_ns != stamp
        assert openvino_mask(tmp_path) == (right, []), "and kept, and known"


def test_openvino_compiles_once_for_all_who_wait(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    start = threading.Barrier(4)

    def work(_: int) -> bytes:
        start.wait()
        with edgeseg.load(TINY, backend="openvino", cache=tmp_path) as segmenter:
            return segmenter(FRAME).class_map.tobytes()

    with ThreadPoolExecutor(4) as pool, warnings.catch_warnings():
        warnings.simplefilter("error")
        masks = set(pool.map(work, range(4)))
    assert len(masks) == 1
    assert len(list(tmp_path.rglob("*.blob"))) == 1
    (entry,) = caching.entries(tmp_path)
    assert (entry.facts["file"], entry.facts["bundle"], entry.facts["device"]) == (
        "os16-fp32.onnx", "tiny.edgeseg", "cpu")  # fmt: skip


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "openvino").write_text("in the way")
    mask, told = openvino_mask(tmp_path)
    assert np.frombuffer(mask, np.uint8).size == 96 * 128
    (line,) = told
    assert line.startswith("no cache for compiled networks: cannot write to")


def test_loading_keeps_the_cache_within_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    path = engine(tmp_path, "Orin", 1000)
    openvino_mask(tmp_path)
    assert path.exists()
    monkeypatch.setenv(caching.LIMIT_VARIABLE, "1K")
    openvino_mask(tmp_path)
    assert path.exists(), "nothing was added"
    edgeseg.load(TINY, backend="openvino", cache=tmp_path, output_stride=8).close()
    assert not path.exists()
    (entry,) = caching.entries(tmp_path)
    assert entry.facts["file"] == "os8-fp32.onnx", "what was just added stays, whatever its size"
