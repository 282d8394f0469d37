"""Triton kernels of GeGLU: elementwise forward and backward, and a matrix product with GeGLU in its epilogue.

The elementwise kernels take one pass over rows of any stride.

In the product ``x @ weight.T + bias`` is gated in registers and never written. A program's tile holds ``BLOCK_N``
outputs, so ``2 * BLOCK_N`` columns of the product: a block of the gate's, then the same block of the value's, so
torch's own layout of the weight is read as it lies. Both halves of an output end in one thread, and taking them apart
costs no instruction. Compiled for sm_90 (128 x 128 outputs, 8 warps), the halves side by side took 187 registers and
1760 instructions; rows interleaved in pairs 190 and 1800; two accumulators 249 and 1984, with twice as many products
of half the width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import (
    Launch,
    LaunchConfig,
    RowConfig,
    cached_by_shape,
    ceil_div,
    gpu_family,
    launch_config,
    next_power_of_2,
    row_stride,
)


@triton.jit
def _upper_tail(z):
    """Approximate ``Phi(-z)`` for ``0 <= z <= 16`` by ``2**P(z)``.

    P is the minimax polynomial of ``log2 Phi(-z)`` on [0, 5.6]. The relative error is at most
    5.6e-6 there; beyond, P falls on, so that the tail (under 1e-8) goes to zero.
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
    """Gelu for results that are rounded to float16 or bfloat16: 13 instructions, against 34 with tl.erf.

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
    """Gelu in float32. SHORT: the result will be rounded to 16 bits."""
    if SHORT:
        out = short_gelu(a, TANH)
    else:
        out, _ = gelu_and_slope(a, TANH, SHORT)
    return out


@triton.jit
def gelu_and_slope(a, TANH: tl.constexpr, SHORT: tl.constexpr):
    """Gelu and its derivative in float32. SHORT: both will be rounded to 16 bits."""
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


@triton.jit
def _tile(rows, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Row and column numbers of this program's tile, and its mask. Rows are int64: row * stride may exceed 2**31."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    return row, col, (row < rows) & (col < D)


@triton.jit
def _geglu_fwd_kernel(
    gate_ptr, value_ptr, out_ptr, rows, D, gate_stride, value_stride,
    TANH: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row, col, mask = _tile(rows, D, ROWS, BLOCK_D)
    a = tl.load(gate_ptr + row * gate_stride + col, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(value_ptr + row * value_stride + col, mask=mask, other=0.0).to(tl.float32)
    SHORT: tl.constexpr = out_ptr.dtype.element_ty != tl.float32
    tl.store(out_ptr + row * D + col, (gelu(a, TANH, SHORT) * b).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _geglu_bwd_kernel(
    grad_ptr, gate_ptr, value_ptr, dgate_ptr, dvalue_ptr, rows, D, gate_stride, value_stride, dgate_stride,
    dvalue_stride, TANH: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row, col, mask = _tile(rows, D, ROWS, BLOCK_D)
    a = tl.load(gate_ptr + row * gate_stride + col, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(value_ptr + row * value_stride + col, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad_ptr + row * D + col, mask=mask, other=0.0).to(tl.float32)
    SHORT: tl.constexpr = dgate_ptr.dtype.element_ty != tl.float32
    value, slope = gelu_and_slope(a, TANH, SHORT)
    tl.store(dgate_ptr + row * dgate_stride + col, (g * b * slope).to(dgate_ptr.dtype.element_ty), mask=mask)
    tl.store(dvalue_ptr + row * dvalue_stride + col, (g * value).to(dvalue_ptr.dtype.element_ty), mask=mask)


# 16 to 32 elements per thread, so that four or more 16-byte loads are in flight.
@launch_config("geglu_fwd")
def forward_config(D: int) -> RowConfig:
    return RowConfig(elements=4096, columns=1024, num_warps=4)


@launch_config("geglu_bwd")
def backward_config(D: int) -> RowConfig:
    return RowConfig(elements=4096, columns=1024, num_warps=4)


def tile_shape(D: int, config: RowConfig) -> tuple[int, int]:
    """Return rows and columns of a tile: the widest block of columns that leaves at most an eighth of the lanes idle.

    Two blocks of 1024 columns for D = 1152 would use 56% of theirs.
    """
    columns = next_power_of_2(D) if config.columns is None else min(next_power_of_2(D), config.columns)
    while columns > 128 and 7 * ceil_div(D, columns) * columns > 8 * D:
        columns //= 2
    return max(1, config.elements // columns), columns


def forward(gate: Tensor, value: Tensor, approximate: str) -> Tensor:
    """Compute GeGLU of ``gate, value [..., D]``, each with rows at equal distances (``with_even_rows``)."""
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if out.numel():
        _launch(gate.shape, (gate.stride(), value.stride()), approximate)(gate, value, out)
    return out


def backward(grad: Tensor, gate: Tensor, value: Tensor, dgate: Tensor, dvalue: Tensor, approximate: str) -> None:
    """Write the gradients into ``dgate`` and ``dvalue`` ``[..., D]``, which may be halves of one tensor."""
    if gate.numel():
        strides = gate.stride(), value.stride(), dgate.stride(), dvalue.stride()
        launch = _launch(gate.shape, strides, approximate, backward=True)
        launch(grad.contiguous(), gate, value, dgate, dvalue)


@cached_by_shape
def _launch(shape, strides, approximate, backward=False) -> Launch:
    rows, D = math.prod(shape[:-1]), shape[-1]
    config = (backward_config if backward else forward_config)(D)
    tile_rows, columns = tile_shape(D, config)
    return Launch(
        _geglu_bwd_kernel if backward else _geglu_fwd_kernel,
        (ceil_div(rows, tile_rows), ceil_div(D, columns)),
        (rows, D, *(row_stride(shape, s) for s in strides)),
        {"TANH": approximate == "tanh", "ROWS": tile_rows, "BLOCK_D": columns},
        num_warps=config.num_warps,
    )


@triton.jit
def _product_tile(M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Number programs down ``GROUP_M`` tiles, then along the columns, so that programs that run together share L2."""
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group, place = tl.program_id(0) // (GROUP_M * tiles_n), tl.program_id(0) % (GROUP_M * tiles_n)
    rows = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    return group * GROUP_M + place % rows, place // rows


