"""Writing without ever leaving half a file or losing the old one, locking, hashing, and where the cache lies."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgeseg.errors import EdgesegError, InputError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_POLL_S = 0.02
_TRIES = 1000


def write_atomic(path: Path, data: bytes | Sequence[bytes], error: type[EdgesegError] = InputError) -> None:
    """Write to a temporary name beside `path`, then rename; raises `error` naming the path and the reason.

    Pieces are written one after the other.
    """
    # not longer than any name a file system takes: it does not repeat the file's own
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
        os.replace(temporary, path)
    except (OSError, ValueError) as reason:  # ValueError: a NUL in the path
        raise error(f"cannot write {path}: {getattr(reason, 'strerror', None) or reason}") from reason
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def replacing_directory(path: Path, error: type[EdgesegError] = InputError) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path` when the block ends well, and vanishes when it does not.

    What `path` held before stays until the very rename, and is put back if that fails; where `path` is a link, so does
    the link.
    """
    token = secrets.token_hex(8)
    try:
        path = path.resolve()
        temporary, old = path.parent / f".{token}.tmp", path.parent / f".{token}.old"
        temporary.mkdir(parents=True)
    except (OSError, ValueError, RuntimeError) as reason:  # a NUL in the path; a loop of links, before Python 3.13
        raise error(f"cannot write {path}: {getattr(reason, 'strerror', None) or reason}") from reason
    try:
        yield temporary
        existed = os.path.exists(path)
        try:
            if existed:
                os.replace(path, old)
            os.replace(temporary, path)
        except OSError as reason:
            if existed and os.path.exists(old) and not os.path.exists(path):
                os.replace(old, path)
            raise error(f"cannot write {path}: {reason.strerror or reason}") from reason
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, busy: Callable[[], object] | None = None, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file `path` (made with its folder) against other processes and threads; yields whether it is held.

    While someone else holds it, `busy` is called once and the block waits its turn, or with `wait=False` runs without.
    Where there can be no lock (a read-only folder, a file system that has none) the block runs without one too.
    """
    file, tries = None, _TRIES
    with contextlib.suppress(OSError):
        while tries:
            try:
                file = _acquire(path)
            except (FileNotFoundError, FileExistsError):  # it, or its folder, was removed by who held it before
                tries -= 1
                continue
            if file is not None or not wait:
                break
            if busy is not None:
                busy()
                busy = None
            time.sleep(_POLL_S)
    try:
        yield file is not None
    finally:
        if file is not None:
            _unlock(file)
            os.close(file)


def _acquire(path: Path) -> int | None:
    """The locked file, open; None while someone else holds it. Raises OSError where there can be no lock.

    FileNotFoundError and FileExistsError (mkdir's) are also for what was removed meanwhile: try again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file, held = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666), False
    try:
        if sys.platform == "win32":
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # of a file that was removed meanwhile, the next one would make and lock another
        held = os.path.samestat(os.fstat(file), path.stat())
    except (BlockingIOError, PermissionError):
        pass
    finally:
        if not held:
            os.close(file)
    return file if held else None


def _unlock(file: int) -> None:
    """Also for a process that was forked meanwhile and has the file open too; closing alone would not."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            msvcrt.locking(file, msvcrt.LK_UNLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_UN)


def sha256(path: Path) -> str:
    """The file's SHA-256 as 64 hex digits, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def cache_home() -> Path:
    """Where compiled blobs go by default: the platform's cache directory, `edgeseg` inside it."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edgeseg"
