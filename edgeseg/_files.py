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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as reason:
        raise error(f"cannot write {path}: {reason.strerror or reason}") from reason
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def replacing_directory(path: Path, error: type[EdgesegError] = InputError) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path` when the block ends well, and vanishes when it does not.

    What `path` held before stays until the very rename, and is put back if that fails.
    """
    token = secrets.token_hex(4)
    temporary = path.with_name(f".{path.name}.{token}.tmp")
    old = path.with_name(f".{path.name}.{token}.old")
    try:
        temporary.mkdir(parents=True)
    except OSError as reason:
        raise error(f"cannot write {path}: {reason.strerror or reason}") from reason
    try:
        yield temporary
        existed = path.exists()
        try:
            if existed:
                os.replace(path, old)
            os.replace(temporary, path)
        except OSError as reason:
            if existed and old.exists() and not path.exists():
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
