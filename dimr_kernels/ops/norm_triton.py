"""Triton code that the norms share: row statistics, scale and shift in registers, the gradients of the gates.

``scale`` of a row is what the backward saves: the reciprocal standard deviation of a layer norm, the root mean square
of an RMS norm (whose reciprocal with eps could not be undone exactly where the row is zero).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launch, RowConfig, Tiling, cached_by_shape, ceil_div, launch_config, next_power_of_2
from .time_gate import GateParameters


@triton.jit
def divide(total, count):
    """Divide a float32 tensor by a whole number, correctly rounded: the constant row 3.0 has the mean 3.0.

    ``/`` compiles to a product with an approximate reciprocal, whose error in a mean grows with the mean. ``tl.div_rn``
    calls a subroutine, around which registers spill. Here reciprocal and quotient are each corrected by a remainder,
    which ``fma`` has exactly (Markstein 1990, for counts up to 2**22); a loop computes the reciprocal once.
    """
    count = count * 1.0
    reciprocal = 1.0 / count
    reciprocal = tl.fma(tl.fma(-count, reciprocal, 1.0), reciprocal, reciprocal)
    quotient = total * reciprocal
    corrected = tl.fma(tl.fma(-quotient, count, total), reciprocal, quotient)
    return tl.where(tl.abs(quotient) < float("inf"), corrected, quotient)


@triton.jit
def running_weight(i):
    """Return the weight of value ``i`` in a running mean, ``1 / (i + 1)``.

    Exact for the first value, which is then the mean of a constant row; later ones weigh differences from the mean.
    """
    return tl.where(i == 0, 1.0, 1.0 / (i + 1))


@triton.jit
def row_statistics(x, in_row, D, eps, RMS: tl.constexpr):
    """Compute mean and scale ``[ROWS, 1]`` of ``x [ROWS, BLOCK_D]`` float32, which is zero where not ``in_row``.

    Two passes over registers: a large mean does not cancel.
    """
    if RMS:
        mean = tl.zeros([x.shape[0], 1], dtype=tl.float32)
        scale = tl.sqrt_rn(divide(tl.sum(x * x, axis=1, keep_dims=True), D))
    else:
        mean = divide(tl.sum(x, axis=1, keep_dims=True), D)
        centred = tl.where(in_row, x - mean, 0.0)
        scale = reciprocal_deviation(tl.sum(centred * centred, axis=1, keep_dims=True), D, eps)
    return mean, scale


@triton.jit
def reciprocal_deviation(squares, D, eps):
    """Compute the reciprocal standard deviation from the sum of squared distances to the mean."""
    return tl.div_rn(1.0, tl.sqrt_rn(divide(squares, D) + eps))


@triton.jit
def factor_of(scale, eps, RMS: tl.constexpr):
    """Return the factor of ``x - mean`` in the norm."""
    return tl.div_rn(1.0, scale + eps) if RMS else scale


@triton.jit
def projection_of(sum_wdy_xhat, scale, factor, D, RMS: tl.constexpr):
    """Return ``c`` of ``dx = factor * (wdy - mean(wdy) - c * xhat)``, ``wdy = gamma * dy`` (RMS: without the mean).

    It is 0 for a row of zeros, where the derivative of the root mean square is taken as zero.
    """
    c = divide(sum_wdy_xhat, D)
    if RMS:
        c /= tl.where(scale > 0, scale * factor, 1.0)
    return c


@triton.jit
def gate_at(t, weight_ptr, offset_ptr, col, mask, GATE_STRIDE: tl.constexpr):
    """Load ``w`` and ``w t + o`` at columns ``col``, float32. GATE_STRIDE: 1 for a gate per channel, 0 for one."""
    weight = tl.load(weight_ptr + col * GATE_STRIDE, mask=mask, other=0.0).to(tl.float32)
    offset = tl.load(offset_ptr + col * GATE_STRIDE, mask=mask, other=0.0).to(tl.float32)
    return weight, weight * t + offset


@triton.jit
def shares(logit):
    """Compute ``s = sigmoid(logit)`` and ``1 - s``, both to full precision, which a subtraction would lose."""
    e = tl.exp(-tl.abs(logit))
    larger = 1.0 / (1.0 + e)
    smaller = e * larger
    return tl.where(logit < 0, smaller, larger), tl.where(logit < 0, larger, smaller)


@triton.jit
def mixed_at(t, first_ptr, second_ptr, weight_ptr, offset_ptr, col, mask, GATE_STRIDE: tl.constexpr):
    """Mix ``s first + (1 - s) second`` at columns ``col``, float32; two equal parameters give themselves."""
    _, logit = gate_at(t, weight_ptr, offset_ptr, col, mask, GATE_STRIDE)
    s = tl.sigmoid(logit)
    first = tl.load(first_ptr + col, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(second_ptr + col, mask=mask, other=0.0).to(tl.float32)
    return second + s * (first - second)


@triton.jit
def _store_column_sums(pointer, values, group_stride, col, in_row):
    if pointer is not None:
        total = tl.sum(values, axis=0, keep_dims=True)  # [1, BLOCK_D]
        at = tl.program_id(2).to(tl.int64) * group_stride + col
        tl.store(pointer + at, total.to(pointer.dtype.element_ty), mask=in_row)


@triton.jit
def _reduce_pair(
    partial_ptr, t_ptr, first_ptr, second_ptr, weight_ptr, offset_ptr, dfirst_ptr, dsecond_ptr, dweight_ptr,
    doffset_ptr, dt_ptr, R, D, chunks, t_stride, group_stride,
    GATE_STRIDE: tl.constexpr, ITERATIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sum one block of columns of the partials ``[R, D]`` over a group of rows, for one pair of parameters."""
    col = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    in_row = col < D
    first = tl.load(first_ptr + col, mask=in_row, other=0.0).to(tl.float32)
    second = tl.load(second_ptr + col, mask=in_row, other=0.0).to(tl.float32)
    dfirst = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)
    dsecond = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)
    dweight = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)
    doffset = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)
    for i in range(ITERATIONS):
        row = (tl.program_id(2) * ITERATIONS + i) * ROWS + tl.arange(0, ROWS)[:, None]
        t = tl.load(t_ptr + (row // chunks).to(tl.int64) * t_stride, mask=row < R, other=0.0).to(tl.float32)
        weight, logit = gate_at(t, weight_ptr, offset_ptr, col, in_row, GATE_STRIDE)
        s, rest = shares(logit)
        g = tl.load(partial_ptr + row.to(tl.int64) * D + col, mask=(row < R) & in_row, other=0.0)
        g_first = tl.where(row < R, s * g, 0.0)  # zero times an infinite parameter is not
        g_gate = tl.where(row < R, g_first * rest * (first - second), 0.0)
        dfirst += g_first
        dsecond += tl.where(row < R, rest * g, 0.0)
        dweight += t * g_gate
        doffset += g_gate
        if dt_ptr is not None:
            dt = tl.sum(weight * g_gate, axis=1, keep_dims=True)  # [ROWS, 1]
            tl.store(dt_ptr + tl.program_id(0).to(tl.int64) * R + row, dt, mask=row < R)
    _store_column_sums(dfirst_ptr, dfirst, group_stride, col, in_row)
    _store_column_sums(dsecond_ptr, dsecond, group_stride, col, in_row)
    _store_column_sums(dweight_ptr, dweight, group_stride, col, in_row)
    _store_column_sums(doffset_ptr, doffset, group_stride, col, in_row)


@triton.jit
def _time_gate_reduce_kernel(
    scale_partial_ptr, shift_partial_ptr, t_ptr,
    p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr, p3_ptr, p4_ptr, shift_weight_ptr, shift_offset_ptr,
    dp1_ptr, dp2_ptr, dscale_weight_ptr, dscale_offset_ptr, dp3_ptr, dp4_ptr, dshift_weight_ptr, dshift_offset_ptr,
    scale_dt_ptr, shift_dt_ptr, R, D, chunks, t_stride, group_stride,
    SCALE_GATE: tl.constexpr, SHIFT_GATE: tl.constexpr, ITERATIONS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    if tl.program_id(1) == 0:
        _reduce_pair(
            scale_partial_ptr, t_ptr, p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr, dp1_ptr, dp2_ptr,
            dscale_weight_ptr, dscale_offset_ptr, scale_dt_ptr, R, D, chunks, t_stride, group_stride,
            SCALE_GATE, ITERATIONS, ROWS, BLOCK_D,
        )  # fmt: skip
    elif shift_partial_ptr is not None:
        _reduce_pair(
            shift_partial_ptr, t_ptr, p3_ptr, p4_ptr, shift_weight_ptr, shift_offset_ptr, dp3_ptr, dp4_ptr,
            dshift_weight_ptr, dshift_offset_ptr, shift_dt_ptr, R, D, chunks, t_stride, group_stride,
            SHIFT_GATE, ITERATIONS, ROWS, BLOCK_D,
        )  # fmt: skip


# 16 partials per thread beside four sums of as many. Narrow blocks where the width is small, since the blocks are most
# of the parallelism there is.
@launch_config("time_gate_reduce")
def reduce_config(D: int) -> RowConfig:
    columns = 32 if D <= 2048 else 128 if D <= 16384 else 256
    return RowConfig(elements=2048, columns=columns, max_tiles=8, num_warps=4)


def reduce_tiling(R: int, D: int) -> tuple[Tiling, int]:
    """Divide partials ``[R, D]`` into tiles; returns them and the number of groups of rows, summed side by side."""
    config = reduce_config(D)
    columns = config.tile_width(D)
    rows = min(config.elements // columns, next_power_of_2(max(R, 1)))
    tiles = max(ceil_div(R, rows), 1)
    # A power of two, so that a change of the batch seldom compiles another kernel.
    iterations = min(next_power_of_2(tiles), config.max_tiles)
    return Tiling(columns, rows, iterations, config.num_warps), ceil_div(tiles, iterations)


def row_warps(D: int) -> int:
    """Return the number of warps for whole rows: more for wider ones, so that a thread holds about as much."""
    return 4 if D <= 2048 else 8 if D <= 4096 else 16


def dense(gates: GateParameters) -> GateParameters:
    """Copy parameters that are not contiguous; the kernels read them as contiguous."""
    return GateParameters._make([v if v is None or v.is_contiguous() else v.contiguous() for v in gates])


def gate_widths(gates: GateParameters) -> tuple[int, int]:
    """Return the widths of the gates of scale and shift: D, 1 for a scalar gate, 0 where there is no shift."""
    shift_weight = gates.shift_gate_weight
    return gates.scale_gate_weight.shape[0], 0 if shift_weight is None else shift_weight.shape[0]


def gate_gradients(
    partials: Tensor, chunks: int, t: Tensor, gates: GateParameters, needs_t: bool, needs_gates: GateParameters
) -> tuple[Tensor | None, GateParameters]:
    """Reduce partial sums of dgamma and dbeta to the gradients of t and of the gates; the same bits every time.

    Args:
        partials: ``[1 or 2, R, D]`` float32, of gamma and (where there is a shift) of beta. Row ``r`` belongs to the
            timestep ``r // chunks``, or to the only one.
        t: ``[T]``.
        gates: a gate's weight and offset have the same shape, ``[D]`` or ``[1]``.
        needs_t, needs_gates: which gradients to compute.

    Returns:
        The gradients of t and of the gates, each in its tensor's shape and dtype, or None.
    """
    kinds, R, D = partials.shape
    groups, blocks, launch = _reduce_launch(kinds, R, D, chunks, t.shape[0], t.stride(0), *gate_widths(gates))
    sums = [
        torch.empty((groups, D), dtype=_sum_dtype(v, D, groups), device=v.device) if need else None
        for v, need in zip(gates, needs_gates, strict=True)
    ]
    dt = torch.empty((kinds, blocks, R), dtype=torch.float32, device=t.device) if needs_t else None
    dt_of_kind = (None, None) if dt is None else (dt[0], dt[-1])
    launch(partials[0], partials[1] if kinds == 2 else None, t, *gates, *sums, *dt_of_kind)
    gradients = [None if s is None else _in_shape_of(v, s) for s, v in zip(sums, gates, strict=True)]
    return _time_gradient(dt, t), GateParameters._make(gradients)


@cached_by_shape
def _reduce_launch(kinds, R, D, chunks, T, t_stride, scale_gate, shift_gate) -> tuple[int, int, Launch]:
    """Return the number of groups of partials and of blocks of columns, and the launch."""
    tiling, groups = reduce_tiling(R, D)
    blocks = ceil_div(D, tiling.columns)
    launch = Launch(
        _time_gate_reduce_kernel,
        (blocks, kinds, groups),
        (R, D, chunks, 0 if T == 1 else t_stride, D),
        {
            "SCALE_GATE": int(scale_gate == D), "SHIFT_GATE": int(shift_gate == D), "ITERATIONS": tiling.iterations,
            "ROWS": tiling.rows, "BLOCK_D": tiling.columns,
        },
        num_warps=tiling.num_warps,
    )  # fmt: skip
    return groups, blocks, launch


def _sum_dtype(v: Tensor, D: int, groups: int) -> torch.dtype:
    """Return v's dtype where the kernel writes the gradient itself, float32 where sums remain to be added."""
    return v.dtype if groups == 1 and v.shape[0] == D else torch.float32


def _in_shape_of(v: Tensor, sums: Tensor) -> Tensor:
    """Add up ``sums [groups, D]`` to v's shape and dtype; a scalar gate collects every channel's."""
    if sums.shape[1] != v.shape[0]:
        return sums.sum().reshape(1).to(v.dtype)
    return sums[0] if sums.shape[0] == 1 else sums.sum(0).to(v.dtype)


def _time_gradient(dt: Tensor | None, t: Tensor) -> Tensor | None:
    """Add up ``dt [kinds, blocks, R]`` to ``[T]``."""
    if dt is None:
        return None
    kinds, blocks, R = dt.shape
    T = t.shape[0]
    return dt.view(kinds * blocks, T, R // max(T, 1)).sum((0, 2)).to(t.dtype)


TABLE_BLOCK = 1024


@triton.jit
def _td_norm_table_kernel(
    table_ptr, t_ptr, p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr, p3_ptr, p4_ptr, shift_weight_ptr,
    shift_offset_ptr, D, blocks, t_stride,
    SCALE_GATE: tl.constexpr, SHIFT_GATE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write gamma and beta ``[T, 1 or 2, D]`` float32."""
    b = (tl.program_id(0) // blocks).to(tl.int64)
    col = (tl.program_id(0) % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_row = col < D
    t = tl.load(t_ptr + b * t_stride).to(tl.float32)
    gamma = mixed_at(t, p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr, col, in_row, SCALE_GATE)
    if p3_ptr is not None:
        beta = mixed_at(t, p3_ptr, p4_ptr, shift_weight_ptr, shift_offset_ptr, col, in_row, SHIFT_GATE)
        tl.store(table_ptr + (2 * b) * D + col, gamma, mask=in_row)
        tl.store(table_ptr + (2 * b + 1) * D + col, beta, mask=in_row)
    else:
        tl.store(table_ptr + b * D + col, gamma, mask=in_row)


def modulation_table(t: Tensor, gates: GateParameters, D: int) -> Tensor:
    """Compute gamma, and beta where there is a shift, for kernels of wide rows: ``[T, 1 or 2, D]`` float32."""
    T = t.shape[0]
    table = torch.empty((T, 1 if gates.p3 is None else 2, D), dtype=torch.float32, device=t.device)
    _table_launch(D, T, t.stride(0), *gate_widths(gates))(table, t, *gates)
    return table


@cached_by_shape
def _table_launch(D, T, t_stride, scale_gate, shift_gate) -> Launch:
    blocks = ceil_div(D, TABLE_BLOCK)
    numbers = D, blocks, 0 if T == 1 else t_stride
    constants = {"SCALE_GATE": int(scale_gate == D), "SHIFT_GATE": int(shift_gate == D), "BLOCK_D": TABLE_BLOCK}
    return Launch(_td_norm_table_kernel, (T * blocks,), numbers, constants)
