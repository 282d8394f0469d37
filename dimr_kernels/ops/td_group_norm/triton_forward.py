"""Forward kernels: moments of every channel over chunks of pixels, a group's statistics from them, and the norm.

A group's channels are few and lie side by side, its pixels many and far apart: so programs take whole pixels, keep
each channel's moments apart, and a small kernel joins those of a group. x is read twice, with the statistics between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configurations import Row, Table
from ..launch import Launch, cached_by_shape, ceil_div
from ..row_statistics import reciprocal_deviation
from ..samples import Columns, Samples, Tiling, Walk, column_candidates, column_tiling, row_strides, with_rows
from ..time_gate.triton import dense, gate_widths, mixed_at


@triton.jit
def _td_group_norm_moments_kernel(
    x_ptr, moments_ptr, N, C, chunks, x_stride_b, x_stride_n, half,
    ITERATIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Of a chunk's pixels, by channel: the mean, and the sum of squared distances to it. ``moments [2, R, C]``.

    ``half``: elements of each of the two. R times C may not fit in 32 bits.
    """
    b = (tl.program_id(0) // chunks).to(tl.int64)
    first = (tl.program_id(0) % chunks).to(tl.int64) * ITERATIONS * ROWS
    lane = tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    lane_mean = tl.zeros([ROWS, BLOCK_C], dtype=tl.float32)
    lane_squares = tl.zeros([ROWS, BLOCK_C], dtype=tl.float32)
    for i in range(ITERATIONS):  # Welford's update in every lane: a large mean does not cancel
        n = first + i * ROWS + lane
        mask = (n < N) & (col < C)
        x = tl.load(x_ptr + b * x_stride_b + n * x_stride_n + col, mask=mask, other=0.0).to(tl.float32)
        distance = tl.where(mask, x - lane_mean, 0.0)
        lane_mean += distance * (1.0 / (i + 1))
        lane_squares += distance * (x - lane_mean)
    # Chan's merge of the lanes; the last chunk may not reach them all.
    seen = tl.maximum(tl.minimum((N - first - lane + ROWS - 1) // ROWS, ITERATIONS), 0).to(tl.float32)  # [ROWS, 1]
    mean = tl.sum(seen * lane_mean, axis=0, keep_dims=True) / tl.sum(seen, axis=0, keep_dims=True)
    between = seen * (lane_mean - mean) * (lane_mean - mean)
    squares = tl.sum(lane_squares + between, axis=0, keep_dims=True)
    at = tl.program_id(0).to(tl.int64) * C + col
    tl.store(moments_ptr + at, mean, mask=col < C)
    tl.store(moments_ptr + half + at, squares, mask=col < C)


@triton.jit
def _td_group_norm_statistics_kernel(
    moments_ptr, stats_ptr, N, C, chunks, groups, pixels, half, eps, BLOCK: tl.constexpr
):  # fmt: skip
    """``stats [2, B * groups]``: a group's mean and reciprocal deviation, from chunks of so many pixels."""
    b = (tl.program_id(0) // groups).to(tl.int64)
    width = C // groups
    start = b * chunks * C + (tl.program_id(0) % groups) * width
    size = chunks * width
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for begin in range(0, size, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        count = tl.minimum(pixels, N - (i // width) * pixels).to(tl.float32)
        at = start + (i // width).to(tl.int64) * C + i % width
        total += count * tl.load(moments_ptr + at, mask=i < size, other=0.0)
    mean = tl.sum(total, axis=0) / N / width
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    for begin in range(0, size, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        count = tl.minimum(pixels, N - (i // width) * pixels).to(tl.float32)
        at = start + (i // width).to(tl.int64) * C + i % width
        distance = tl.load(moments_ptr + at, mask=i < size, other=0.0) - mean
        inside = tl.load(moments_ptr + half + at, mask=i < size, other=0.0)
        squares += tl.where(i < size, inside + count * distance * distance, 0.0)
    tl.store(stats_ptr + tl.program_id(0), mean)
    deviation = reciprocal_deviation(tl.sum(squares, axis=0) / width, N, eps)
    tl.store(stats_ptr + tl.num_programs(0) + tl.program_id(0), deviation)


@triton.jit
def group_statistics(stats_ptr, b, col, in_row, C, groups, rows):
    """Mean and reciprocal deviation of the groups that columns ``col`` belong to."""
    at = b * groups + col // (C // groups)
    mean = tl.load(stats_ptr + at, mask=in_row, other=0.0)
    return mean, tl.load(stats_ptr + rows + at, mask=in_row, other=0.0)


@triton.jit
def _td_group_norm_fwd_kernel(
    x_ptr, y_ptr, stats_ptr, t_ptr,
    p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr, p3_ptr, p4_ptr, shift_weight_ptr, shift_offset_ptr,
    N, C, chunks, x_stride_b, x_stride_n, t_stride, groups, rows,
    SCALE_GATE: tl.constexpr, SHIFT_GATE: tl.constexpr,
    ITERATIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // chunks).to(tl.int64)
    first_tile = (tl.program_id(0) % chunks).to(tl.int64) * ITERATIONS
    col = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    in_row = col < C
    t = tl.load(t_ptr + b * t_stride).to(tl.float32)
    mean, deviation = group_statistics(stats_ptr, b, col, in_row, C, groups, rows)
    gamma = mixed_at(t, p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr, col, in_row, SCALE_GATE)
    if p3_ptr is not None:
        beta = mixed_at(t, p3_ptr, p4_ptr, shift_weight_ptr, shift_offset_ptr, col, in_row, SHIFT_GATE)
    for i in range(ITERATIONS):
        n = (first_tile + i) * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (n < N) & in_row
        x = tl.load(x_ptr + b * x_stride_b + n * x_stride_n + col, mask=mask, other=0.0).to(tl.float32)
        y = (x - mean) * deviation * gamma
        if p3_ptr is not None:
            y += beta
        tl.store(y_ptr + (b * N + n) * C + col, y.to(y_ptr.dtype.element_ty), mask=mask)


MERGE_BLOCK = 512
# 16 to 32 elements per thread, so that several 16-byte loads are in flight.
MOMENTS = Table(
    "td_group_norm_moments_fwd",
    rows=(Row(Columns(1024, Walk(4096, programs=1024, longest=32, num_warps=4))),),
    candidates=lambda C, family: column_candidates(longest=32),
)
FORWARD = Table(
    "td_group_norm_fwd",
    rows=(Row(Columns(1024, Walk(4096, programs=2048, longest=16, num_warps=4))),),
    candidates=lambda C, family: column_candidates(longest=16),
)


def moments_config(samples: Samples) -> Tiling:
    return column_tiling(samples, MOMENTS.choose(samples.D))


def forward_config(samples: Samples) -> Tiling:
    return column_tiling(samples, FORWARD.choose(samples.D))


def forward(
    x: Tensor, t: Tensor, groups: int, gates: Sequence[Tensor | None], eps: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``x [B, ..., C]``, ``t [T]``, ``gates`` by kind -> the norm, and statistics ``[2, B * groups]``."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    stats = torch.empty((2, x.shape[0] * groups), dtype=torch.float32, device=x.device)
    if y.numel() == 0:
        return y, stats.zero_()
    x, gates = with_rows(x), dense(gates)
    shape, strides = x.shape, x.stride()
    R, moments, statistics = _statistics_launches(shape, strides, groups, eps)
    kept = torch.empty((2, R, x.shape[-1]), dtype=torch.float32, device=x.device)
    moments(x, kept)
    statistics(kept, stats)
    launch = _launch(shape, strides, t.shape[0], t.stride(0), groups, *gate_widths(gates))
    launch(x, y, stats, t, *gates)
    return y, stats


def as_pixels(shape: Sequence[int], strides: Sequence[int]) -> tuple[Samples, Any]:
    """``[B, ..., C]`` as pixels by sample, and the strides of samples and pixels."""
    B, *pixels, C = shape
    return Samples(B, torch.Size(pixels).numel(), C), row_strides(tuple(shape), tuple(strides))


@cached_by_shape
def _statistics_launches(shape, strides, groups, eps) -> tuple[int, Launch, Launch]:
    """Rows of moments, and the launches that make and join them."""
    samples, x = as_pixels(shape, strides)
    config = moments_config(samples)
    chunks, C = samples.chunks(config.rows_per_program), samples.D
    R = samples.B * chunks
    moments = Launch(
        _td_group_norm_moments_kernel,
        (R, ceil_div(C, config.columns)),
        (samples.N, C, chunks, *x, R * C),
        {"ITERATIONS": config.iterations, "ROWS": config.rows, "BLOCK_C": config.columns},
        num_warps=config.num_warps,
    )
    statistics = Launch(
        _td_group_norm_statistics_kernel,
        (samples.B * groups,),
        (samples.N, C, chunks, groups, config.rows_per_program, R * C, float(eps)),
        {"BLOCK": MERGE_BLOCK},
    )
    return R, moments, statistics


@cached_by_shape
def _launch(shape, strides, T, t_stride, groups, scale_gate, shift_gate) -> Launch:
    samples, x = as_pixels(shape, strides)
    config = forward_config(samples)
    chunks, C = samples.chunks(config.rows_per_program), samples.D
    return Launch(
        _td_group_norm_fwd_kernel,
        (samples.B * chunks, ceil_div(C, config.columns)),
        (samples.N, C, chunks, *x, 0 if T == 1 else t_stride, groups, samples.B * groups),
        {
            "SCALE_GATE": int(scale_gate == C), "SHIFT_GATE": int(shift_gate == C), "ITERATIONS": config.iterations,
            "ROWS": config.rows, "BLOCK_C": config.columns,
        },
        num_warps=config.num_warps,
    )  # fmt: skip
