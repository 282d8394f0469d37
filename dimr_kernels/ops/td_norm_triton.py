"""Triton kernels of the time-dependent norms, forward and backward, with their launch configurations.

Rows that fit in registers: a program loops over a chunk of the rows of one sample, so gamma(t) and beta(t)
are computed once per program and never written. The backward keeps the sums over those rows, its shares of dgamma and
dbeta, in float32 registers and writes one partial; ``norm_triton`` reduces the partials. No atomics.

Wider rows are read in blocks of columns. gamma and beta would be read again for every few rows, four floats each, so
they are written to a table once, which stays in the L2 cache. The backward takes two passes: a row's two sums first,
then the same kernel over blocks of columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launch, RowConfig, Strides, as_samples, cached_by_shape, ceil_div, launch_config, with_rows
from . import time_gate
from .norm_triton import (
    dense,
    divide,
    factor_of,
    gate_gradients,
    gate_widths,
    mixed_at,
    modulation_table,
    projection_of,
    reciprocal_deviation,
    row_statistics,
    row_warps,
    running_weight,
)
from .time_gate import GateParameters


@triton.jit
def _input(x_ptr, residual_ptr, sum_ptr, x_at, residual_at, sum_at, mask):
    """Load x, or x + residual, which is written and used as rounded there: the backward reads it again."""
    x = tl.load(x_ptr + x_at, mask=mask, other=0.0)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + residual_at, mask=mask, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + sum_at, x, mask=mask)
    return x.to(tl.float32)


@triton.jit
def _store_statistics(stats_ptr, row, mean, scale, rows, mask, RMS: tl.constexpr):
    """Write ``stats``: mean and reciprocal deviation ``[2, rows]``; RMS: the root mean square ``[1, rows]``."""
    if RMS:
        tl.store(stats_ptr + row, scale, mask=mask)
    else:
        tl.store(stats_ptr + row, mean, mask=mask)
        tl.store(stats_ptr + rows + row, scale, mask=mask)


@triton.jit
def _td_norm_fwd_kernel(
    x_ptr, residual_ptr, offset_ptr, y_ptr, sum_ptr, stats_ptr, t_ptr,
    p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr, p3_ptr, p4_ptr, shift_weight_ptr, shift_offset_ptr,
    N, D, chunks, x_stride_b, x_stride_n, residual_stride_b, residual_stride_n, sum_stride_b, sum_stride_n, t_stride,
    rows, eps,
    RMS: tl.constexpr, SCALE_GATE: tl.constexpr, SHIFT_GATE: tl.constexpr,
    ITERATIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // chunks).to(tl.int64)
    first_tile = (tl.program_id(0) % chunks).to(tl.int64) * ITERATIONS
    col = tl.arange(0, BLOCK_D)[None, :]
    in_row = col < D
    t = tl.load(t_ptr + b * t_stride).to(tl.float32)
    gamma = mixed_at(t, p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr, col, in_row, SCALE_GATE)
    if p3_ptr is not None:
        beta = mixed_at(t, p3_ptr, p4_ptr, shift_weight_ptr, shift_offset_ptr, col, in_row, SHIFT_GATE)
    if offset_ptr is not None:
        offset = tl.load(offset_ptr + col, mask=in_row, other=0.0).to(tl.float32)
    for i in range(ITERATIONS):
        n = (first_tile + i) * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (n < N) & in_row
        row = b * N + n
        x = _input(
            x_ptr, residual_ptr, sum_ptr, b * x_stride_b + n * x_stride_n + col,
            b * residual_stride_b + n * residual_stride_n + col, b * sum_stride_b + n * sum_stride_n + col, mask,
        )  # fmt: skip
        if offset_ptr is not None:
            x += offset
        mean, scale = row_statistics(x, in_row, D, eps, RMS)
        if stats_ptr is not None:
            _store_statistics(stats_ptr, row, mean, scale, rows, n < N, RMS)
        y = (x - mean) * factor_of(scale, eps, RMS) * gamma
        if p3_ptr is not None:
            y += beta
        tl.store(y_ptr + row * D + col, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _td_norm_fwd_wide_kernel(
    x_ptr, residual_ptr, y_ptr, sum_ptr, stats_ptr, table_ptr,
    N, D, chunks, x_stride_b, x_stride_n, residual_stride_b, residual_stride_n, table_stride, rows, eps,
    RMS: tl.constexpr, HAS_SHIFT: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // chunks).to(tl.int64)
    n = (tl.program_id(0) % chunks).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    row = b * N + n
    lane = tl.arange(0, BLOCK_D)[None, :]
    x_at = b * x_stride_b + n * x_stride_n + lane
    residual_at = b * residual_stride_b + n * residual_stride_n + lane
    lane_mean = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)
    lane_squares = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)
    for i in range(BLOCKS):
        start = i * BLOCK_D
        mask = (n < N) & (start + lane < D)
        x = _input(
            x_ptr, residual_ptr, sum_ptr, x_at + start, residual_at + start, row * D + start + lane, mask
        )  # fmt: skip
        if RMS:
            lane_squares += x * x
        else:  # Welford's update in every lane: a large mean does not cancel
            distance = tl.where(mask, x - lane_mean, 0.0)
            lane_mean += distance * running_weight(i)
            lane_squares += tl.where(mask, distance * (x - lane_mean), 0.0)
    if RMS:
        mean = tl.zeros([ROWS, 1], dtype=tl.float32)
        scale = tl.sqrt_rn(divide(tl.sum(lane_squares, axis=1, keep_dims=True), D))
    else:  # Chan's merge of the lanes; the last block may not reach them all
        count = tl.where((BLOCKS - 1) * BLOCK_D + lane < D, BLOCKS, BLOCKS - 1).to(tl.float32)
        mean = divide(tl.sum(count * lane_mean, axis=1, keep_dims=True), D)
        between = count * (lane_mean - mean) * (lane_mean - mean)
        scale = reciprocal_deviation(tl.sum(lane_squares + between, axis=1, keep_dims=True), D, eps)
    if stats_ptr is not None:
        _store_statistics(stats_ptr, row, mean, scale, rows, n < N, RMS)
    factor = factor_of(scale, eps, RMS)
    if residual_ptr is not None:  # the sum is read back, perhaps by another thread than wrote it
        tl.debug_barrier()
    for j in range(BLOCKS):  # backwards: the last columns are still in the cache
        start = (BLOCKS - 1 - j) * BLOCK_D
        mask = (n < N) & (start + lane < D)
        if residual_ptr is None:
            x = tl.load(x_ptr + x_at + start, mask=mask, other=0.0).to(tl.float32)
        else:
            x = tl.load(sum_ptr + row * D + start + lane, mask=mask, other=0.0).to(tl.float32)
        table_at = b * table_stride + start + lane
        y = (x - mean) * factor * tl.load(table_ptr + table_at, mask=start + lane < D, other=0.0)
        if HAS_SHIFT:
            y += tl.load(table_ptr + table_at + D, mask=start + lane < D, other=0.0)
        tl.store(y_ptr + row * D + start + lane, y.to(y_ptr.dtype.element_ty), mask=mask)


# A tile gives each thread 16 to 32 elements: two to four 16-byte loads in flight.
@launch_config("td_norm_fwd")
def forward_config(D: int) -> RowConfig:
    return RowConfig(elements=4096, min_programs=2048, max_tiles=16, num_warps=row_warps(D))


# One program of 32 warps per SM: four rows of 38,400 in each are 40 MB on an H100, which its L2 cache can hold until
# they are read again, and four rows share one reading of the table.
@launch_config("td_norm_fwd_wide")
def wide_forward_config(D: int) -> RowConfig:
    return RowConfig(elements=16384, columns=4096, num_warps=32)


def forward(
    x: Tensor,
    residual: Tensor | None,
    t: Tensor,
    gates: GateParameters,
    eps: float,
    rms: bool,
    statistics: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Compute the norm of ``x [B, ..., D]`` (plus residual) at ``t [T]``; returns it, the sum and the statistics.

    The sum is None where there is no residual, the statistics where they are not wanted.
    """
    total = stats = None
    if residual is not None:
        total = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype), device=x.device)
    if statistics:
        rows = x.numel() // x.shape[-1]
        stats = torch.empty((1 if rms else 2, rows), dtype=torch.float32, device=x.device)
    return _normalize(x, residual, None, total, stats, t, gates, eps, rms), total, stats


