"""Triton kernels of the time-dependent group norm, forward and backward, with their launch configurations.

A group's channels are few and lie side by side, its pixels many and far apart. So programs take whole pixels and keep
each channel's moments apart, and a small kernel merges those of a group; x is read twice, with the statistics between.

The backward likewise sums every channel over chunks of pixels. Those sums are the chunk's shares of dgamma and dbeta,
which ``norm_triton`` reduces to the parameters' gradients; a group's two sums for dx, of ``gamma dy`` and of
``gamma dy xhat``, are made of the same numbers. No atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launch, RowConfig, as_samples, cached_by_shape, ceil_div, launch_config, with_rows
from .norm_triton import (
    dense,
    divide,
    gate_gradients,
    gate_widths,
    mixed_at,
    reciprocal_deviation,
    running_weight,
)
from .time_gate import GateParameters

MERGE_BLOCK = 512


@triton.jit
def _td_group_norm_moments_kernel(
    x_ptr, moments_ptr, N, C, chunks, x_stride_b, x_stride_n, half,
    ITERATIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write each channel's mean over a chunk of pixels and the sum of squared distances to it: ``moments [2, R, C]``.

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
        lane_mean += distance * running_weight(i)
        lane_squares += distance * (x - lane_mean)
    # Chan's merge of the lanes; the last chunk may not reach them all.
    seen = tl.maximum(tl.minimum((N - first - lane + ROWS - 1) // ROWS, ITERATIONS), 0).to(tl.float32)  # [ROWS, 1]
    mean = divide(tl.sum(seen * lane_mean, axis=0, keep_dims=True), tl.sum(seen, axis=0, keep_dims=True))
    between = seen * (lane_mean - mean) * (lane_mean - mean)
    squares = tl.sum(lane_squares + between, axis=0, keep_dims=True)
    at = tl.program_id(0).to(tl.int64) * C + col
    tl.store(moments_ptr + at, mean, mask=col < C)
    tl.store(moments_ptr + half + at, squares, mask=col < C)


@triton.jit
def _td_group_norm_statistics_kernel(
    moments_ptr, stats_ptr, N, C, chunks, groups, pixels, half, eps, BLOCK: tl.constexpr
):  # fmt: skip
    """Write a group's mean and reciprocal deviation, ``stats [2, B * groups]``, from chunks of so many pixels."""
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
    mean = divide(tl.sum(total, axis=0), N * 1.0 * width)
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    for begin in range(0, size, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        count = tl.minimum(pixels, N - (i // width) * pixels).to(tl.float32)
        at = start + (i // width).to(tl.int64) * C + i % width
        distance = tl.load(moments_ptr + at, mask=i < size, other=0.0) - mean
        inside = tl.load(moments_ptr + half + at, mask=i < size, other=0.0)
        squares += tl.where(i < size, inside + count * distance * distance, 0.0)
    tl.store(stats_ptr + tl.program_id(0), mean)
    deviation = reciprocal_deviation(tl.sum(squares, axis=0), N * 1.0 * width, eps)
    tl.store(stats_ptr + tl.num_programs(0) + tl.program_id(0), deviation)


@triton.jit
def group_statistics(stats_ptr, b, col, in_row, C, groups, rows):
    """Load mean and reciprocal deviation of the groups that columns ``col`` belong to."""
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


# 16 to 32 elements per thread, so that several 16-byte loads are in flight.
@launch_config("td_group_norm_moments_fwd")
def moments_config(C: int) -> RowConfig:
    return RowConfig(elements=4096, columns=1024, min_programs=1024, max_tiles=32, num_warps=4)


@launch_config("td_group_norm_fwd")
def forward_config(C: int) -> RowConfig:
    return RowConfig(elements=4096, columns=1024, min_programs=2048, max_tiles=16, num_warps=4)


def forward(x: Tensor, t: Tensor, groups: int, gates: GateParameters, eps: float) -> tuple[Tensor, Tensor]:
    """Compute the norm of ``x [B, ..., C]`` at ``t [T]``, and the statistics ``[2, B * groups]``."""
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
    launch = _forward_launch(shape, strides, t.shape[0], t.stride(0), groups, *gate_widths(gates))
    launch(x, y, stats, t, *gates)
    return y, stats


@cached_by_shape
def _statistics_launches(shape, strides, groups, eps) -> tuple[int, Launch, Launch]:
    """Return the rows of moments, and the launches that make and merge them."""
    samples, (x,) = as_samples(shape, strides, shared=False)
    C = samples.D
    tiling = moments_config(C).tiling(samples)
    chunks = samples.chunks(tiling.rows_per_program)
    R = samples.B * chunks
    moments = Launch(
        _td_group_norm_moments_kernel,
        (R, ceil_div(C, tiling.columns)),
        (samples.N, C, chunks, *x, R * C),
        {"ITERATIONS": tiling.iterations, "ROWS": tiling.rows, "BLOCK_C": tiling.columns},
        num_warps=tiling.num_warps,
    )
    statistics = Launch(
        _td_group_norm_statistics_kernel,
        (samples.B * groups,),
        (samples.N, C, chunks, groups, tiling.rows_per_program, R * C, float(eps)),
        {"BLOCK": MERGE_BLOCK},
    )
    return R, moments, statistics


@cached_by_shape
def _forward_launch(shape, strides, T, t_stride, groups, scale_gate, shift_gate) -> Launch:
    samples, (x,) = as_samples(shape, strides, shared=False)
    C = samples.D
    tiling = forward_config(C).tiling(samples)
    chunks = samples.chunks(tiling.rows_per_program)
    return Launch(
        _td_group_norm_fwd_kernel,
        (samples.B * chunks, ceil_div(C, tiling.columns)),
        (samples.N, C, chunks, *x, 0 if T == 1 else t_stride, groups, samples.B * groups),
        {
            "SCALE_GATE": int(scale_gate == C), "SHIFT_GATE": int(shift_gate == C), "ITERATIONS": tiling.iterations,
            "ROWS": tiling.rows, "BLOCK_C": tiling.columns,
        },
        num_warps=tiling.num_warps,
    )  # fmt: skip


@triton.jit
def _td_group_norm_sums_kernel(
    grad_ptr, x_ptr, stats_ptr, partial_ptr, N, C, chunks, x_stride_b, x_stride_n, groups, rows, half,
    ITERATIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write a chunk's sums of ``dy xhat`` and of ``dy``: ``partials [2, R, C]``, ``half`` elements each."""
    b = (tl.program_id(0) // chunks).to(tl.int64)
    first_tile = (tl.program_id(0) % chunks).to(tl.int64) * ITERATIONS
    col = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    in_row = col < C
    mean, deviation = group_statistics(stats_ptr, b, col, in_row, C, groups, rows)
    dgamma = tl.zeros([ROWS, BLOCK_C], dtype=tl.float32)
    dbeta = tl.zeros([ROWS, BLOCK_C], dtype=tl.float32)
    for i in range(ITERATIONS):
        n = (first_tile + i) * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (n < N) & in_row
        x = tl.load(x_ptr + b * x_stride_b + n * x_stride_n + col, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + (b * N + n) * C + col, mask=mask, other=0.0).to(tl.float32)
        dgamma += grad * (x - mean)  # where masked, grad is zero
        dbeta += grad
    at = tl.program_id(0).to(tl.int64) * C + col
    tl.store(partial_ptr + at, tl.sum(dgamma, axis=0, keep_dims=True) * deviation, mask=in_row)
    tl.store(partial_ptr + half + at, tl.sum(dbeta, axis=0, keep_dims=True), mask=in_row)


@triton.jit
def _td_group_norm_group_sums_kernel(
    partial_ptr, sums_ptr, t_ptr, p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr,
    N, C, chunks, t_stride, groups, half, SCALE_GATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``sums [2, B * groups]``: the means over a group of ``gamma dy xhat`` and of ``gamma dy``."""
    b = (tl.program_id(0) // groups).to(tl.int64)
    width = C // groups
    first = (tl.program_id(0) % groups) * width
    size = chunks * width
    t = tl.load(t_ptr + b * t_stride).to(tl.float32)
    along_xhat = tl.zeros([BLOCK], dtype=tl.float32)
    plain = tl.zeros([BLOCK], dtype=tl.float32)
    for begin in range(0, size, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        col = first + i % width
        gamma = mixed_at(t, p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr, col, i < size, SCALE_GATE)
        at = b * chunks * C + (i // width).to(tl.int64) * C + col
        along_xhat += gamma * tl.load(partial_ptr + at, mask=i < size, other=0.0)
        plain += gamma * tl.load(partial_ptr + half + at, mask=i < size, other=0.0)
    tl.store(sums_ptr + tl.program_id(0), divide(tl.sum(along_xhat, axis=0), N * 1.0 * width))
    tl.store(sums_ptr + tl.num_programs(0) + tl.program_id(0), divide(tl.sum(plain, axis=0), N * 1.0 * width))


@triton.jit
def _td_group_norm_bwd_kernel(
    grad_ptr, x_ptr, stats_ptr, sums_ptr, dx_ptr, t_ptr, p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr,
    N, C, chunks, x_stride_b, x_stride_n, t_stride, groups, rows,
    SCALE_GATE: tl.constexpr, ITERATIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // chunks).to(tl.int64)
    first_tile = (tl.program_id(0) % chunks).to(tl.int64) * ITERATIONS
    col = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    in_row = col < C
    t = tl.load(t_ptr + b * t_stride).to(tl.float32)
    mean, deviation = group_statistics(stats_ptr, b, col, in_row, C, groups, rows)
    along_xhat, average = group_statistics(sums_ptr, b, col, in_row, C, groups, rows)
    gamma = mixed_at(t, p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr, col, in_row, SCALE_GATE)
    for i in range(ITERATIONS):
        n = (first_tile + i) * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (n < N) & in_row
        x = tl.load(x_ptr + b * x_stride_b + n * x_stride_n + col, mask=mask, other=0.0).to(tl.float32)
        at = (b * N + n) * C + col
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dx = (grad * gamma - average - (x - mean) * deviation * along_xhat) * deviation
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


# With two inputs, a thread holds half as many elements of each as in the forward.
@launch_config("td_group_norm_sums_bwd")
def sums_config(C: int) -> RowConfig:
    return RowConfig(elements=2048, columns=1024, min_programs=1024, max_tiles=32, num_warps=4)


@launch_config("td_group_norm_bwd")
def backward_config(C: int) -> RowConfig:
    return RowConfig(elements=2048, columns=1024, min_programs=2048, max_tiles=16, num_warps=4)


def backward(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    t: Tensor,
    groups: int,
    gates: GateParameters,
    needs_x: bool,
    needs_t: bool,
    needs_gates: GateParameters,
) -> tuple[Tensor | None, Tensor | None, GateParameters]:
    """Compute the gradients of x, of t and of the gates; None where one is not needed."""
    x, grad, gates = with_rows(x), grad.contiguous(), dense(gates)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if needs_x else None
    programs, chunks, sums = _sums_launch(x.shape, x.stride(), groups)
    partials = torch.empty((2, programs, x.shape[-1]), dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        partials.zero_()
    else:
        sums(grad, x, stats, partials)
        if dx is not None:
            group_sums = torch.empty_like(stats)
            merge, launch = _backward_launches(
                x.shape, x.stride(), groups, programs, chunks, t.shape[0], t.stride(0), gate_widths(gates)[0]
            )  # fmt: skip
            merge(partials, group_sums, t, *gates[:4])
            launch(grad, x, stats, group_sums, dx, t, *gates[:4])
    if not (needs_t or any(needs_gates)):
        return dx, None, GateParameters(None, None, None, None)
    kinds = partials if gates.p3 is not None else partials[:1]
    return dx, *gate_gradients(kinds, chunks, t, gates, needs_t, needs_gates)


@cached_by_shape
def _sums_launch(shape, strides, groups) -> tuple[int, int, Launch]:
    """Return the rows of partials, how many of them a sample has, and the launch."""
    samples, (x,) = as_samples(shape, strides, shared=False)
    C = samples.D
    tiling = sums_config(C).tiling(samples)
    chunks = samples.chunks(tiling.rows_per_program)
    programs = samples.B * chunks
    launch = Launch(
        _td_group_norm_sums_kernel,
        (programs, ceil_div(C, tiling.columns)),
        (samples.N, C, chunks, *x, groups, samples.B * groups, programs * C),
        {"ITERATIONS": tiling.iterations, "ROWS": tiling.rows, "BLOCK_C": tiling.columns},
        num_warps=tiling.num_warps,
    )
    return programs, chunks, launch


@cached_by_shape
def _backward_launches(shape, strides, groups, R, partial_chunks, T, t_stride, scale_gate) -> tuple[Launch, Launch]:
    """Build the launches of a group's sums and of dx."""
    samples, (x,) = as_samples(shape, strides, shared=False)
    C = samples.D
    tiling = backward_config(C).tiling(samples)
    chunks = samples.chunks(tiling.rows_per_program)
    t_stride, gate = 0 if T == 1 else t_stride, int(scale_gate == C)
    merge = Launch(
        _td_group_norm_group_sums_kernel,
        (samples.B * groups,),
        (samples.N, C, partial_chunks, t_stride, groups, R * C),
        {"SCALE_GATE": gate, "BLOCK": MERGE_BLOCK},
    )
    launch = Launch(
        _td_group_norm_bwd_kernel,
        (samples.B * chunks, ceil_div(C, tiling.columns)),
        (samples.N, C, chunks, *x, t_stride, groups, samples.B * groups),
        {"SCALE_GATE": gate, "ITERATIONS": tiling.iterations, "ROWS": tiling.rows, "BLOCK_C": tiling.columns},
        num_warps=tiling.num_warps,
    )
    return merge, launch
