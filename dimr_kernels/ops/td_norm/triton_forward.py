"""Forward kernels: rows that fit in registers, and rows read in blocks of columns.

A program stays inside one sample and walks a chunk of its rows, so gamma(t) and beta(t) are computed once per program
and never written. For wide rows they would be read again for every few rows, four floats each; there they are written
to a table once, which stays in the L2 cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import limits
from ..configurations import Row, Table
from ..launch import Launch, cached_by_shape, ceil_div, next_power_of_2
from ..row_statistics import factor_of, reciprocal_deviation, row_statistics
from ..samples import Samples, Tiling, as_samples, strides_of, tiling, walk_candidates, walk_rows, with_rows
from ..time_gate.triton import dense, gate_widths, mixed_at
from .triton_table import modulation_table


@triton.jit
def _input(x_ptr, residual_ptr, sum_ptr, x_at, residual_at, sum_at, mask):
    """x, or x + residual, which is written and used as rounded there: the backward reads it again."""
    x = tl.load(x_ptr + x_at, mask=mask, other=0.0)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + residual_at, mask=mask, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + sum_at, x, mask=mask)
    return x.to(tl.float32)


@triton.jit
def _store_statistics(stats_ptr, row, mean, scale, rows, mask, RMS: tl.constexpr):
    """``stats [2, rows]``: mean and reciprocal deviation; RMS ``[1, rows]``: the root mean square."""
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
            lane_mean += distance * (1.0 / (i + 1))
            lane_squares += tl.where(mask, distance * (x - lane_mean), 0.0)
    if RMS:
        mean = tl.zeros([ROWS, 1], dtype=tl.float32)
        scale = tl.sqrt_rn(tl.sum(lane_squares, axis=1, keep_dims=True) / D)
    else:  # Chan's merge of the lanes; the last block may not reach them all
        count = tl.where((BLOCKS - 1) * BLOCK_D + lane < D, BLOCKS, BLOCKS - 1).to(tl.float32)
        mean = tl.sum(count * lane_mean, axis=1, keep_dims=True) / D
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


@dataclass(frozen=True)
class WideRows:
    """How rows that do not fit in registers are read: so many at a time, in blocks of columns."""

    block: int
    rows: int
    num_warps: int


# A tile gives each thread 16 to 32 elements: two to four 16-byte loads in flight.
FORWARD = Table(
    "td_norm_fwd",
    rows=walk_rows(4096, programs=2048, longest=16),
    candidates=lambda D, family: walk_candidates(D, longest=16),
)
# One program of 32 warps per SM: four rows of 38,400 in each are 40 MB on an H100, which its L2 cache can hold until
# they are read again, and four rows share one reading of the table.
WIDE_FORWARD = Table(
    "td_norm_fwd_wide",
    rows=(Row(WideRows(4096, rows=4, num_warps=32)),),
    candidates=lambda D, family: [
        WideRows(block, rows, warps)
        for block, rows, warps in ((4096, 4, 16), (4096, 2, 16), (2048, 4, 16), (4096, 1, 8), (8192, 1, 16))
    ],
)


def forward_config(samples: Samples) -> Tiling:
    return tiling(samples, FORWARD.choose(samples.D))


def wide_forward_config(samples: Samples) -> Tiling:
    how = WIDE_FORWARD.choose(samples.D)
    rows = min(how.rows, next_power_of_2(max(samples.N, 1)))
    return Tiling(how.block, rows, ceil_div(samples.D, how.block), how.num_warps)


def forward(
    x: Tensor,
    residual: Tensor | None,
    t: Tensor,
    gates: Sequence[Tensor | None],
    eps: float,
    rms: bool,
    statistics: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``x [B, ..., D]``, ``t [T]``, ``gates`` as in ``time_gate.triton.gate_gradients`` -> norm, sum, statistics.

    The sum is None where there is no residual, the statistics where they are not wanted.
    """
    total = stats = None
    if residual is not None:
        total = torch.empty(x.shape, dtype=sum_dtype(x, residual), device=x.device)
    if statistics:
        rows = x.numel() // x.shape[-1]
        stats = torch.empty((1 if rms else 2, rows), dtype=torch.float32, device=x.device)
    return _normalized(x, residual, None, total, stats, t, gates, eps, rms), total, stats


def forward_into(
    x: Tensor,
    residual: Tensor | None,
    total: Tensor | None,
    offset: Tensor | None,
    t: Tensor,
    gates: Sequence[Tensor | None],
    eps: float,
    rms: bool,
) -> Tensor:
    """The norm of ``x + residual + offset`` without statistics for a backward; ``x + residual`` goes into ``total``.

    ``total`` may have any strides that leave its rows whole. D is at most ``WIDEST_IN_REGISTERS``.
    """
    return _normalized(x, residual, offset, total, None, t, gates, eps, rms)


def _normalized(x, residual, offset, total, stats, t, gates, eps, rms) -> Tensor:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if y.numel() == 0:
        return y
    x, residual, gates = with_rows(x), None if residual is None else with_rows(residual), dense(gates)
    strides = x.stride(), strides_of(residual), strides_of(total)
    if x.shape[-1] > limits.WIDEST_IN_REGISTERS:
        launch = _wide_launch(x.shape, *strides, t.shape[0], gates[4] is not None, eps, rms)
        launch(x, residual, y, total, stats, modulation_table(t, gates, x.shape[-1]))
    else:
        launch = _launch(x.shape, *strides, t.shape[0], t.stride(0), *gate_widths(gates), eps, rms)
        launch(x, residual, offset, y, total, stats, t, *gates)
    return y


def sum_dtype(x: Tensor, residual: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, residual.dtype)


@cached_by_shape
def _launch(shape, x, residual, total, T, t_stride, scale_gate, shift_gate, eps, rms) -> Launch:
    """For tensors of this ``shape`` and these strides, T timesteps, gates of these widths."""
    samples, (x, residual, total) = as_samples(shape, x, residual, total, shared=T == 1)
    config = forward_config(samples)
    chunks = samples.chunks(config.rows_per_program)
    D = samples.D
    return Launch(
        _td_norm_fwd_kernel,
        (samples.B * chunks,),
        (samples.N, D, chunks, *x, *residual, *total, 0 if T == 1 else t_stride, samples.rows, float(eps)),
        {
            "RMS": rms, "SCALE_GATE": int(scale_gate == D), "SHIFT_GATE": int(shift_gate == D),
            "ITERATIONS": config.iterations, "ROWS": config.rows, "BLOCK_D": config.columns,
        },
        num_warps=config.num_warps,
    )  # fmt: skip


@cached_by_shape
def _wide_launch(shape, x, residual, total, T, shift, eps, rms) -> Launch:
    samples, (x, residual, _) = as_samples(shape, x, residual, total, shared=T == 1)
    config = wide_forward_config(samples)
    chunks = samples.chunks(config.rows)
    table_stride = 0 if T == 1 else (2 if shift else 1) * samples.D
    return Launch(
        _td_norm_fwd_wide_kernel,
        (samples.B * chunks,),
        (samples.N, samples.D, chunks, *x, *residual, table_stride, samples.rows, float(eps)),
        {
            "RMS": rms, "HAS_SHIFT": shift, "BLOCKS": config.iterations, "ROWS": config.rows,
            "BLOCK_D": config.columns,
        },
        num_warps=config.num_warps,
    )  # fmt: skip