def forward_into(
    x: Tensor,
    residual: Tensor | None,
    total: Tensor | None,
    offset: Tensor | None,
    t: Tensor,
    gates: GateParameters,
    eps: float,
    rms: bool,
) -> Tensor:
    """Compute the norm of ``x + residual + offset``, without statistics; ``x + residual`` is written to ``total``.

    ``total`` may have any strides that leave its rows whole. D is at most ``WIDEST_IN_REGISTERS``.
    """
    return _normalize(x, residual, offset, total, None, t, gates, eps, rms)


def _normalize(x, residual, offset, total, stats, t, gates, eps, rms) -> Tensor:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if y.numel() == 0:
        return y
    x, residual, gates = with_rows(x), None if residual is None else with_rows(residual), dense(gates)
    strides = x.stride(), _strides(residual), _strides(total)
    if x.shape[-1] > time_gate.WIDEST_IN_REGISTERS:
        launch = _wide_forward_launch(x.shape, *strides, t.shape[0], gates.p3 is not None, eps, rms)
        launch(x, residual, y, total, stats, modulation_table(t, gates, x.shape[-1]))
    else:
        launch = _forward_launch(x.shape, *strides, t.shape[0], t.stride(0), *gate_widths(gates), eps, rms)
        launch(x, residual, offset, y, total, stats, t, *gates)
    return y


