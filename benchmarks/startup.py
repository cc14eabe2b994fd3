"""What starting costs: import time, load to first mask, resident memory, each beside the bare libraries.

python -m edgeseg.benchmarks.startup

Every figure comes from fresh processes, the two sides taking turns; medians of --rounds. Memory is the peak resident
set of a process that runs 20 masks at 1080p, beside one that runs the same graph 20 times in bare OpenVINO with numpy
and cv2 imported.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile

import click

import edgeseg
from edgeseg._edge import exit_code
from edgeseg.bundle import Bundle
from edgeseg.types import Precision

_CLOCK = "import time; begin = time.perf_counter();"
_PEAK = "from edgeseg.benchmarks.peak import peak_bytes; print(peak_bytes());"
_IMPORT_BARE = _CLOCK + "import numpy, cv2; print(time.perf_counter() - begin)"
_IMPORT_OURS = _CLOCK + "import numpy, cv2; from edgeseg import load; print(time.perf_counter() - begin)"
_FIRST_MASK = (
    "import time, numpy, cv2, edgeseg;"
    "frame = numpy.full((1080, 1920, 3), 90, numpy.uint8); begin = time.perf_counter();"
    "edgeseg.load(backend={backend!r}, precision={precision!r}, cache={cache!r})(frame);"
    "print(time.perf_counter() - begin)"
)
_MEMORY_OURS = (
    "import numpy, edgeseg; frame = numpy.full((1080, 1920, 3), 90, numpy.uint8);"
    "segmenter = edgeseg.load(backend='openvino', precision={precision!r}, cache={cache!r});"
    "all(segmenter(frame).class_map.size for _ in range(20));" + _PEAK
)
_MEMORY_BARE = (
    "import numpy, cv2, openvino; core = openvino.Core();"
    "compiled = core.compile_model({path!r}, 'CPU', {{'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY',"
    "'CACHE_DIR': {cache!r}}});"
    "request = compiled.create_infer_request(); batch = numpy.full((1, {height}, {width}, 3), 90, numpy.uint8);"
    "all(request.infer([batch]) for _ in range(20));" + _PEAK
)


@click.command()
@click.option("--rounds", type=int, default=7, show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "int8"]), default="fp32", show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(rounds: int, precision: Precision, as_json: bool) -> None:
    bundle = Bundle.open(edgeseg.EMBEDDED)
    height, width = bundle.manifest.preprocess.input_size
    path = str(bundle.path / bundle.variant(16, precision, "cpu" if precision == "int8" else "float").file)
    with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as bare:
        programs = {
            "import_bare_s": _IMPORT_BARE,
            "import_ours_s": _IMPORT_OURS,
            "first_mask_openvino_s": _FIRST_MASK.format(backend="openvino", precision=precision, cache=ours),
            "first_mask_ort_s": _FIRST_MASK.format(backend="ort", precision=precision, cache=ours),
            "memory_ours_bytes": _MEMORY_OURS.format(precision=precision, cache=ours),
            "memory_bare_bytes": _MEMORY_BARE.format(path=path, cache=bare, height=height, width=width),
        }
        samples: dict[str, list[float]] = {name: [] for name in programs}
        for turn in range(-1, rounds):  # the first turn fills the caches
            for name, program in programs.items():
                value = float(_run(program))
                if turn >= 0:
                    samples[name].append(value)
    report = {name: round(statistics.median(values), 4) for name, values in samples.items()}
    report["import_added_ms"] = round(1e3 * (report["import_ours_s"] - report["import_bare_s"]), 1)
    report["memory_ratio"] = round(report["memory_ours_bytes"] / report["memory_bare_bytes"], 3)
    click.echo(json.dumps(report, indent=2) if as_json else "\n".join(f"{k:<24} {v}" for k, v in report.items()))


def _run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(exit_code(main, "startup"))
