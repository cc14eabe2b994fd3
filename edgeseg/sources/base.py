"""What export needs of a network, wherever it comes from: a graph per output stride, and the original's own answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from edgeseg.types import ClassMap, Color, Image, Logits

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class Verdict:
    """The original's answer to one frame, beside the graph's.

    `logits` float32 (C, h', w') as the original computes them, or the graph's own where the original does not show
    them; `error` the largest difference at the point where the two can be compared, whose values are up to `scale`;
    `class_map` uint8 (h, w) the original's mask at the input's size.
    """

    logits: Logits
    error: float
    scale: float
    class_map: ClassMap


@dataclass(frozen=True, slots=True)
class OnnxReading:
    """How to understand an ONNX file: None means told by the file (layout by its shape, output the first).

    `color` is the channel order the file takes; `channels`, the number of classes, settles which axis is theirs.
    """

    layout: Literal["NCHW", "NHWC"] | None = None
    color: Color = "rgb"
    output: str | None = None
    channels: int | None = None


class Stage(Protocol):
    """One network at one output stride."""

    @property
    def output_stride(self) -> int: ...

    @property
    def align_corners(self) -> bool:
        """How its logits lie over its input; False: half-pixel centres."""

    @property
    def values(self) -> Literal["logits", "probabilities"]:
        """Probabilities where the network interpolates those, and not logits, up to its input's size."""

    @property
    def logits_shape(self) -> tuple[int, int, int]: ...

    def graph(self) -> onnx.ModelProto:
        """From `pixels` uint8 (N, h, w, 3) RGB to `logits` float32 (N, C, h', w'), weights inside."""

    def judge(self, pixels: Image, logits: Logits) -> Verdict:
        """Compare the graph's `logits` for one network-sized frame with what the original computes."""


class Source(Protocol):
    """A network to export. `reference` names what judges it; `producer` the packages and versions that made it."""

    reference: str
    producer: dict[str, str]

    def stages(self, output_strides: Sequence[int] | None) -> Iterator[Stage]:
        """The network at each of these output strides; None: at its own."""