def _strides(x: Tensor | None) -> Strides | None:
    return None if x is None else x.stride()


@cached_by_shape
def _forward_launch(shape, x, residual, total, T, t_stride, scale_gate, shift_gate, eps, rms) -> Launch:
    """Build the launch for tensors of this ``shape`` and these strides, T timesteps, gates of these widths."""
    samples, (x, residual, total) = as_samples(shape, x, residual, total, shared=T == 1)
    tiling = forward_config(samples.D).tiling(samples)
    chunks = samples.chunks(tiling.rows_per_program)
    D = samples.D
    return Launch(
        _td_norm_fwd_kernel,
        (samples.B * chunks,),
        (samples.N, D, chunks, *x, *residual, *total, 0 if T == 1 else t_stride, samples.rows, float(eps)),
        {
            "RMS": rms, "SCALE_GATE": int(scale_gate == D), "SHIFT_GATE": int(shift_gate == D),
            "ITERATIONS": tiling.iterations, "ROWS": tiling.rows, "BLOCK_D": tiling.columns,
        },
        num_warps=tiling.num_warps,
    )  # fmt: skip


@cached_by_shape
def _wide_forward_launch(shape, x, residual, total, T, shift, eps, rms) -> Launch:
    samples, (x, residual, _) = as_samples(shape, x, residual, total, shared=T == 1)
    D = samples.D
    tiling = wide_forward_config(D).tiling(samples)
    chunks = samples.chunks(tiling.rows)
    table_stride = 0 if T == 1 else (2 if shift else 1) * D
    return Launch(
        _td_norm_fwd_wide_kernel,
        (samples.B * chunks,),
        (samples.N, D, chunks, *x, *residual, table_stride, samples.rows, float(eps)),
        {
            "RMS": rms, "HAS_SHIFT": shift, "BLOCKS": ceil_div(D, tiling.columns), "ROWS": tiling.rows,
            "BLOCK_D": tiling.columns,
        },
        num_warps=tiling.num_warps,
    )  # fmt: skip


@triton.jit
def _load_statistics(stats_ptr, row, rows, mask, RMS: tl.constexpr):
    if RMS:
        mean = tl.zeros([row.shape[0], 1], dtype=tl.float32)
        scale = tl.load(stats_ptr + row, mask=mask, other=1.0)
    else:
        mean = tl.load(stats_ptr + row, mask=mask, other=0.0)
        scale = tl.load(stats_ptr + rows + row, mask=mask, other=0.0)
    return mean, scale


