"""Triton helpers of the time gate: scale and shift in registers, and the gradients of all that made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configurations import Row, Table
from ..launch import Launch, cached_by_shape, ceil_div, next_power_of_2


@triton.jit
def gate_at(t, weight_ptr, offset_ptr, col, mask, GATE_STRIDE: tl.constexpr):
    """``w`` and ``w t + o`` at columns ``col``, float32. GATE_STRIDE: 1 for a gate per channel, 0 for one."""
    weight = tl.load(weight_ptr + col * GATE_STRIDE, mask=mask, other=0.0).to(tl.float32)
    offset = tl.load(offset_ptr + col * GATE_STRIDE, mask=mask, other=0.0).to(tl.float32)
    return weight, weight * t + offset


@triton.jit
def shares(logit):
    """``s = sigmoid(logit)`` and ``1 - s``, both to their last digits, where a subtraction would lose some."""
    e = tl.exp(-tl.abs(logit))
    larger = 1.0 / (1.0 + e)
    smaller = e * larger
    return tl.where(logit < 0, smaller, larger), tl.where(logit < 0, larger, smaller)


@triton.jit
def mixed_at(t, first_ptr, second_ptr, weight_ptr, offset_ptr, col, mask, GATE_STRIDE: tl.constexpr):
    """``s first + (1 - s) second`` at columns ``col``, float32; two equal parameters give themselves."""
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
    """One block of columns of one pair of parameters: sums over a group of rows of the partials ``[R, D]``."""
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


@dataclass(frozen=True)
class ReduceConfig:
    columns: int
    rows: int
    iterations: int
    groups: int
    num_warps: int


@dataclass(frozen=True)
class Reduction:
    """How partials are dealt out: a program adds up tiles of rows of one block of columns."""

    columns: int
    elements: int
    """Of a tile."""
    longest: int
    """Tiles that one program adds up; where there are more, groups of rows are summed side by side."""
    num_warps: int


# 16 partials per thread beside four sums of as many. Narrow blocks where the width is small, since the blocks are most
# of the parallelism there is.
REDUCE = Table(
    "time_gate_reduce",
    rows=(
        Row(Reduction(32, elements=2048, longest=8, num_warps=4), up_to=2048),
        Row(Reduction(128, elements=2048, longest=8, num_warps=4), up_to=16384),
        Row(Reduction(256, elements=2048, longest=8, num_warps=4)),
    ),
    candidates=lambda D, family: [
        Reduction(columns, elements, longest, num_warps=4)
        for columns in (32, 64, 128)
        for elements in (1024, 2048)
        for longest in (2, 8, 32)
    ],
)


def reduce_config(R: int, D: int) -> ReduceConfig:
    how = REDUCE.choose(D)
    columns = min(next_power_of_2(D), how.columns)
    rows = min(how.elements // columns, next_power_of_2(max(R, 1)))
    tiles = max(ceil_div(R, rows), 1)
    # A power of two, so that a change of the batch seldom compiles another kernel.
    iterations = min(next_power_of_2(tiles), how.longest)
    return ReduceConfig(columns, rows, iterations, ceil_div(tiles, iterations), how.num_warps)


def dense(gates: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The kernels read parameters as contiguous."""
    return [v if v is None or v.is_contiguous() else v.contiguous() for v in gates]


def gate_widths(gates: Sequence[Tensor | None]) -> tuple[int, int]:
    """Of the gates of scale and shift: D for a gate per channel, 1 for a scalar one, 0 where there is no shift."""
    scale_weight, shift_weight = gates[2], gates[6]
    return scale_weight.shape[0], 0 if shift_weight is None else shift_weight.shape[0]  # type: ignore[union-attr]


def gate_gradients(
    partials: Tensor, chunks: int, t: Tensor, gates: Sequence[Tensor | None], needs: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients from partial sums of those of gamma and beta; the same bits every time.

    Args:
        partials: ``[1 or 2, R, D]`` float32, of gamma and (where there is a shift) of beta. Row ``r`` belongs to the
            timestep ``r // chunks``, or to the only one.
        t: ``[T]``.
        gates: p1, p2, scale_gate_weight, scale_gate_offset, p3, p4, shift_gate_weight, shift_gate_offset; the last
            four None where there is no shift. The gate's weight and offset have the same shape, ``[D]`` or ``[1]``.
        needs: whether t, then each of ``gates``, wants its gradient.

    Returns:
        One gradient in its tensor's shape and dtype, or None, for t and each of ``gates``.
    """
    kinds, R, D = partials.shape
    groups, blocks, launch = _reduce_launch(kinds, R, D, chunks, t.shape[0], t.stride(0), *gate_widths(gates))
    sums = [
        torch.empty((groups, D), dtype=_sum_dtype(v, D, groups), device=v.device) if need else None
        for v, need in zip(gates, needs[1:], strict=True)
    ]
    dt = torch.empty((kinds, blocks, R), dtype=torch.float32, device=t.device) if needs[0] else None
    dt_of_kind = (None, None) if dt is None else (dt[0], dt[-1])
    launch(partials[0], partials[1] if kinds == 2 else None, t, *gates, *sums, *dt_of_kind)
    gradients = [None if s is None else _of_shape(s, v) for s, v in zip(sums, gates, strict=True)]
    return [_time_gradient(dt, t), *gradients]


@cached_by_shape
def _reduce_launch(kinds, R, D, chunks, T, t_stride, scale_gate, shift_gate) -> tuple[int, int, Launch]:
    """Groups of partials, blocks of columns, and the launch."""
    config = reduce_config(R, D)
    blocks = ceil_div(D, config.columns)
    launch = Launch(
        _time_gate_reduce_kernel,
        (blocks, kinds, config.groups),
        (R, D, chunks, 0 if T == 1 else t_stride, D),
        {
            "SCALE_GATE": int(scale_gate == D), "SHIFT_GATE": int(shift_gate == D), "ITERATIONS": config.iterations,
            "ROWS": config.rows, "BLOCK_D": config.columns,
        },
        num_warps=config.num_warps,
    )  # fmt: skip
    return config.groups, blocks, launch


def _sum_dtype(v: Tensor, D: int, groups: int) -> torch.dtype:
    """The kernel writes the gradient itself where nothing remains to be added."""
    return v.dtype if groups == 1 and v.shape[0] == D else torch.float32


def _of_shape(sums: Tensor, v: Tensor) -> Tensor:
    """``sums [groups, D]`` -> v's shape and dtype; a scalar gate collects every channel's."""
    if sums.shape[1] != v.shape[0]:
        return sums.sum().reshape(1).to(v.dtype)
    return sums[0] if sums.shape[0] == 1 else sums.sum(0).to(v.dtype)


def _time_gradient(dt: Tensor | None, t: Tensor) -> Tensor | None:
    """``dt [kinds, blocks, R]`` -> ``[T]``."""
    if dt is None:
        return None
    kinds, blocks, R = dt.shape
    T = t.shape[0]
    return dt.view(kinds * blocks, T, R // max(T, 1)).sum((0, 2)).to(t.dtype)
