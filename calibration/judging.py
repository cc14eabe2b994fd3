"""What a quantized candidate loses against its fp32 graph, on guard images in ONNX Runtime."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx

from edgeseg import decode
from edgeseg.bundle import Bundle
from edgeseg.calibration.datasets import Dataset
from edgeseg.errors import InputError
from edgeseg.golden import network_mask
from edgeseg.manifest import Variant
from edgeseg.preprocess import Preprocessor
from edgeseg.scoring import Counts, confusion, means, overlaps
from edgeseg.surgery.onnx_file import Runner, read_onnx
from edgeseg.types import Batch, ClassMap, Encoding, Size

_CACHE_BYTES = 128 << 20
_TIMED_RUNS = 9


@dataclass(frozen=True, slots=True)
class Measured:
    """A candidate on `images` images: mIoU minus fp32's in points (None without labels), share of equal pixels."""

    images: int
    difference: float | None
    agreement: float


@dataclass(frozen=True, slots=True)
class Limit:
    """What may be lost: points of mIoU where there are labels, else percent of pixels that change their class.

    Raises InputError for what is no such number: below 0, above 100, not a number.
    """

    max_drop: float = 0.2
    max_disagreement: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("max_drop", self.max_drop), ("max_disagreement", self.max_disagreement)):
            if not 0 <= value <= 100:
                raise InputError(f"{name} is {value}: give 0 to 100")

    def loss(self, measured: Measured) -> tuple[float, float]:
        """What is lost and what may be: points of mIoU where there are labels, else percent of pixels."""
        if measured.difference is not None:
            return -measured.difference, self.max_drop
        return 100 * (1 - measured.agreement), self.max_disagreement

    def holds(self, measured: Measured) -> bool:
        """Whether a measurement is within the limit."""
        lost, allowed = self.loss(measured)
        return lost <= allowed

    def text(self, measured: Measured) -> str:
        """The measurement beside the limit, for messages."""
        lost, allowed = self.loss(measured)
        if measured.difference is not None:
            return f"{-lost:+.2f} mIoU on {measured.images} guard images (limit -{allowed:g})"
        return f"{lost:.2f}% of pixels changed on {measured.images} guard images (limit {allowed:g}%)"


class Judge:
    """Compares candidates of one fp32 variant with it. Holds fp32's mask of every guard image, and few frames."""

    def __init__(self, bundle: Bundle, variant: Variant, guard: Dataset) -> None:
        """Runs the fp32 graph on all guard images. Raises ImageError, ExportError, InputError for a wrong label."""
        self._manifest = bundle.manifest
        self._guard = guard
        self._preprocessor = Preprocessor(bundle.manifest.preprocess)
        height, width = bundle.manifest.preprocess.input_size
        # a frame, and the size of the image it was made of
        self._frame = lru_cache(max(1, _CACHE_BYTES // (3 * height * width)))(self._read)
        self._float = read_onnx(bundle.path / variant.file)
        runner = Runner(self._float)
        self._reference = [self._answer(runner, index) for index in range(len(guard))]

    def __len__(self) -> int:
        return len(self._guard)

    def measure(self, model: onnx.ModelProto, encoding: Encoding, images: Sequence[int] | None = None) -> Measured:
        """Run a candidate on these guard images (all if None): `cpu` as ONNX Runtime would, others simulated."""
        runner = Runner(model, optimise=encoding == "cpu")
        chosen = range(len(self)) if images is None else images
        equal, pixels, counted = 0, 0, []
        for index in chosen:
            (mask, overlap), (wanted, overlap_fp32) = self._answer(runner, index), self._reference[index]
            equal, pixels = equal + int(np.count_nonzero(mask == wanted)), pixels + mask.size
            counted.append((overlap, overlap_fp32))
        int8, fp32 = means(np.array(counted).sum(axis=0).transpose(1, 0, 2))[1]
        difference = float(int8 - fp32)
        return Measured(len(chosen), None if math.isnan(difference) else difference, equal / pixels)

    def milliseconds(self, model: onnx.ModelProto, beside: onnx.ModelProto | None = None) -> tuple[float, float]:
        """How long one model takes in ONNX Runtime, and another (None: fp32): medians of interleaved runs."""
        runners, batch = [Runner(model), Runner(beside or self._float)], self._frame(0)[0]
        elapsed: list[list[int]] = [[], []]
        for turn in range(_TIMED_RUNS + 2):
            for runner, times in zip(runners, elapsed, strict=True):
                begin = time.perf_counter_ns()
                runner.run({"pixels": batch}, ["logits"])
                if turn >= 2:
                    times.append(time.perf_counter_ns() - begin)
        return statistics.median(elapsed[0]) / 1e6, statistics.median(elapsed[1]) / 1e6

    def _read(self, index: int) -> tuple[Batch, Size]:
        frame = self._guard.frame(index)
        return self._preprocessor.prepare(frame).copy(), (frame.shape[0], frame.shape[1])

    def _answer(self, runner: Runner, index: int) -> tuple[ClassMap, Counts]:
        """A graph's mask of one image at network size, and its overlaps with the label, which are 0 without one."""
        batch, size = self._frame(index)
        logits = np.asarray(runner.run({"pixels": batch}, ["logits"])[0][0], np.float32)
        mask, classes = network_mask(self._manifest, logits), len(self._manifest.classes)
        if not self._guard.labelled:
            return mask, np.zeros((2, classes), np.int64)
        grid = decode.Grid(self._manifest.align_corners, self._preprocessor.region(size))
        wants = decode.Wants(probabilities=self._manifest.values == "probabilities")
        whole = decode.decode(logits, size, grid=grid, wants=wants).class_map
        return mask, overlaps(confusion(whole, self._guard.label(index, size), classes))