@triton.jit
def _td_norm_bwd_kernel(
    dy_ptr, dsum_ptr, x_ptr, stats_ptr, row_sums_ptr, dx_ptr, partial_ptr, t_ptr,
    p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr,
    N, D, chunks, x_stride_b, x_stride_n, t_stride, rows, R, eps,
    RMS: tl.constexpr, HAS_SHIFT: tl.constexpr, SCALE_GATE: tl.constexpr,
    ITERATIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write dx and partials; None: not wanted. ``row_sums_ptr`` None: the block holds whole rows."""
    b = (tl.program_id(0) // chunks).to(tl.int64)
    first_tile = (tl.program_id(0) % chunks).to(tl.int64) * ITERATIONS
    col = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    in_row = col < D
    t = tl.load(t_ptr + b * t_stride).to(tl.float32)
    gamma = mixed_at(t, p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr, col, in_row, SCALE_GATE)
    dgamma = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)
    dbeta = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)
    for i in range(ITERATIONS):
        n = (first_tile + i) * ROWS + tl.arange(0, ROWS)[:, None]
        in_sample = n < N
        mask = in_sample & in_row
        row = b * N + n
        x = tl.load(x_ptr + b * x_stride_b + n * x_stride_n + col, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row * D + col, mask=mask, other=0.0).to(tl.float32)
        mean, scale = _load_statistics(stats_ptr, row, rows, in_sample, RMS)
        factor = factor_of(scale, eps, RMS)
        xhat = tl.where(mask, (x - mean) * factor, 0.0)
        dgamma += dy * xhat
        dbeta += dy
        if dx_ptr is not None:
            wdy = dy * gamma
            if row_sums_ptr is None:
                c = projection_of(tl.sum(wdy * xhat, axis=1, keep_dims=True), scale, factor, D, RMS)
                dx = wdy - c * xhat
                if not RMS:
                    dx -= divide(tl.sum(wdy, axis=1, keep_dims=True), D)
            else:
                dx = wdy - tl.load(row_sums_ptr + row, mask=in_sample, other=0.0) * xhat
                if not RMS:
                    dx -= tl.load(row_sums_ptr + rows + row, mask=in_sample, other=0.0)
            dx *= factor
            if dsum_ptr is not None:
                dx += tl.load(dsum_ptr + row * D + col, mask=mask, other=0.0).to(tl.float32)
            tl.store(dx_ptr + row * D + col, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if partial_ptr is not None:
        chunk = tl.program_id(0).to(tl.int64)
        tl.store(partial_ptr + chunk * D + col, tl.sum(dgamma, axis=0, keep_dims=True), mask=in_row)
        if HAS_SHIFT:
            tl.store(partial_ptr + (chunk + R) * D + col, tl.sum(dbeta, axis=0, keep_dims=True), mask=in_row)


@triton.jit
def _td_norm_row_sums_kernel(
    dy_ptr, x_ptr, stats_ptr, row_sums_ptr, table_ptr,
    N, D, chunks, x_stride_b, x_stride_n, table_stride, rows, eps,
    RMS: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the projection on xhat and (not RMS) the mean of ``gamma * dy``: ``[2, rows]``."""
    b = (tl.program_id(0) // chunks).to(tl.int64)
    n = (tl.program_id(0) % chunks).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    in_sample = n < N
    row = b * N + n
    lane = tl.arange(0, BLOCK_D)[None, :]
    mean, scale = _load_statistics(stats_ptr, row, rows, in_sample, RMS)
    factor = factor_of(scale, eps, RMS)
    along_xhat = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)
    plain = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)
    for i in range(BLOCKS):
        col = i * BLOCK_D + lane
        mask = in_sample & (col < D)
        x = tl.load(x_ptr + b * x_stride_b + n * x_stride_n + col, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row * D + col, mask=mask, other=0.0).to(tl.float32)
        wdy = dy * tl.load(table_ptr + b * table_stride + col, mask=col < D, other=0.0)
        along_xhat += wdy * (x - mean) * factor
        plain += wdy
    c = projection_of(tl.sum(along_xhat, axis=1, keep_dims=True), scale, factor, D, RMS)
    tl.store(row_sums_ptr + row, c, mask=in_sample)
    if not RMS:
        tl.store(row_sums_ptr + rows + row, divide(tl.sum(plain, axis=1, keep_dims=True), D), mask=in_sample)


# Fewer elements per thread than forward, since two sums stay in registers beside two inputs; fewer and longer programs,
# since each writes a partial.
@launch_config("td_norm_bwd")
def backward_config(D: int) -> RowConfig:
    return RowConfig(elements=2048, min_programs=1024, max_tiles=32, num_warps=row_warps(D))


