"""Shared Triton helper: gelu and its slope, float32, in few instructions."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _upper_tail(z):
    """``Phi(-z)`` for ``0 <= z <= 16`` as ``2**P(z)``, P the minimax polynomial of ``log2 Phi(-z)`` on [0, 5.6].

    Its relative error is at most 5.6e-6 there; beyond, P falls on, so that the tail (under 1e-8) goes to zero.
    """
    p = tl.fma(z, -1.80987138e-06, 6.11773939e-05)
    p = tl.fma(z, p, -9.27784946e-04)
    p = tl.fma(z, p, 8.49923864e-03)
    p = tl.fma(z, p, -5.39464094e-02)
    p = tl.fma(z, p, -4.58474338e-01)
    p = tl.fma(z, p, -1.15124846e00)
    p = tl.fma(z, p, -9.99995410e-01)
    return tl.exp2(p)


@triton.jit
def _short_gelu_and_tail(a):
    z = tl.minimum(tl.abs(a), 16.0)  # an infinite a must not meet a zero
    tail = _upper_tail(z)
    return tl.fma(-z, tail, tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL)), tail


@triton.jit
def short_gelu(a, TANH: tl.constexpr):
    """For results that are rounded to float16 or bfloat16: 13 instructions where tl.erf makes it 34.

    Exact form: ``max(a, 0) - |a| Phi(-|a|)``. Relative error at most 5.6e-6 on [-5.6, 5.6] (float16 rounds at 5e-4,
    bfloat16 at 4e-3), absolute error 5.6e-7.
    """
    if TANH:
        # 0.5 (1 + tanh(u)) = 1 / (1 + 2**(-2 u log2(e))), with u = sqrt(2/pi) (a + 0.044715 a^3).
        return a / (1.0 + tl.exp2(a * tl.fma(-0.1029432397, a * a, -2.3022081984)))
    gelu, _ = _short_gelu_and_tail(a)
    return gelu


@triton.jit
def gelu(a, TANH: tl.constexpr, SHORT: tl.constexpr):
    """SHORT: the result will be rounded to 16 bits."""
    if SHORT:
        out = short_gelu(a, TANH)
    else:
        out, _ = gelu_and_slope(a, TANH, SHORT)
    return out


@triton.jit
def gelu_and_slope(a, TANH: tl.constexpr, SHORT: tl.constexpr):
    """gelu(a) and its derivative. SHORT: both will be rounded to 16 bits."""
    if TANH:
        inner = 0.7978845608028654 * (a + 0.044715 * a * a * a)
        # tanh through a sigmoid of a non-positive number: exact at both ends, no overflow.
        e = tl.exp(-2.0 * tl.abs(inner))
        magnitude = (1.0 - e) / (1.0 + e)
        tanh = tl.where(inner < 0, -magnitude, magnitude)
        cdf = 0.5 * (1.0 + tanh)
        slope = cdf + 0.5 * a * (1.0 - tanh * tanh) * 0.7978845608028654 * (1.0 + 0.134145 * a * a)
        value = a * cdf
    else:
        if SHORT:
            value, tail = _short_gelu_and_tail(a)
            cdf = tl.where(a < 0, tail, 1.0 - tail)
        else:
            cdf = 0.5 * (1.0 + tl.erf(a * 0.7071067811865476))
            value = a * cdf
        slope = cdf + a * 0.3989422804014327 * tl.exp2(-0.7213475204444817 * a * a)
    return value, slope
