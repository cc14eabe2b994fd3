"""Compiled engines on disk: found again only whole and for exactly what they were built for."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from edgeseg._files import locked, write_atomic
from edgeseg._records import RecordError, from_json
from edgeseg.errors import BackendError

LOCK = ".lock"
"""The file in each folder of compiled networks that is locked while one is made or removed."""
SUFFIX = ".engine"

_MAGIC = b"edgeseg engine 1"
_HEAD = struct.Struct("<16sIQ")  # magic, bytes of JSON, bytes of the plan; then both, and the SHA-256 of all of it
_DIGEST_BYTES = 32
_MAX_JSON_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class EngineKey:
    """What an engine is for. `facts` must all be equal; `targets` ("sm_86") are what it was compiled for.

    An entry serves where its targets include all of the wanted ones. `tuning` is how it was built where that changes no
    answer: only what the wanted key says of it is compared. `notes` tell people more and are not compared. Characters
    that cannot be printed become "?".
    """

    facts: Mapping[str, str]
    targets: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict, compare=False)
    tuning: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in ("facts", "tuning", "notes"):
            object.__setattr__(self, part, {_plain(key): _plain(value) for key, value in getattr(self, part).items()})
        object.__setattr__(self, "targets", tuple(sorted({_plain(target) for target in self.targets})))

    @property
    def file_name(self) -> str:
        """Where an entry with exactly this key lies."""
        return hashlib.sha256(_json([self.facts, self.targets, self.tuning])).hexdigest()[:32] + SUFFIX

    def serves(self, wanted: EngineKey) -> bool:
        """Whether an engine built for this key can be used for `wanted`."""
        tuned = wanted.tuning.items() <= self.tuning.items()
        return self.facts == wanted.facts and tuned and set(wanted.targets) <= set(self.targets)

    def differences(self, wanted: EngineKey) -> list[str]:
        """What keeps an engine built for this key from serving `wanted`, one phrase each."""
        missing = [target for target in wanted.targets if target not in self.targets]
        found = [f"{', '.join(missing)} wanted, built for {', '.join(self.targets) or 'none'}"] if missing else []
        wants, has = {**wanted.facts, **wanted.tuning}, {**self.facts, **self.tuning}
        for name in sorted({*wants, *self.facts}):
            want, have = wants.get(name, "none"), has.get(name, "none")
            if want != have:
                found.append(f"{name} {want} wanted, built with {have}")
        return found


@dataclass(frozen=True, slots=True)
class _Metadata:
    facts: dict[str, str]
    targets: tuple[str, ...]
    tuning: dict[str, str]
    notes: dict[str, str]


class Unusable(ValueError):
    """A file of the cache is not what it should be; the message says why in a few words."""


class EngineStore:
    """The engines in one folder, which is made on the first write and may be shared by several machines.

    The digest guards against accidents: who can write the folder is trusted, as with anything that is run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, key: EngineKey) -> bytes | None:
        """The plan of an entry that serves `key`, exactly as it was added; None where there is none. As `locate`."""
        found = self.locate(key)
        return None if found is None else found[1]

    def locate(self, key: EngineKey) -> tuple[Path, bytes] | None:
        """Path and plan of an entry that serves `key`; None where there is none.

        An entry that is damaged or foreign is deleted with a RuntimeWarning. Never raises because of what lies there.
        """
        for path in self._paths(key):
            try:
                with path.open("rb") as file:
                    if (plan := _read(file, path.name, key)) is None:
                        continue
            except FileNotFoundError:  # another process has just removed it
                continue
            except (OSError, Unusable) as error:
                self._drop(path, error)
                continue
            with suppress(OSError):
                os.utime(path)
            return path, plan
        return None

    def why_not(self, key: EngineKey) -> str:
        """What keeps the entry nearest to `key` from serving, for a line of the log; "" where there is no entry."""
        near: list[list[str]] = []
        for path in self._paths(key):
            with suppress(OSError, Unusable):
                near.append(read_key(path).differences(key))
        return "; ".join(min(near, key=lambda reasons: len(list(reasons)), default=[]))

    def add(self, key: EngineKey, plan: bytes) -> Path | None:
        """Write an entry, or replace it, at once or not at all; None with a RuntimeWarning where it cannot be written.

        Raises BackendError where there is no plan to keep.
        """
        if not plan:
            raise BackendError("the compiled engine is empty: nothing to keep")
        metadata = _json({"facts": key.facts, "targets": key.targets, "tuning": key.tuning, "notes": key.notes})
        head = _HEAD.pack(_MAGIC, len(metadata), len(plan)) + metadata
        digest = hashlib.sha256(head)
        digest.update(plan)
        path = self._folder / key.file_name
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, (head, plan, digest.digest()), BackendError)
        except (BackendError, OSError) as error:
            reason = f"cannot make {self._folder}: {error.strerror}" if isinstance(error, OSError) else error
            told = f"the compiled engine is not kept and will be built again: {reason}"
            warnings.warn(told, RuntimeWarning, stacklevel=2)
            return None
        return path

    def building(self, tell: Callable[[str], object] | None = None) -> AbstractContextManager[object]:
        """Held around a build, so that no two processes build the same: look with `find` again inside.

        Waits while another one builds, which `tell` is told once. Where there can be no lock, it is not held.
        """
        return locked(self._folder / LOCK, tell and (lambda: tell("another process builds the same engine: waiting")))

    def _paths(self, key: EngineKey) -> Iterator[Path]:
        """The entries here, that of exactly this key first."""
        try:
            names = sorted(found.name for found in os.scandir(self._folder) if found.name.endswith(SUFFIX))
        except OSError:
            return
        for name in sorted(names, key=lambda name: name != key.file_name):
            path = self._folder / name
            if os.path.isfile(path):  # opening a pipe would wait
                yield path

    def _drop(self, path: Path, error: OSError | Unusable) -> None:
        reason = error.strerror if isinstance(error, OSError) else error
        if isinstance(error, Unusable):
            with suppress(OSError):
                path.unlink()
        told = f"the engine in {path} is unusable ({reason}): it is built again"
        warnings.warn(told, RuntimeWarning, stacklevel=3)