@launch_config("td_norm_bwd_wide")
def wide_backward_config(D: int) -> RowConfig:
    return RowConfig(elements=2048, columns=1024, min_programs=1024, max_tiles=32, num_warps=4)


@launch_config("td_norm_bwd_wide_sums")
def row_sums_config(D: int) -> RowConfig:
    return RowConfig(elements=4096, columns=2048, num_warps=8)


def backward(
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    stats: Tensor,
    t: Tensor,
    gates: GateParameters,
    eps: float,
    rms: bool,
    needs_x: bool,
    needs_t: bool,
    needs_gates: GateParameters,
) -> tuple[Tensor | None, Tensor | None, GateParameters]:
    """Compute the gradients of the norm's input, of t and of the gates; None where one is not needed.

    ``x`` is what the forward normalized: its input, or the sum with the residual. ``dtotal`` is that sum's gradient.
    """
    gates, needs_partials = dense(gates), needs_t or any(needs_gates)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if needs_x else None
    x, dy = with_rows(x), dy.contiguous()
    dtotal = None if dtotal is None or dx is None else dtotal.contiguous()
    shape, T, shift = (x.shape, x.stride()), t.shape[0], gates.p3 is not None
    programs, chunks, launch = _backward_launch(*shape, T, t.stride(0), shift, gate_widths(gates)[0], eps, rms)
    partials = None
    if needs_partials:
        partials = torch.empty((2 if shift else 1, programs, x.shape[-1]), dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        partials = None if partials is None else partials.zero_()
    elif dx is not None or needs_partials:
        row_sums = None
        if x.shape[-1] > time_gate.WIDEST_IN_REGISTERS and dx is not None:
            row_sums = torch.empty((1 if rms else 2, x.numel() // x.shape[-1]), dtype=torch.float32, device=x.device)
            table = modulation_table(t, GateParameters(*gates[:4]), x.shape[-1])
            _row_sums_launch(*shape, T, eps, rms)(dy, x, stats, row_sums, table)
        launch(dy, dtotal, x, stats, row_sums, dx, partials, t, *gates[:4])
    if partials is None:
        return dx, None, GateParameters(None, None, None, None)
    return dx, *gate_gradients(partials, chunks, t, gates, needs_t, needs_gates)


@cached_by_shape
def _backward_launch(shape, strides, T, t_stride, shift, scale_gate, eps, rms) -> tuple[int, int, Launch]:
    """Return the rows of partials, how many of them a sample has, and the launch, for ``x`` of this shape."""
    samples, (x,) = as_samples(shape, strides, shared=T == 1)
    D = samples.D
    config = wide_backward_config(D) if D > time_gate.WIDEST_IN_REGISTERS else backward_config(D)
    tiling = config.tiling(samples)
    chunks = samples.chunks(tiling.rows_per_program)
    programs = samples.B * chunks
    launch = Launch(
        _td_norm_bwd_kernel,
        (programs, ceil_div(D, tiling.columns)),
        (samples.N, D, chunks, *x, 0 if T == 1 else t_stride, samples.rows, programs, float(eps)),
        {
            "RMS": rms, "HAS_SHIFT": shift, "SCALE_GATE": int(scale_gate == D), "ITERATIONS": tiling.iterations,
            "ROWS": tiling.rows, "BLOCK_D": tiling.columns,
        },
        num_warps=tiling.num_warps,
    )  # fmt: skip
    return programs, chunks, launch


@cached_by_shape
def _row_sums_launch(shape, strides, T, eps, rms) -> Launch:
    samples, (x,) = as_samples(shape, strides, shared=T == 1)
    D = samples.D
    tiling = row_sums_config(D).tiling(samples)
    chunks = samples.chunks(tiling.rows)
    return Launch(
        _td_norm_row_sums_kernel,
        (samples.B * chunks,),
        (samples.N, D, chunks, *x, 0 if T == 1 else D, samples.rows, float(eps)),
        {"RMS": rms, "BLOCKS": ceil_div(D, tiling.columns), "ROWS": tiling.rows, "BLOCK_D": tiling.columns},
        num_warps=tiling.num_warps,
    )
