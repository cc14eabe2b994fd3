"""Engines come back whole and for what they were built for, or not at all, whatever happened to their files."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from edgeseg._files import locked
from edgeseg.backends.engines import EngineKey, EngineStore, read_key
from edgeseg.errors import BackendError

FACTS = {"model": "0" * 64, "tensorrt": "10.3.0", "driver": "12.4", "precision": "int8", "gpu": "Orin, 8 SMs"}
KEY = EngineKey(FACTS, ("sm_86", "sm_89"), {"bundle": "street.edgeseg"})
HEAD = struct.Struct("<16sIQ")


def container(text: bytes, plan: bytes, magic: bytes = b"edgeseg engine 1") -> bytes:
    """The format written down again: magic, sizes, JSON, plan, SHA-256 of all before."""
    content = HEAD.pack(magic, len(text), len(plan)) + text + plan
    return content + hashlib.sha256(content).digest()


def plan_of(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def test_a_plan_comes_back_for_its_key_and_fewer_targets(tmp_path: Path) -> None:
    store, plan = EngineStore(tmp_path / "new" / "folder"), plan_of(5000)
    assert store.find(KEY) is None
    assert store.why_not(KEY) == ""
    path = store.add(KEY, plan)
    assert path is not None
    assert store.find(KEY) == plan
    assert store.find(EngineKey(FACTS, ("sm_89",))) == plan
    assert store.find(EngineKey(FACTS, ("sm_89",), tuning={"workspace": "1"})) is None
    store.add(EngineKey(FACTS, ("sm_90",), tuning={"workspace": "1"}), plan)
    assert store.find(EngineKey(FACTS, ("sm_90",))) == plan  # how it was tuned changes no answer
    assert read_key(path) == KEY
    assert read_key(path).notes == KEY.notes
    os.utime(path, (0, 0))
    store.find(KEY)
    assert path.stat().st_mtime > 1e9, "finding is using"
    assert store.add(KEY, plan[::-1]) == path
    assert store.find(KEY) == plan[::-1]
    with pytest.raises(BackendError, match="empty"):
        store.add(KEY, b"")


def test_the_file_is_the_documented_container(tmp_path: Path) -> None:
    path = EngineStore(tmp_path).add(KEY, b"plan")
    assert path is not None
    data = path.read_bytes()
    text = data[HEAD.size : HEAD.size + HEAD.unpack_from(data)[1]]
    assert data == container(text, b"plan")
    assert json.loads(text) == {"facts": FACTS, "targets": ["sm_86", "sm_89"], "notes": KEY.notes, "tuning": {}}


def test_entries_for_others_stay_and_say_why_not(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    store.add(KEY, b"a")
    store.add(EngineKey({**FACTS, "gpu": "Xavier", "driver": "11.4", "precision": "fp32"}, ("sm_72",)), b"b")
    wanted = EngineKey({**FACTS, "driver": "12.6"}, ("sm_80",))
    assert store.find(wanted) is None
    assert store.why_not(wanted) == "sm_80 wanted, built for sm_86, sm_89; driver 12.6 wanted, built with 12.4"
    assert store.why_not(EngineKey({**FACTS, "dla": "0"})) == "dla 0 wanted, built with none"
    assert store.why_not(KEY) == ""
    assert len(list(tmp_path.iterdir())) == 2


def test_what_cannot_be_printed_does_not_keep_an_engine_from_being_found(tmp_path: Path) -> None:
    key = EngineKey({"gpu": "Orin\0\n", "file": "\udcff.onnx"}, ("b", "a", "b"), {"bundle": "\x1b[1m\u2028"})
    EngineStore(tmp_path).add(key, b"plan")
    assert EngineStore(tmp_path).find(key) == b"plan"
    assert (key.facts, key.targets) == ({"gpu": "Orin??", "file": "?.onnx"}, ("a", "b"))
    assert key.notes == {"bundle": "?[1m?"}


def corrupted(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """One accident that may befall a file, as disks, copies and people make them."""
    size = len(data)
    at, length = chance.randrange(size), chance.choice((1, 2, 7, 64, 512, 4096))
    text_bytes = HEAD.unpack_from(data)[1]

    def bits(many: int) -> bytes:
        changed = bytearray(data)
        for _ in range(many):
            changed[chance.randrange(size)] ^= 1 << chance.randrange(8)
        return bytes(changed)

    def swapped() -> bytes:
        first, second = sorted((at, chance.randrange(size)))
        length = min(512, second - first)
        middle = data[first + length : second]
        return (
            data[:first]
            + data[second : second + length]
            + middle
            + data[first : first + length]
            + (data[second + length :])
        )

    def header(magic: bytes, text_bytes: int, plan_bytes: int) -> bytes:
        return HEAD.pack(magic, text_bytes, plan_bytes) + data[HEAD.size :]

    def retold() -> bytes:
        """Another engine's description, its size as it should be; only the digest is left."""
        text = json.loads(data[HEAD.size : HEAD.size + text_bytes])
        name = chance.choice(sorted(text["facts"]))
        text["facts"][name] += chance.choice("0x ")
        new = json.dumps(text, sort_keys=True, separators=(",", ":")).encode()
        plan = data[HEAD.size + text_bytes : -32]
        return HEAD.pack(data[:16], len(new), len(plan)) + new + plan + data[-32:]

    def cut_in_step() -> bytes:
        """Fewer bytes of the plan, and a header that says so."""
        plan = data[HEAD.size + text_bytes : -32]
        less = plan[: chance.randrange(len(plan))]
        return (
            HEAD.pack(data[:16], text_bytes, len(less)) + data[HEAD.size : HEAD.size + text_bytes] + less + data[-32:]
        )

    accidents: list[Callable[[], bytes]] = [
        lambda: bits(1),
        lambda: bits(chance.randrange(2, 9)),
        lambda: data[:at],
        lambda: data[at:],
        lambda: data[:at] + data[at + length :],
        lambda: data + chance.randbytes(length),
        lambda: data[:at] + chance.randbytes(length) + data[at:],
        lambda: (data[:at] + bytes(length) + data[at + length :])[:size],
        lambda: (data[: at // 4096 * 4096] + bytes(4096) + data[at // 4096 * 4096 + 4096 :])[:size],
        lambda: data[:at] + other[at:],
        lambda: other[:at] + data[at:],
        lambda: other,
        lambda: data + other,
        swapped,
        lambda: header(b"edgeseg engine 2", text_bytes, size - HEAD.size - text_bytes - 32),
        lambda: header(data[:16], chance.getrandbits(32), chance.getrandbits(64)),
        lambda: header(data[:16], text_bytes + length, size - HEAD.size - text_bytes - 32 - length & (1 << 64) - 1),
        lambda: data.replace(b"\n", b"\r\n"),
        lambda: data.decode("utf-8", "ignore").encode(),
        lambda: chance.randbytes(chance.randrange(2 * size)),
        retold,
        cut_in_step,
    ]
    return chance.choice(accidents)()


@pytest.mark.parametrize(("plan_bytes", "times"), [(1200, 10_000), (2_000_000, 200)])
def test_a_damaged_entry_is_refused_and_removed(tmp_path: Path, plan_bytes: int, times: int) -> None:
    store, plan, chance = EngineStore(tmp_path), plan_of(plan_bytes), random.Random(plan_bytes)
    wanted = EngineKey(FACTS, ("sm_86",))
    foreign = EngineStore(tmp_path / "other").add(EngineKey({**FACTS, "driver": "12.6"}, KEY.targets), plan_of(900, 1))
    path = store.add(KEY, plan)
    assert path is not None
    assert foreign is not None
    data, other, refused = path.read_bytes(), foreign.read_bytes(), 0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for time in range(times):
            bad = corrupted(data, other, chance)
            path.write_bytes(bad)
            found = store.find(wanted)
            refused += bad != data
            assert found == (plan if bad == data else None), time
            assert len(told) == refused, time
            assert path.exists() == (bad == data), time
    assert refused > 0.95 * times
    texts = {str(warning.message) for warning in told}
    assert all(str(path) in text and "built again" in text and "\n" not in text for text in texts)


DEEP = b"[" * 60_000
TEXTS = [b"", b"{}", b"[]", b"null", b"NaN", b"\xff\xfe", DEEP, b"1" * 5000, b'{"facts":{},"targets":[]}',
         b'{"facts":{"a":1},"targets":[],"notes":{},"tuning":{}}',
         b'{"facts":{},"targets":"sm_86","notes":{},"tuning":{}}',
         b'{"facts":{"a":"\\u0000"},"targets":[],"notes":{},"tuning":{}}',
         b'{"facts":{},"targets":[[]],"notes":{},"tuning":{}}',
         b'{"facts":{},"targets":[],"notes":{},"tuning":{}}']  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20].decode("latin-1"))
