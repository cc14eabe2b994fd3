"""Writing without ever leaving half a file or losing the old one, and hashing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgeseg.errors import EdgesegError, InputError


def write_atomic(path: Path, data: bytes, error: type[EdgesegError] = InputError) -> None:
    """Write to a temporary name beside `path`, then rename; raises `error` naming the path and the reason."""
    # not longer than any name a file system takes: it does not repeat the file's own
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        temporary.write_bytes(data)
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


def sha256(path: Path) -> str:
    """The file's SHA-256 as 64 hex digits, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
