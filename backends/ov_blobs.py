"""Digests of what OpenVINO compiled, kept beside it: it loads a damaged blob and computes something else."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edgeseg._files import locked, sha256, write_atomic
from edgeseg._records import from_json, to_json
from edgeseg.backends.engines import LOCK
from edgeseg.errors import InputError
from edgeseg.types import Model

RECORD = "blobs.json"
SUFFIX = ".blob"


@dataclass(frozen=True, slots=True)
class BlobRecord:
    """The blobs in one folder, names and SHA-256, as OpenVINO wrote them, and what they are for: `facts`."""

    facts: dict[str, str]
    blobs: dict[str, str]


@contextmanager
def checked_blobs(cache: Path, model: Model, facts: Mapping[str, str]) -> Iterator[Path | None]:
    """Yield a CACHE_DIR in `cache` for this model and these facts ("device": "cpu"); None where there can be none.

    A blob in it that is not exactly what was recorded is removed first, with a RuntimeWarning; what is new afterwards
    is recorded. A lock held meanwhile keeps other processes from reading a blob that is half written. A folder for all
    that OpenVINO's own key depends on, the path too, holds one blob: the one to be verified.
    """
    facts = {**facts, "file": model.path.name, "bundle": model.path.absolute().parent.name}
    key = json.dumps([*facts.items(), str(model.path.absolute())])
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:8]
    with locked(folder / LOCK):
        known = _verified(folder)
        if known is None or not os.access(folder, os.R_OK if known else os.W_OK):
            told = f"no cache for compiled networks: cannot write to {folder}"
            warnings.warn(told, RuntimeWarning, stacklevel=2)
            yield None
            return
        before = _stamps(folder)
        yield folder
        after = _stamps(folder)
        written = [name for name, stamp in after.items() if stamp != before.get(name)]
        with suppress(OSError, InputError):  # what is not recorded is compiled again
            if not written:
                os.utime(folder / RECORD)
                return
            known |= {name: sha256(folder / name) for name in written}
            record = BlobRecord(facts, {name: digest for name, digest in known.items() if name in after})
            write_atomic(folder / RECORD, json.dumps(to_json(record)).encode())


def blobs_in(folder: Path | None) -> tuple[Path, ...]:
    """The blobs in a folder; none where there is no folder."""
    return () if folder is None else tuple(sorted(folder / name for name in _stamps(folder)))


def read_record(folder: Path) -> BlobRecord:
    """What a folder's blobs are; raises OSError, or ValueError where the record is damaged."""
    try:
        return from_json(BlobRecord, json.loads((folder / RECORD).read_bytes()), RECORD)
    except RecursionError as error:
        raise ValueError(f"{RECORD} is nested too deeply") from error


def _verified(folder: Path) -> dict[str, str] | None:
    """The recorded blobs, the others removed; None where one of those cannot be."""
    known: dict[str, str] = {}
    with suppress(OSError, ValueError):
        known = read_record(folder).blobs
    for name in _stamps(folder):
        path = folder / name
        with suppress(OSError):
            if name in known and sha256(path) == known[name]:
                continue
        reason = "its digest is another" if name in known else f"{RECORD} does not know it"
        try:
            path.unlink()
        except OSError:
            return None
        told = f"the compiled network in {path} is damaged ({reason}): it is compiled again"
        warnings.warn(told, RuntimeWarning, stacklevel=3)
    return known


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every blob here."""
    found = {}
    with suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.endswith(SUFFIX):
                with suppress(OSError):
                    status = entry.stat()
                    found[entry.name] = status.st_size, status.st_mtime_ns
    return found
