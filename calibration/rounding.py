"""Weights as signed 8-bit integers: rounded one after the other, each making up for the error of those before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeseg.calibration.observe import Float64, Moments

LEVELS = 127
"""-127 to 127: symmetric, and a pair of products of a uint8 and an int8 does not saturate 16 bits by the extra -128."""
_DAMPING = 0.01
_BLOCK = 128


@dataclass(frozen=True, slots=True)
class IntWeights:
    """A layer's weights as integers: int8 `values` of the float weights' shape, float32 `scale` (O,), `bias` (O,).

    `bias` is the float one minus the mean of what rounding adds to the outputs.
    """

    values: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]


def round_weights(
    weight: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32],
    moments: Moments | None,
    *,
    per_channel: bool = True,
    second_order: bool = True,
    correct_bias: bool = True,
) -> IntWeights:
    """Quantize one layer's weights, float32 (O, I / groups, *kernel), to 255 symmetric levels.

    `second_order`: rounding minimises the error of the layer's outputs on the calibration images and not of its
    weights (Frantar et al., "GPTQ", 2023, Algorithm 1, after Hassibi and Stork's optimal brain surgeon); else to
    nearest. `correct_bias`: the bias absorbs the mean error that is left (Nagel et al., "Data-free quantization through
    weight equalization and bias correction", 2019, section 4.2, with means from images). Both need `moments`.
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    peak = np.abs(rows).max(axis=1) if per_channel else np.full(len(rows), np.abs(rows).max())
    # a channel of next to nothing becomes zeros on any scale, and this one leaves its bias fine steps
    scale = np.where(peak > 1e-20, peak / LEVELS, 1e-4).astype(np.float32)
    levels = rows / scale[:, None].astype(np.float64)
    if moments is not None and second_order:
        rounded = _whole(_in_turn(_by_block(levels, moments), moments.second), levels)
    else:
        rounded = _nearest(levels)
    corrected = bias.astype(np.float64)
    if moments is not None and correct_bias:
        error = _by_block((rounded - levels) * scale[:, None], moments) * moments.mean[:, None]
        corrected = corrected - _whole(error, levels).sum(axis=1)
    return IntWeights(rounded.astype(np.int8).reshape(weight.shape), scale, corrected.astype(np.float32))


def _by_block(rows: Float64, moments: Moments) -> Float64:
    """(O, K of all blocks of a group) as (blocks, O / groups, K)."""
    blocks, depth = moments.mean.shape
    parts = rows.shape[1] // depth
    blocked: Float64 = rows.reshape(blocks // parts, -1, parts, depth).swapaxes(1, 2)
    return blocked.reshape(blocks, -1, depth)


def _whole(blocked: Float64, rows: Float64) -> Float64:
    """What `_by_block` took apart, in the shape of `rows`."""
    parts = rows.shape[1] // blocked.shape[2]
    whole: Float64 = blocked.reshape(-1, parts, *blocked.shape[1:]).swapaxes(1, 2)
    return whole.reshape(rows.shape)


def _nearest(levels: Float64) -> Float64:
    return np.clip(np.rint(levels), -LEVELS, LEVELS)


def _in_turn(levels: Float64, second: Float64) -> Float64:
    """Round `levels` (groups, O, K) column by column, in order of falling input energy.

    With U the upper Cholesky factor of the inverse of `second` (groups, K, K), rounding column k by e changes the best
    values of the columns after it by -e U[k, k+1:] / U[k, k].
    """
    groups, _, depth = levels.shape
    energy = np.einsum("gkk->gk", second)
    order = np.argsort(-energy, axis=1, kind="stable")
    rows = np.arange(groups)[:, None]
    work = np.take_along_axis(levels, order[:, None, :], axis=2)
    matrix = second[rows[:, :, None], order[:, :, None], order[:, None, :]]
    damping = np.maximum(_DAMPING * energy.mean(axis=1), 1e-12)
    matrix[:, range(depth), range(depth)] += damping[:, None]
    upper = np.linalg.cholesky(np.linalg.inv(matrix)).transpose(0, 2, 1)
    done = np.empty_like(work)
    for begin in range(0, depth, _BLOCK):
        end = min(begin + _BLOCK, depth)
        errors = np.empty((*work.shape[:2], end - begin))
        for k in range(begin, end):
            done[..., k] = _nearest(work[..., k])
            error = (work[..., k] - done[..., k]) / upper[:, k, k, None]
            work[..., k:end] -= error[..., None] * upper[:, None, k, k:end]
            errors[..., k - begin] = error
        work[..., end:] -= np.matmul(errors, upper[:, begin:end, end:])
    result = np.empty_like(done)
    np.put_along_axis(result, np.broadcast_to(order[:, None, :], done.shape), done, axis=2)
    return result
