"""What a benchmark measured, as data: written to JSON, drawn by the report, compared with another run's."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from edgeseg._files import write_atomic
from edgeseg._records import RecordError, from_json, to_json
from edgeseg.benchmarks.extras import Comparison, Growth
from edgeseg.errors import InputError

FORMAT = 1
"""Of the JSON file. A reader refuses any other and says both."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """One cell of the grid. `precision` is what the network is computed in, `encoding` how the graph is written."""

    backend: str
    device: str
    output_stride: int
    precision: str
    encoding: str
    threads: int = 0

    @property
    def name(self) -> str:
        """For tables: "openvino cpu int8 os16", with the threads where they were set."""
        return f"{self.backend} {self.device} {self.precision} os{self.output_stride}" + (
            f" t{self.threads}" * (self.threads > 0)
        )


@dataclass(frozen=True, slots=True)
class Latency:
    """Samples in nanoseconds, in the order they were taken, all from one interleaved run after the warm-up.

    `frame_ns`: from the raw frame to the class map at the frame's own size, what a user waits for. `preprocess_ns`,
    `network_ns`, `decode_ns`: its stages. `raw_ns`: the runtime's own inference of the same graph on a prepared batch,
    measured in the same rounds (TensorRT's: the session's engine, copied to and from); empty where edgeseg has no raw
    runner for the backend, or TensorRT no cache. `rounds_ns` is when each round began, since the first, so that drift
    can be seen. `warmup` rounds came before and are not here.
    """

    frame_ns: tuple[int, ...]
    preprocess_ns: tuple[int, ...]
    network_ns: tuple[int, ...]
    decode_ns: tuple[int, ...]
    raw_ns: tuple[int, ...]
    rounds_ns: tuple[int, ...]
    warmup: int


@dataclass(frozen=True, slots=True)
class Start:
    """What comes before the second frame, each in a process of its own; nanoseconds and bytes.

    `import_ns`: `import edgeseg` and the runtime; `load_ns`: with an empty cache, `warm_load_ns` with a filled one,
    both with the golden frame; `first_frame_ns`: the first call; `peak_bytes`: the process's peak resident memory.
    """

    import_ns: int
    load_ns: int
    warm_load_ns: int
    first_frame_ns: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class FixedRate:
    """A camera at `hz`: age of each result when it was there, nanoseconds since its frame was taken; frames missed.

    A frame is missed where a newer one had come before the segmenter was free for it.
    """

    hz: float
    age_ns: tuple[int, ...]
    frames: int
    missed: int


@dataclass(frozen=True, slots=True)
class Accuracy:
    """On labelled images, at the labels' own size; percentages 0 to 100, `interval` the 95 % bootstrap one of mIoU.

    `iou` by class name, None where the class occurs neither in labels nor in masks. `boundary_f` is the F-score of
    class boundaries within `boundary_pixels`. `agreement` is the share of pixels as the reference's, which `reference`
    names. `data` identifies the images (`edgeseg.calibration.datasets.digest_of`). `overlaps` are the counts by image
    and class, packed by `quality.pack`: `compare` pairs two runs image by image with them.
    """

    images: int
    data: str
    miou: float
    interval: tuple[float, float]
    pixel_accuracy: float
    iou: dict[str, float | None]
    boundary_f: float
    boundary_pixels: float
    agreement: float
    reference: str
    overlaps: str = ""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Everything known of one configuration; what was not measured is None. `failure` says why nothing was."""

    configuration: Configuration
    runtime: str = ""
    device_name: str = ""
    macs: int = 0
    graph_bytes: int = 0
    latency: Latency | None = None
    start: Start | None = None
    rates: tuple[FixedRate, ...] = ()
    accuracy: Accuracy | None = None
    energy_mj: float | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """The machine, its state and the versions of everything that computes: pairs in words, in order of showing.

    `fixed` decides whether two runs may be compared (processor, cores, memory, runtimes); `state` is how it was at the
    time (load, clocks, governor, temperature, power mode).
    """

    fixed: dict[str, str]
    state: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Frames:
    """What was fed: (height, width), what the pictures are ("drawn scenes 64 to 71"), and their SHA-256 together."""

    height: int
    width: int
    source: str
    digest: str


@dataclass(frozen=True, slots=True)
class Noise:
    """What the run says of its own quality: `claim` is the smallest difference it can tell, a share (0.03 is 3 %).

    `noisy` with the `reasons` in a sentence each, where that is more than was asked for.
    """

    claim: float
    noisy: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture for the report, PNG files in base64: frame, label ("" without one), masks by configuration."""

    name: str
    frame: str
    label: str
    masks: dict[str, str]


@dataclass(frozen=True, slots=True)
class Results:
    """One run of the benchmark. `classes` name -> "#rrggbb".

    `growth` and `peers` (a comparison for each precision) are measured on request, after the grid.
    """

    bundle: str
    bundle_digest: str
    input_size: tuple[int, int]
    classes: dict[str, str]
    frames: Frames
    host: Host
    noise: Noise
    method: str
    command: str
    began: str
    measurements: tuple[Measurement, ...]
    samples: tuple[Sample, ...] = ()
    growth: Growth | None = None
    peers: tuple[Comparison, ...] = ()
    format: int = FORMAT


def save(results: Results, path: Path) -> None:
    """Write JSON, at once or not at all; raises InputError naming the path."""
    write_atomic(path, (json.dumps(to_json(results), indent=1) + "\n").encode())


def read(path: Path) -> Results:
    """Read what `save` wrote. Raises InputError naming the file for anything else, also another format's number."""
    remedy = "give a file that `edgeseg bench --json FILE` wrote"
    other = f"{path} is no run of `edgeseg bench --json`: {remedy}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if not content.strip():
        raise InputError(f"{path} is empty: {remedy}")
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        if not content.lstrip().startswith(b"{"):
            raise InputError(other) from error
        line = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{path} is cut short or damaged{line}: {remedy}") from error
    if not isinstance(data, dict) or "format" not in data or "measurements" not in data:
        raise InputError(other)
    if data["format"] != FORMAT:
        raise InputError(
            f"{path} is of format {data['format']!r:.60}, this edgeseg reads {FORMAT}: run `edgeseg bench --json` again"
        )
    try:
        return from_json(Results, data, "results")
    except RecordError as error:
        raise InputError(f"{path} is damaged ({error}): {remedy}") from error
