"""What comes before the second frame: import, load with an empty and with a full cache, first mask, memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgeseg.benchmarks.results import Configuration, Start
from edgeseg.errors import BackendError
from edgeseg.types import Size

_TIMEOUT_S = 3600
"""Compiling for an accelerator takes minutes."""
_PROGRAM = """
import json, sys, time
begin = time.perf_counter_ns()
import numpy
from edgeseg import load
from edgeseg.registry import get
asked = json.loads(sys.argv[1])
get(asked["load"]["backend"])
imported = time.perf_counter_ns()
segmenter = load(**asked["load"])
loaded = time.perf_counter_ns()
segmenter(numpy.full((*asked["size"], 3), 90, numpy.uint8))
first = time.perf_counter_ns()
from edgeseg.benchmarks.peak import peak_bytes
print(json.dumps([imported - begin, loaded - imported, first - loaded, peak_bytes()]))
"""


@dataclass(frozen=True, slots=True)
class _Child:
    import_ns: int
    load_ns: int
    first_frame_ns: int
    peak_bytes: int


def measure_start(bundle: Path, configuration: Configuration, frame_size: Size) -> Start:
    """Start twice in fresh processes, with an empty cache and with the one it left; `frame_size` is the first frame's.

    The import, the first frame and the peak are the second's, as on a device that has run before. The files are in the
    system's cache. Raises BackendError with the child's last line where it fails.
    """
    with tempfile.TemporaryDirectory() as cache:
        empty = _run(bundle, configuration, frame_size, cache)
        warm = _run(bundle, configuration, frame_size, cache)
    return Start(warm.import_ns, empty.load_ns, warm.load_ns, warm.first_frame_ns, warm.peak_bytes)


def _run(bundle: Path, configuration: Configuration, frame_size: Size, cache: str) -> _Child:
    arguments = {
        "bundle_path": str(bundle),
        "backend": configuration.backend,
        "device": configuration.device,
        "precision": configuration.precision,
        "output_stride": configuration.output_stride,
        "threads": configuration.threads,
        "cache": cache,
    }
    asked = json.dumps({"load": arguments, "size": frame_size})
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, asked], check=True, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
        return _Child(*json.loads(done.stdout.splitlines()[-1]))
    except subprocess.CalledProcessError as error:
        told = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        raise BackendError(f"{configuration.name} does not start in a process of its own: {told}") from error
    except (subprocess.TimeoutExpired, OSError, ValueError, IndexError) as error:
        raise BackendError(f"{configuration.name} does not start in a process of its own: {error}") from error