@triton.jit(do_not_specialize=["M"])
def _geglu_linear_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, M, N, K, x_stride, weight_stride,
    TANH: tl.constexpr, GATE_FIRST: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    tile_m, tile_n = _product_tile(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    # int64: row * stride may exceed 2**31. Rows and columns beyond the last read the last one and are not stored.
    m = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.arange(0, 2 * BLOCK_N)
    weight_row = (j // BLOCK_N).to(tl.int64) * N + tl.minimum(tile_n * BLOCK_N + j % BLOCK_N, N - 1)
    k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + tl.minimum(m, M - 1)[:, None] * x_stride + k[None, :]  # [BLOCK_M, BLOCK_K]
    weight_ptrs = weight_ptr + weight_row[None, :] * weight_stride + k[:, None]  # [BLOCK_K, 2 * BLOCK_N]
    h = tl.zeros((BLOCK_M, 2 * BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            x, weight = tl.load(x_ptrs), tl.load(weight_ptrs)
        else:
            x = tl.load(x_ptrs, mask=k[None, :] < K - start, other=0.0)
            weight = tl.load(weight_ptrs, mask=k[:, None] < K - start, other=0.0)
        h = tl.dot(x, weight, h)
        x_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K
    if bias_ptr is not None:
        h += tl.load(bias_ptr + weight_row).to(tl.float32)[None, :]
    first, second = h.reshape(BLOCK_M, 2, BLOCK_N).permute(0, 2, 1).split()
    out = short_gelu(first, TANH) * second if GATE_FIRST else short_gelu(second, TANH) * first
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    out_ptrs = out_ptr + m[:, None] * N + n[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


@dataclass(frozen=True, kw_only=True)
class MatmulConfig(LaunchConfig):
    """Launch configuration of a matrix product."""

    block_m: int
    block_n: int
    """Outputs of a tile; its part of the product is twice as wide."""
    block_k: int
    group_m: int
    """Tiles of rows that share a column's weights in L2."""
    num_stages: int


@launch_config("geglu_linear")
def linear_config(N: int) -> MatmulConfig:
    if gpu_family() == 90:  # the widest wgmma, whose operands strain L2 least
        return MatmulConfig(block_m=128, block_n=128, block_k=64, group_m=8, num_warps=8, num_stages=3)
    # Two programs share an SM of 8.0, so one's products cover the other's epilogue; it also fits the 99 KB of shared
    # memory of 8.6, 8.9 and 12.0.
    return MatmulConfig(block_m=128, block_n=64, block_k=32, group_m=8, num_warps=4, num_stages=4)


def _unit_last_stride(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 or x.shape[1] <= 1 else x.contiguous()


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None, approximate: str, gate_first: bool) -> Tensor:
    """Multiply and gate: ``x [M, K]``, ``weight [2N, K]`` (rows may be strided), ``bias [2N]`` -> ``[M, N]``."""
    (M, K), N = x.shape, weight.shape[0] // 2
    out = torch.empty((M, N), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    x, weight = _unit_last_stride(x), _unit_last_stride(weight)
    launch = _linear_launch(M, N, K, x.stride(0), weight.stride(0), approximate == "tanh", gate_first)
    launch(x, weight, None if bias is None else bias.contiguous(), out)
    return out


@cached_by_shape
def _linear_launch(M, N, K, x_stride, weight_stride, tanh, gate_first) -> Launch:
    config = linear_config(N)
    return Launch(
        _geglu_linear_fwd_kernel,
        (ceil_div(M, config.block_m) * ceil_div(N, config.block_n),),
        (M, N, K, x_stride, weight_stride),
        {
            "TANH": tanh, "GATE_FIRST": gate_first, "EVEN_K": K % config.block_k == 0, "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "GROUP_M": config.group_m,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )  # fmt: skip
