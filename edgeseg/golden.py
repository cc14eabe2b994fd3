"""Comparing what a session answers with the bundle's golden frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeseg import decode
from edgeseg.backends.base import Session
from edgeseg.bundle import Bundle, Golden
from edgeseg.errors import GoldenError
from edgeseg.manifest import TOLERANCES, Manifest, Tolerance, Variant
from edgeseg.types import ClassMap, Logits, Precision

_QUANTIZATION = 2.0
"""How many times quantization's own distance from fp32 a runtime may stray; 1.3 was seen, on networks of noise."""


@dataclass(frozen=True, slots=True)
class GoldenResult:
    """How far an answer to one golden frame strays: logits by a share of their scale, masks by equal pixels."""

    error: float
    agreement: float
    tolerance: Tolerance

    @property
    def ok(self) -> bool:
        """Within the tolerance, which NaN is not."""
        return self.error <= self.tolerance.logits and self.agreement >= self.tolerance.mask_agreement


def compare_golden(
    bundle: Bundle, variant: Variant, session: Session, precision: Precision, index: int = 0
) -> GoldenResult:
    """Run one golden frame and compare with the logits and mask it should give; `precision` picks the tolerance.

    An int8 variant may stray twice as far as quantization itself does from fp32 on this frame, if that is more: what
    amplifies the rounding of weights and ranges amplifies that of a runtime's order of operations too. How much such a
    network loses, its certificate says.
    """
    golden = bundle.golden(variant, index)
    tolerance = bundle.manifest.golden.tolerances.get(precision, TOLERANCES[precision])
    found = session.run(golden.frame[None])[0]
    error, agreement = _distance(golden, found, network_mask(bundle.manifest, found))
    floating = [
        v for v in bundle.manifest.variants if (v.output_stride, v.encoding) == (variant.output_stride, "float")
    ]
    if variant.precision == "int8" and floating:
        floats = bundle.golden(floating[0], index)
        lost, equal = _distance(golden, floats.logits, floats.class_map)
        tolerance = Tolerance(
            max(tolerance.logits, _QUANTIZATION * lost), min(tolerance.mask_agreement, 1 - _QUANTIZATION * (1 - equal))
        )
    return GoldenResult(error, agreement, tolerance)


def _distance(golden: Golden, logits: Logits, class_map: ClassMap) -> tuple[float, float]:
    """The largest difference of logits as a share of the golden ones' scale, and the share of equal mask pixels."""
    scale = float(np.abs(golden.logits).max()) or 1.0
    error = float(np.abs(logits - golden.logits).max()) / scale if logits.shape == golden.logits.shape else np.inf
    return error, float(np.mean(class_map == golden.class_map))


def check_golden(bundle: Bundle, variant: Variant, session: Session, precision: Precision, index: int = 0) -> None:
    """Run one golden frame and raise GoldenError where the answer strays beyond the tolerance."""
    result = compare_golden(bundle, variant, session, precision, index)
    if not result.ok:
        info, tolerance = session.describe(), result.tolerance
        oracle = "what torch did" if variant.precision != "int8" else "the int8 graph rightly"
        raise GoldenError(
            f"{info.runtime} on {info.device_name} does not compute {oracle}: golden frame {index} at output stride "
            f"{variant.output_stride} has logits off by {result.error:.2%} of their scale (limit "
            f"{tolerance.logits:.2%}) and {result.agreement:.3%} equal mask pixels (limit "
            f"{tolerance.mask_agreement:.2%}): use another backend or precision"
        )


def network_mask(manifest: Manifest, logits: Logits) -> ClassMap:
    """The class map (h, w) at the network's own size of one frame's logits (C, h', w')."""
    wants = decode.Wants(probabilities=manifest.values == "probabilities")
    grid = decode.Grid(manifest.align_corners)
    return decode.decode(logits, manifest.preprocess.input_size, grid=grid, wants=wants).class_map
