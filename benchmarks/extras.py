"""What a run may measure beside its grid, as data: cost as the work grows, and others on the same graph and frames."""

from __future__ import annotations

from dataclasses import dataclass

from edgeseg.benchmarks.spread import Interval
from edgeseg.types import Size


@dataclass(frozen=True, slots=True)
class Stages:
    """Median milliseconds per frame of one row: what it is ("1080x1920", "batch 4"), its total, and its stages."""

    name: str
    total_ms: float
    preprocess_ms: float
    network_ms: float
    decode_ms: float


@dataclass(frozen=True, slots=True)
class Decoding:
    """Median milliseconds of decoding so many classes to a frame's size, plain and with confidence.

    `contested` is the share of cells (four neighbouring logits vectors) whose corners have not one winner. `opencv_ms`:
    cv2.resize of the scores and argmax, None where they take too much memory.
    """

    classes: int
    frame: Size
    contested: float
    plain_ms: float
    confidence_ms: float
    opencv_ms: float | None


@dataclass(frozen=True, slots=True)
class Growth:
    """All tables of one run, and what they say in sentences."""

    network: str
    pictures: str
    frames: tuple[Stages, ...]
    classes: tuple[Decoding, ...]
    batches: tuple[Stages, ...]
    threads: tuple[Stages, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class App:
    """Medians in milliseconds by block, of benchmark_app and ours, and ours / its with the 95 % interval.

    `settings` is what benchmark_app ran with by its own words; `default_ms` and `default_settings` are of one run as it
    comes, which is made for throughput.
    """

    theirs_ms: tuple[float, ...]
    ours_ms: tuple[float, ...]
    ratio: float
    interval: Interval
    settings: str
    default_ms: float
    default_settings: str


@dataclass(frozen=True, slots=True)
class Row:
    """One contender: median milliseconds and, round by round, its time by `against`'s, with 95 % intervals.

    `agreement` is the share of all frames' pixels as in edgeseg's masks. Where it did not run, `missing` says why.
    """

    name: str
    includes: str
    against: str
    runtime: str = ""
    ms: float = 0.0
    interval: Interval = (0.0, 0.0)
    ratio: float = 0.0
    ratio_interval: Interval = (0.0, 0.0)
    agreement: float | None = None
    quantized: int | None = None
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows of one run; `stages_ms` are edgeseg's own (preprocess, network, decode), `noise` what makes it doubtful.

    `whole_by_network` is edgeseg's whole frame by OpenVINO's inference alone.
    """

    network: str
    frames: str
    rows: tuple[Row, ...]
    stages_ms: tuple[float, float, float]
    whole_by_network: float
    whole_by_network_interval: Interval
    noise: tuple[str, ...]
    app: App | None
    app_missing: str
