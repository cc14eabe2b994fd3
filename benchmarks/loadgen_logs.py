"""Reading the logs of a LoadGen test: its verdict and times, and the masks of a test of accuracy."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeseg._records import RecordError, from_json
from edgeseg.calibration.datasets import Dataset
from edgeseg.errors import BackendError, InputError
from edgeseg.scoring import confusion, score

Scenario = Literal["SingleStream", "MultiStream", "Offline", "Server"]
FACTS = "edgeseg.json"
"""Beside LoadGen's own files: what it does not know."""
_DETAIL, _ACCURACY, _PREFIX = "mlperf_log_detail.txt", "mlperf_log_accuracy.json", ":::MLLOG "


@dataclass(frozen=True, slots=True)
class Facts:
    """What edgeseg ran on which `frames`; `own_ns` is the Segmenter's own total by query, in the order of issue."""

    choice: str
    runtime: str
    device_name: str
    frames: str
    own_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Logged:
    """On all labelled images, from the logged masks, at the labels' own size; percentages 0 to 100.

    `iou` by class name, None where the class occurs neither in labels nor in masks.
    """

    images: int
    miou: float
    pixel_accuracy: float
    iou: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Judged:
    """One scenario as LoadGen measured and judged it; times in nanoseconds.

    `valid` is its verdict, `reasons` what it says against it, and its errors. `p50_ns`, `p90_ns`, `p99_ns`: of a query
    in SingleStream, MultiStream and Server, from when it was due; in Offline of a sample, from the start of all.
    `samples_per_s` is the throughput, in Server of what was completed, beside the `scheduled_per_s` that MLPerf counts
    there. `query_ns` is LoadGen's median per query and `own_ns` the Segmenter's for the same frames: what is between
    them is waiting and LoadGen itself. `target_latency_ns` is what 99 % of a Server's queries must keep.
    """

    scenario: Scenario
    valid: bool
    reasons: tuple[str, ...]
    loadgen: str
    facts: Facts
    queries: int
    samples: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    samples_per_s: float
    query_ns: int
    own_ns: int
    min_seconds: float
    min_queries: int
    scheduled_per_s: float | None = None
    target_qps: float | None = None
    target_latency_ns: int | None = None
    accuracy: Logged | None = None


def read_logs(folder: Path) -> Judged:
    """Read a test of speed. Raises BackendError naming the folder where LoadGen did not finish."""
    try:
        facts = from_json(Facts, json.loads((folder / FACTS).read_bytes()), FACTS)
        lines = (folder / _DETAIL).read_text(encoding="utf-8", errors="replace").splitlines()
        entries = [json.loads(line.removeprefix(_PREFIX)) for line in lines if line.startswith(_PREFIX)]
        return _judged({entry["key"]: entry["value"] for entry in entries}, _errors(entries), facts)
    except (OSError, ValueError, KeyError, TypeError, RecordError) as error:
        raise BackendError(f"{folder} holds no logs of a finished LoadGen test: {error}") from error


def read_masks(folder: Path) -> Iterator[tuple[int, bytes]]:
    """The index of the image and the response's bytes, one by one as LoadGen logged them; raises InputError."""
    path = folder / _ACCURACY
    try:
        with path.open(encoding="ascii") as file:
            for line in file:
                if line.startswith("{"):  # a list, an item a line: it may be larger than the memory
                    entry = json.loads(line.rstrip().rstrip(","))
                    yield entry["qsl_idx"], bytes.fromhex(entry["data"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read as LoadGen's log of accuracy: {error}") from error


def score_masks(folder: Path, images: Dataset) -> Logged:
    """Score a test of accuracy against the labels of the images it ran on, each once.

    LoadGen pads MultiStream's queries with images that were there before. Raises InputError for images without labels
    or of other sizes, BackendError where an image is missing or two of its masks differ.
    """
    names = [info.name for info in images.classes]
    counts, seen = np.zeros((len(names), len(names) + 1), np.int64), dict[int, bytes]()
    for index, data in read_masks(folder):
        digest = hashlib.sha256(data).digest()
        if index in seen:
            if digest != seen[index]:
                raise BackendError(f"LoadGen logged two masks of {images.samples[index].name} that differ")
            continue
        seen[index] = digest
        height, width = images.frame(index).shape[:2]
        if len(data) != height * width:
            name = images.samples[index].name
            raise InputError(f"the logged mask of {name} has {len(data)} pixels, the image {height}x{width}")
        mask = np.frombuffer(data, np.uint8).reshape(height, width)
        counts += confusion(mask, images.label(index, (height, width)), len(names))
    if len(seen) != len(images):
        raise BackendError(f"LoadGen logged masks of {len(seen)} of {len(images)} images")
    if not counts.any():
        raise InputError(f"none of the {len(images)} images has a labelled pixel: give labels")
    found = score(counts)
    iou = {name: round(one, 4) if math.isfinite(one) else None for name, one in zip(names, found.iou, strict=True)}
    return Logged(len(seen), round(found.miou, 4), round(found.pixel_accuracy, 4), iou)


def _judged(log: dict[str, Any], errors: tuple[str, ...], facts: Facts) -> Judged:
    scenario: Scenario = log["effective_scenario"]
    per_query = log["effective_samples_per_query"]
    latency = "percentile_per_query_latency_ns" if scenario == "MultiStream" else "percentile_latency_ns"
    p50 = log[f"result_50.00_{latency}"]
    server = scenario == "Server"
    if scenario == "MultiStream":
        per_second = per_query * 1e9 / log["result_mean_query_latency_ns"]
    else:
        key = {"SingleStream": "qps_with_loadgen_overhead", "Offline": "samples_per_second"}
        per_second = log[f"result_{key.get(scenario, 'completed_samples_per_sec')}"]
    return Judged(
        scenario=scenario,
        valid=log["result_validity"] == "VALID",
        reasons=(*_reasons(log), *errors),
        loadgen=log["loadgen_version"].partition(" ")[0],
        facts=facts,
        queries=log["result_query_count"],
        samples=log["result_query_count"] * per_query,
        p50_ns=p50,
        p90_ns=log[f"result_90.00_{latency}"],
        p99_ns=log[f"result_99.00_{latency}"],
        samples_per_s=per_second,
        query_ns=log["result_max_latency_ns"] if scenario == "Offline" else p50,
        own_ns=round(statistics.median(facts.own_ns)),
        min_seconds=log["requested_min_duration_ms"] / 1000,
        min_queries=log["requested_min_query_count"],
        scheduled_per_s=log["result_scheduled_samples_per_sec"] if server else None,
        target_qps=log["effective_target_qps"] if server else None,
        target_latency_ns=log["effective_target_latency_ns"] if server else None,
    )


def _reasons(log: dict[str, Any]) -> Iterator[str]:
    """LoadGen's own words; of what early stopping lacks it speaks elsewhere than of the rest."""
    if log["result_validity"] == "VALID":
        return
    if said := " ".join(log["result_invalid_reason"].split()):
        yield said
    if not log["early_stopping_met"]:
        yield " ".join(log["early_stopping_result"].replace("*", " ").split())


def _errors(entries: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(f"{entry['key']}: {entry['value']}" for entry in entries if entry["metadata"]["is_error"])
