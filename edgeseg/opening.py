"""From a bundle's variant to a session that has proven itself on a golden frame: graph, cache, self-test."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import tempfile
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path

from edgeseg._files import cache_home, sha256, write_atomic
from edgeseg.backends.base import Backend, BuildOptions, Options, Session
from edgeseg.bundle import Bundle
from edgeseg.errors import BackendError, BackendMissing, DeviceError, EdgesegError, GoldenError, InputError
from edgeseg.golden import check_golden
from edgeseg.manifest import Variant
from edgeseg.types import Model

_HALF_RECIPE = 1
"""Changes with how float16 graphs are written (`surgery.half`)."""


def open_session(
    bundle: Bundle,
    variant: Variant,
    backend: Backend,
    device: str,
    options: Options,
    cache: Path | None,
    self_test: bool,
) -> Session:
    """Open a variant's model, its hashes verified, and run one golden frame (`self_test`) through it.

    Where what the cache held gives another answer than the golden frame's, it is compiled again. Raises BundleError,
    BackendError, DeviceError, GoldenError.
    """
    if options.build != BuildOptions() and not backend.builds:
        raise BackendError(f"backend {backend.name} takes no build options: leave them out")
    backend.refuse_device(device)
    backend.refuse_precision(options.precision, device)
    model = bundle.model(variant)
    blobs = blobs_folder(cache, backend.name, model)
    with explained(backend, model), graph_for(backend, model, options, blobs) as graph:
        session = backend.open(graph, device, options, blobs)
    if cache and session.kept is not None and not session.kept.found:
        from edgeseg import caching

        caching.prune(cache, keep=blobs)
    if not (self_test and backend.self_test):
        return session
    try:
        check_golden(bundle, variant, session, options.precision)
    except GoldenError as error:
        session.close()
        if session.kept is None:
            raise
        gone = _removed(session.kept.files)
        if not session.kept.found:  # compiled just now: compiling again would give the same
            raise
        # What was cached may be damaged: compile again before blaming the runtime.
        session = open_session(bundle, variant, backend, device, options, cache if gone else None, self_test)
        warnings.warn(
            f"recompiled {variant.file}: what {blobs} held was damaged ({error})", RuntimeWarning, stacklevel=3
        )
    except EdgesegError:
        session.close()
        raise
    return session


def _removed(files: Sequence[Path]) -> bool:
    """Remove what the cache holds of a session; False where it cannot be."""
    for path in files:
        with contextlib.suppress(OSError):
            path.unlink()
    return not any(map(os.path.exists, files))


@contextlib.contextmanager
def explained(backend: Backend, model: Model) -> Generator[None, None, None]:
    """Add to what a compiler says of a graph: which rule it breaks, at which layer, and the remedy (where onnx is)."""
    try:
        yield
    except (BackendMissing, DeviceError):
        raise
    except BackendError as error:
        if not backend.builds:
            raise
        try:
            from edgeseg.surgery.onnx_file import read_onnx
            from edgeseg.surgery.tensorrt_rules import by_rule, check

            lines = by_rule(check(read_onnx(model.path)))
        except ModuleNotFoundError:
            lines = ()
        if not lines:
            raise
        raise BackendError(f"{error}; {lines[0]}") from error


def blobs_folder(cache: Path | None, backend: str, model: Model) -> Path | None:
    """Where a backend keeps what it compiles of a model, under the cache directory."""
    return cache / backend / model.digest[:32] if cache else None


@contextlib.contextmanager
def graph_for(backend: Backend, model: Model, options: Options, blobs: Path | None) -> Generator[Model, None, None]:
    """The model as the backend wants it: in float16, written beside its compiled blobs, where flags do not say fp16.

    Raises BackendMissing where onnx is needed for that and absent, ExportError where a constant does not fit.
    """
    if options.precision != "fp16" or not backend.half_graphs:
        yield model
        return
    with contextlib.ExitStack() as held:
        folder = blobs or Path(held.enter_context(tempfile.TemporaryDirectory()))
        # named by its own hash, so that a damaged one is written again
        mark = f".{_HALF_RECIPE}.half.onnx"
        there = [path for path in folder.glob(f"*{mark}") if sha256(path)[:16] == path.name.removesuffix(mark)]
        if not there:
            try:
                from edgeseg.surgery.half import half_graph
            except ModuleNotFoundError as error:
                if error.name != "onnx":
                    raise
                raise BackendMissing(
                    f"{backend.version} computes fp16 only where the graph says so, and writing it needs the package "
                    "onnx: pip install onnx"
                ) from error
            graph = half_graph(model.path)
            folder.mkdir(parents=True, exist_ok=True)
            there = [folder / f"{hashlib.sha256(graph).hexdigest()[:16]}{mark}"]
            write_atomic(there[0], graph, BackendError)
        yield dataclasses.replace(model, path=there[0])


def cache_folder(cache: str | Path | None) -> Path | None:
    """The cache directory, made if need be; None where there is none, with a warning if it cannot be made."""
    if cache is None:
        return None
    folder = cache_home() if cache == "auto" else Path(cache)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"the cache {folder} is a file: name a directory")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if cache != "auto":
            raise InputError(f"cannot use the cache directory {folder}: {error.strerror or error}") from error
        warnings.warn(
            f"no cache for compiled networks: cannot make {folder} ({error.strerror})", RuntimeWarning, stacklevel=3
        )
        return None
    return folder
