"""Shared Triton helper: mean and scale of rows held in registers, float32, and what their derivative needs.

``scale`` is what the backward saves: the reciprocal standard deviation of a layer norm, the root mean square of an RMS
norm (whose reciprocal with eps could not be undone exactly where the row is zero).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_statistics(x, in_row, D, eps, RMS: tl.constexpr):
    """``x [ROWS, BLOCK_D]`` float32, zero where not ``in_row`` -> mean and scale, ``[ROWS, 1]``.

    Two passes over registers: a large mean does not cancel.
    """
    if RMS:
        mean = tl.zeros([x.shape[0], 1], dtype=tl.float32)
        scale = tl.sqrt_rn(tl.sum(x * x, axis=1, keep_dims=True) / D)
    else:
        mean = tl.sum(x, axis=1, keep_dims=True) / D
        centred = tl.where(in_row, x - mean, 0.0)
        scale = reciprocal_deviation(tl.sum(centred * centred, axis=1, keep_dims=True), D, eps)
    return mean, scale


@triton.jit
def reciprocal_deviation(squares, D, eps):
    """From the sum of squared distances to the mean."""
    return tl.div_rn(1.0, tl.sqrt_rn(squares / D + eps))


@triton.jit
def factor_of(scale, eps, RMS: tl.constexpr):
    """What multiplies ``x - mean`` in the norm."""
    return tl.div_rn(1.0, scale + eps) if RMS else scale


@triton.jit
def projection_of(sum_wdy_xhat, scale, factor, D, RMS: tl.constexpr):
    """``c`` in ``dx = factor * (wdy - mean(wdy) - c * xhat)``, where ``wdy = gamma * dy`` (RMS: without the mean).

    It is 0 for a row of zeros, where the derivative of the root mean square is taken as zero.
    """
    c = sum_wdy_xhat / D
    if RMS:
        c /= tl.where(scale > 0, scale * factor, 1.0)
    return c
