"""What the report says of each configuration, in the report's own units, and which one it advises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeseg.benchmarks.quality import unpack
from edgeseg.benchmarks.results import Accuracy, Configuration, Latency, Measurement, Results
from edgeseg.benchmarks.spread import Interval, Summary, ratio, summarise
from edgeseg.calibration.certificate import interval_of, resampled_mious
from edgeseg.errors import InputError

_BACKENDS = {
    "openvino": "OpenVINO",
    "ort": "ONNX Runtime",
    "tensorrt": "TensorRT",
    "torch": "PyTorch",
    "simulate": "simulation",
}
_LIMITS = (1, 2, 3, 5, 7, 10, 15, 20, 25, 33, 50, 75, 100, 150, 200, 300, 500, 1000, 2000, 5000, 10_000, 100_000)
"""Milliseconds that people ask for: 33 is 30 frames per second."""
_SAME_POINTS = 0.1
"""mIoU points that are no reason to wait: within them the faster configuration is the better one."""
_MOST_PICKS = 4


@dataclass(frozen=True, slots=True)
class Row:
    """A configuration that was measured; milliseconds. `series` is its name without the stride, `label` with it.

    `raw` is the runtime alone on the same graph, `ratio` the whole frame over it, None where it was not measured.
    """

    series: str
    label: str
    measurement: Measurement
    latency: Latency
    frame: Summary
    preprocess: float
    network: float
    decode: float
    raw: float | None
    ratio: float | None

    @property
    def stride(self) -> int:
        return self.measurement.configuration.output_stride

    @property
    def precision(self) -> str:
        return self.measurement.configuration.precision

    @property
    def accuracy(self) -> Accuracy | None:
        return self.measurement.accuracy

    @property
    def miou(self) -> float:
        """Points; minus one where none was measured, below every other."""
        return self.measurement.accuracy.miou if self.measurement.accuracy else -1.0


@dataclass(frozen=True, slots=True)
class Pick:
    """What to choose for at most `limit` milliseconds (None: without accuracy, the fastest of its stride).

    `last`: no configuration is more accurate, so no higher limit changes the choice. `equals` cannot be told from it by
    this run: within its claim as fast, and as accurate.
    """

    limit: float | None
    row: Row
    last: bool
    equals: tuple[Row, ...]


def rows_of(results: Results) -> list[Row]:
    """What was measured, the fastest first. Raises InputError for a time that is none."""
    rows = []
    for measurement, (series, label) in zip(results.measurements, labels(results), strict=True):
        found = measurement.latency
        if found is not None and found.frame_ns:
            if min((*found.frame_ns, *found.raw_ns)) <= 0:
                raise InputError(f"{label} has a frame that took no time: run the benchmark again")
            rows.append(
                Row(
                    series,
                    label,
                    measurement,
                    found,
                    frame=summarise(found.frame_ns, results.noise.claim),
                    preprocess=_median(found.preprocess_ns),
                    network=_median(found.network_ns),
                    decode=_median(found.decode_ns),
                    raw=_median(found.raw_ns) if found.raw_ns else None,
                    ratio=_over(found) if found.raw_ns else None,
                )
            )
    return sorted(rows, key=lambda row: row.frame.p50)


def labels(results: Results) -> list[tuple[str, str]]:
    """Series and label of each measurement: as short as tells them apart."""
    all_of = [measurement.configuration for measurement in results.measurements]
    devices = len({one.device for one in all_of}) > 1 or any(one.device != "cpu" for one in all_of)
    threads = len({one.threads for one in all_of}) > 1
    encodings = {(one.backend, one.precision): set[str]() for one in all_of}
    for one in all_of:
        encodings[one.backend, one.precision].add(one.encoding)

    def series(one: Configuration) -> str:
        name = f"{_BACKENDS.get(one.backend, one.backend)} {one.device if devices else ''} {one.precision}"
        if len(encodings[one.backend, one.precision]) > 1:
            name += f" {one.encoding}"
        if threads:
            name += f" {one.threads} threads" if one.threads else " all threads"
        return " ".join(name.split())

    found, seen = [], dict[str, int]()
    for one in all_of:
        name = series(one)
        label = f"{name}, stride {one.output_stride}"
        seen[label] = seen.get(label, 0) + 1
        found.append((name, label if seen[label] == 1 else f"{label} ({seen[label]})"))
    return found


def named(results: Results) -> list[tuple[str, Measurement]]:
    """All measurements by label, the fastest first, those that failed last."""
    order = {id(row.measurement): number for number, row in enumerate(rows_of(results))}
    pairs = [(label, one) for one, (_, label) in zip(results.measurements, labels(results), strict=True)]
    return sorted(pairs, key=lambda pair: order.get(id(pair[1]), len(order)))


def front(rows: Sequence[Row]) -> list[Row]:
    """Those that none beats in both accuracy and latency, the fastest first; rows without accuracy are not judged."""
    best, kept = -1.0, []
    for row in sorted(rows, key=lambda row: (row.frame.p50, -row.miou)):
        if row.miou > best:
            best = row.miou
            kept.append(row)
    return kept


def behind(rows: Sequence[Row]) -> list[tuple[float, Interval] | None]:
    """Points of mIoU that the most accurate is ahead of each, and their 95 % interval, drawn image by image.

    None where no counts by image are kept, or of other images. Raises InputError for counts that are damaged.
    """
    kept = {at: table for at, row in enumerate(rows) if row.accuracy and (table := unpack(row.accuracy)) is not None}
    if not kept:
        return [None] * len(rows)
    best = max(kept, key=lambda at: rows[at].miou)
    same = [at for at in kept if _images(rows[at]) == _images(rows[best])]
    drawn = dict(zip(same, resampled_mious([kept[at] for at in same], seed=0), strict=True))
    return [
        (rows[best].miou - row.miou, interval_of(drawn[best] - drawn[at])) if at in drawn else None
        for at, row in enumerate(rows)
    ]


def picks(rows: Sequence[Row], claim: float) -> list[Pick]:
    """At most four choices, from the tightest limit to the loosest, each at the lowest limit that it is right for.

    Within a limit is what keeps it to the upper end of its median's interval: the next run should keep it too. Of those
    within the limit the fastest that is within 0.1 points of the most accurate. Without any accuracy the
    fastest of each stride.
    """
    judged = [row for row in rows if row.accuracy is not None]
    if not judged:
        fastest = {row.stride: row for row in reversed(rows)}
        chosen = [(None, fastest[stride]) for stride in sorted(fastest)]
        return [Pick(limit, row, False, _equals(row, rows, claim)) for limit, row in chosen][:_MOST_PICKS]
    found = dict[str, tuple[int, Row]]()
    most_accurate = _choice(judged)
    for limit in _LIMITS:
        within = [row for row in judged if row.frame.interval[1] < limit]
        if within:
            row = _choice(within)
            found.setdefault(row.label, (limit, row))
    pairs = list(found.values())
    if len(pairs) > _MOST_PICKS:  # both ends, and evenly between
        at = np.linspace(0, len(pairs) - 1, _MOST_PICKS).round().astype(int)
        pairs = [pairs[index] for index in at]
    return [Pick(limit, row, row is most_accurate, _equals(row, judged, claim)) for limit, row in pairs]


def headline(found: Sequence[Pick]) -> Pick | None:
    """The choice of the first sentence: the middle one, for who has not said a limit; without accuracy the fastest."""
    if any(pick.limit is None for pick in found):
        return min(found, key=lambda pick: pick.row.frame.p50)
    return found[(len(found) - 1) // 2] if found else None


def _images(row: Row) -> tuple[str, int, tuple[str, ...]] | None:
    """What was labelled, and how."""
    return (row.accuracy.data, row.accuracy.images, tuple(row.accuracy.iou)) if row.accuracy else None


def _choice(rows: Sequence[Row]) -> Row:
    enough = max(row.miou for row in rows) - _SAME_POINTS
    return min((row for row in rows if row.miou >= enough), key=lambda row: row.frame.p50)


def _equals(row: Row, rows: Sequence[Row], claim: float) -> tuple[Row, ...]:
    return tuple(
        other
        for other in rows
        if other is not row
        and abs(other.frame.p50 / row.frame.p50 - 1) <= claim
        and (other.accuracy is None) == (row.accuracy is None)
        and abs(other.miou - row.miou) <= _SAME_POINTS
        and (row.accuracy is not None or other.stride == row.stride)
    )


def _median(nanoseconds: Sequence[int]) -> float:
    return float(np.median(nanoseconds)) / 1e6 if nanoseconds else 0.0


def _over(latency: Latency) -> float:
    if len(latency.raw_ns) == len(latency.frame_ns):
        return ratio(latency.frame_ns, latency.raw_ns)[0]
    return _median(latency.frame_ns) / _median(latency.raw_ns)