def read_key(path: Path) -> EngineKey:
    """What an entry is for, its plan unread; raises OSError or Unusable."""
    with path.open("rb") as file:
        return _read_head(file, path.name)[0]


def _read(file: BinaryIO, name: str, wanted: EngineKey) -> bytes | None:
    """The plan, all of the file verified; None, its plan unread, where the entry does not serve `wanted`."""
    key, head, plan_bytes = _read_head(file, name)
    if not key.serves(wanted):
        return None
    plan, digest = file.read(plan_bytes), file.read(_DIGEST_BYTES + 1)
    found = hashlib.sha256(head)
    found.update(plan)
    if found.digest() != digest:
        raise Unusable("its digest is another")
    return plan


def _read_head(file: BinaryIO, name: str) -> tuple[EngineKey, bytes, int]:
    """The key, the bytes before the plan, and the plan's size, which is the file's own."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise Unusable("cut short")
    magic, json_bytes, plan_bytes = _HEAD.unpack(head)
    if magic != _MAGIC:
        raise Unusable("another kind of file, or of another version")
    if json_bytes > _MAX_JSON_BYTES or not plan_bytes:
        raise Unusable("its sizes are impossible")
    if size != _HEAD.size + json_bytes + plan_bytes + _DIGEST_BYTES:
        raise Unusable("its size is another")
    text = file.read(json_bytes)
    try:
        found = from_json(_Metadata, json.loads(text), "engine")
    except RecordError as error:
        raise Unusable(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise Unusable("its description is unreadable") from error
    key = EngineKey(found.facts, found.targets, found.notes, found.tuning)
    if key.file_name != name:
        raise Unusable("its description is another engine's")
    return key, head + text, plan_bytes


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _plain(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