def test_a_description_of_another_shape_is_refused_though_its_digest_is_right(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / KEY.file_name
    path.write_bytes(container(text, b"plan"))
    with pytest.warns(RuntimeWarning, match="unusable"):
        assert EngineStore(tmp_path).find(KEY) is None
    assert not path.exists()


def test_a_damaged_entry_does_not_hide_a_sound_one(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    store.add(KEY, b"the larger one")
    wanted = EngineKey(FACTS, ("sm_86",))
    path = store.add(wanted, b"exactly")
    assert path is not None
    path.write_bytes(b"garbage")
    (tmp_path / "folder.engine").mkdir()
    os.mkfifo(tmp_path / "pipe.engine")
    with pytest.warns(RuntimeWarning, match="cut short"):
        assert store.find(wanted) == b"the larger one"


def test_a_cache_that_cannot_be_written_is_told_and_does_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = EngineStore(tmp_path / "file" / "folder")
    with store.building():
        assert store.find(KEY) is None
        with pytest.warns(RuntimeWarning, match="not kept and will be built again: cannot") as told:
            assert store.add(KEY, b"plan") is None
    assert len(told) == 1


BUILDER = """
import sys, time
from pathlib import Path
from edgeseg.backends.engines import EngineKey, EngineStore
store, key = EngineStore(Path(sys.argv[1])), EngineKey({"model": "m"})
print("ready", flush=True)
sys.stdin.readline()
with store.building(lambda text: print(text)):
    if (plan := store.find(key)) is None:
        time.sleep(0.3)
        store.add(key, b"plan")
        print("built")
    else:
        print("found", plan)
"""


def test_two_processes_build_an_engine_once(tmp_path: Path) -> None:
    call = [sys.executable, "-c", BUILDER, str(tmp_path)]
    pair = [subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in pair:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    with ThreadPoolExecutor(2) as pool:
        said = sorted(text for text, _ in pool.map(lambda process: process.communicate("go\n"), pair))
    assert said == ["another process builds the same engine: waiting\nfound b'plan'\n", "built\n"]


def test_finding_while_others_replace_and_remove(tmp_path: Path) -> None:
    store, plans = EngineStore(tmp_path), [plan_of(size, size) for size in (10_000, 20_000)]
    done = threading.Event()

    def disturb() -> None:
        chance = random.Random(0)
        while not done.is_set():
            path = store.add(KEY, chance.choice(plans))
            if path is not None and chance.random() < 0.5:
                path.unlink()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(disturb)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found, until = list[bytes | None](), time.monotonic() + 30
            while (len(found) < 2000 or not any(found)) and time.monotonic() < until:
                found.append(store.find(KEY))
        done.set()
        other.result()
    assert {None, *plans} >= set(found)
    assert any(found)


def test_a_lock_is_held_by_one_though_it_is_removed_each_time(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "deep" / ".lock", 0, 0

    def work(_: int) -> None:
        nonlocal inside, most
        with locked(path) as held:
            inside += held
            most = max(most, inside)
            assert held
            inside -= held
            path.unlink()  # from here on it is free
            with suppress(OSError):
                path.parent.rmdir()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(40)))
    assert (inside, most) == (0, 1)
    with locked(path) as held, locked(path, wait=False) as again:
        assert (held, again) == (True, False)
    with locked(path, wait=False) as again:
        assert again
