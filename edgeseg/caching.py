"""What backends have compiled and kept: where it lies, what it is, and how it is kept from growing."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgeseg._files import locked
from edgeseg.backends import engines, ov_blobs
from edgeseg.errors import InputError

LIMIT_BYTES = 4 << 30
LIMIT_VARIABLE = "EDGESEG_CACHE_LIMIT"

_BACKEND = re.compile(r"[a-z][a-z0-9_-]*")
_MODEL = re.compile(r"[0-9a-f]{32}|timing")  # a network's digest, or what builds of any network measured
_PART = re.compile(r"[0-9a-f]{8}")
_OURS = re.compile(r".+\.(engine|blob|cl_cache|half\.onnx)|blobs\.json|\.[0-9a-f]{16}\.tmp")
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) *([KMG]?)(?:i?B)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One compiled network: an engine's file, or a folder with a runtime's own files, `files` (with their `bytes`).

    `model` is the first 32 digits of the network's digest, or "timing" for what builds measured. `used` is when it was
    last read or written, in seconds since 1970. `facts` say what it is for as far as that was kept.
    """

    backend: str
    model: str
    path: Path
    bytes: int
    used: float
    facts: Mapping[str, str] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def lock(self) -> Path:
        """The lock that is held while it is made or read."""
        return (self.path.parent if self.path.name.endswith(engines.SUFFIX) else self.path) / engines.LOCK


@dataclass(frozen=True, slots=True)
class Cleared:
    """The entries that were removed, and those that stay because a process is at work on them or forbids it."""

    removed: tuple[CacheEntry, ...]
    kept: tuple[CacheEntry, ...]

    @property
    def bytes(self) -> int:
        """What was set free."""
        return sum(entry.bytes for entry in self.removed)


def entries(folder: Path) -> tuple[CacheEntry, ...]:
    """Everything in a cache, by backend and model; whatever has another name than edgeseg gives is not seen.

    Nothing is verified here, and nothing raised because of what lies there. Raises InputError where `folder` is a file
    or holds other things and nothing of edgeseg's.
    """
    found = tuple(
        entry
        for backend in _folders(folder, _BACKEND)
        for model in _folders(backend, _MODEL)
        for entry in _in_model_folder(backend.name, model)
    )
    if not found and folder.exists():
        if not folder.is_dir():
            raise InputError(f"{folder} is a file: a cache is a folder")
        if strange := sorted(path.name for path in folder.iterdir() if not _is_backend_folder(path)):
            raise InputError(f"{folder} is no cache of edgeseg: it holds {strange[0]}, and no compiled network")
    return found


def clear(folder: Path, backend: str | None = None, older_than_s: float = 0.0) -> Cleared:
    """Remove entries: all, or one backend's, or those not used for so many seconds; errors as of `entries`."""
    before = time.time() - older_than_s
    chosen = [entry for entry in entries(folder) if backend in (None, entry.backend)]
    if older_than_s:
        chosen = [entry for entry in chosen if entry.used <= before]
    removed = [entry for entry in chosen if _remove(folder, entry)]
    return Cleared(tuple(removed), tuple(entry for entry in chosen if entry not in removed))


def prune(folder: Path, max_bytes: int | None = None, keep: Path | None = None) -> Cleared:
    """Remove what was not used for longest until the rest fits `max_bytes` (None: EDGESEG_CACHE_LIMIT, or 4 GiB).

    `keep` is what was just added, an engine or a folder, of which the newest entry stays. What another process is at
    work on stays too. Does nothing where there is nothing of edgeseg's, and never raises.
    """
    limit = limit_bytes() if max_bytes is None else max_bytes
    try:
        there = sorted(entries(folder), key=lambda entry: (entry.used, entry.path))
    except (InputError, OSError):
        return Cleared((), ())
    added = [entry for entry in there if keep is not None and keep in (entry.path, *entry.path.parents)]
    excess, removed, kept = sum(entry.bytes for entry in there) - limit, list[CacheEntry](), list[CacheEntry]()
    for entry in there:
        if excess <= 0:
            break
        if entry in added[-1:]:
            continue
        if _remove(folder, entry):
            removed.append(entry)
            excess -= entry.bytes
        else:
            kept.append(entry)
    return Cleared(tuple(removed), tuple(kept))


def limit_bytes() -> int:
    """What the cache may hold, from EDGESEG_CACHE_LIMIT: bytes, or a number with K, M or G (1024 each)."""
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not text:
        return LIMIT_BYTES
    if (found := _SIZE.fullmatch(text)) is None:
        told = f"{LIMIT_VARIABLE} is {text!r}: give bytes, or a number with K, M or G; the limit is 4 GiB"
        warnings.warn(told, RuntimeWarning, stacklevel=2)
        return LIMIT_BYTES
    return int(float(found[1]) * 1024 ** " KMG".index(found[2].upper() or " "))


def _in_model_folder(backend: str, folder: Path) -> Iterator[CacheEntry]:
    """Engines one by one, a runtime's own files by the folder they share."""
    files = _files(folder)
    for path in [path for path in files if path.name.endswith(engines.SUFFIX)]:
        key = engines.EngineKey({})
        with suppress(OSError, engines.Unusable):
            key = engines.read_key(path)
        size, used = files.pop(path)
        facts = {**key.facts, **key.notes}
        yield CacheEntry(backend, folder.name, path, size, used, facts, key.targets, (path,))
    for part, held in ((folder, files), *((part, _files(part)) for part in _folders(folder, _PART))):
        if not held:
            continue
        facts = {}
        with suppress(OSError, ValueError):
            facts = ov_blobs.read_record(part).facts
        size, used = sum(size for size, _ in held.values()), max(used for _, used in held.values())
        yield CacheEntry(backend, folder.name, part, size, used, facts, (), tuple(held))


def _remove(folder: Path, entry: CacheEntry) -> bool:
    """Remove an entry and the folders that it leaves empty; False where it is locked or may not be removed."""
    place = entry.lock.parent
    with locked(entry.lock, wait=False) as held:
        gone = held and all(map(_removed, entry.files))
        if gone and not _files(place):
            _removed(entry.lock)
    with suppress(OSError):  # not empty
        while place != folder:
            place.rmdir()
            place = place.parent
    return gone


def _removed(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _files(folder: Path) -> dict[Path, tuple[int, float]]:
    """Size and last use of the files in a folder that have names of ours; links are not followed."""
    found = {}
    with suppress(OSError):
        for item in os.scandir(folder):
            with suppress(OSError):
                if _OURS.fullmatch(item.name) and item.is_file(follow_symlinks=False):
                    status = item.stat(follow_symlinks=False)
                    found[folder / item.name] = status.st_size, status.st_mtime
    return found


def _folders(folder: Path, name: re.Pattern[str]) -> list[Path]:
    """The folders in a folder whose names are like that, in order; links are not followed."""
    found = []
    with suppress(OSError):
        for item in os.scandir(folder):
            with suppress(OSError):
                if name.fullmatch(item.name) and item.is_dir(follow_symlinks=False):
                    found.append(folder / item.name)
    return sorted(found)


def _is_backend_folder(path: Path) -> bool:
    """Also one that was emptied, or whose backend keeps files of its own kind."""
    return not path.is_symlink() and path.is_dir() and all(_MODEL.fullmatch(inner.name) for inner in path.iterdir())
