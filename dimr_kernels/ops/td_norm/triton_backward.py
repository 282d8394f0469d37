"""Backward kernels: dx, with the incoming gradient of the sum, and partial sums of dgamma and dbeta in the same pass.

A program stays inside one sample, walks a chunk of its rows, keeps the sums over them in float32 registers and writes
one partial; ``time_gate`` reduces the partials. No atomics. Rows that do not fit in registers take two passes: their
two sums first, then the same kernel over blocks of columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import limits
from ..configurations import Row, Table
from ..launch import Launch, cached_by_shape, ceil_div, next_power_of_2
from ..row_statistics import factor_of, projection_of
from ..samples import (
    Columns,
    Samples,
    Tiling,
    Walk,
    as_samples,
    column_candidates,
    column_tiling,
    tiling,
    walk_candidates,
    walk_rows,
    with_rows,
)
from ..time_gate.triton import dense, gate_gradients, gate_widths, mixed_at
from .triton_forward import WideRows
from .triton_table import modulation_table


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
    """``row_sums_ptr`` None: the block holds whole rows. ``dx_ptr``, ``partial_ptr`` None: not wanted."""
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
                    dx -= tl.sum(wdy, axis=1, keep_dims=True) / D
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
    """The projection on xhat and (not RMS) the mean of ``gamma * dy``: ``[2, rows]``."""
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
        tl.store(row_sums_ptr + rows + row, tl.sum(plain, axis=1, keep_dims=True) / D, mask=in_sample)


# Fewer elements per thread than forward, since two sums stay in registers beside two inputs; fewer and longer programs,
# since each writes a partial.
BACKWARD = Table(
    "td_norm_bwd",
    rows=walk_rows(2048, programs=1024, longest=32),
    candidates=lambda D, family: walk_candidates(D, longest=32),
)
WIDE_BACKWARD = Table(
    "td_norm_bwd_wide",
    rows=(Row(Columns(1024, Walk(2048, programs=1024, longest=32, num_warps=4))),),
    candidates=lambda D, family: column_candidates(longest=32),
)
ROW_SUMS = Table(
    "td_norm_bwd_wide_sums",
    rows=(Row(WideRows(2048, rows=2, num_warps=8)),),
    candidates=lambda D, family: [
        WideRows(block, rows, warps)
        for block, rows, warps in ((2048, 1, 4), (2048, 1, 8), (4096, 1, 8), (4096, 2, 16), (4096, 4, 16))
    ],
)


def backward_config(samples: Samples) -> Tiling:
    """Of the kernel that makes dx; ``columns`` below the width means that it works on blocks of columns."""
    if samples.D > limits.WIDEST_IN_REGISTERS:
        return column_tiling(samples, WIDE_BACKWARD.choose(samples.D))
    return tiling(samples, BACKWARD.choose(samples.D))


def row_sums_config(samples: Samples) -> Tiling:
    how = ROW_SUMS.choose(samples.D)
    rows = min(how.rows, next_power_of_2(max(samples.N, 1)))
    return Tiling(how.block, rows, ceil_div(samples.D, how.block), how.num_warps)


def backward(
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    stats: Tensor,
    t: Tensor,
    gates: tuple[Tensor | None, ...],
    eps: float,
    rms: bool,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of the norm's input, of t and of each of ``gates``; None where ``needs`` (in that order) is False.

    ``x`` is what the forward normalized: its input, or the sum with the residual. ``dtotal`` is that sum's gradient.
    """
    gates, needs_gates = dense(gates), any(needs[1:])
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if needs[0] else None
    x, dy = with_rows(x), dy.contiguous()
    dtotal = None if dtotal is None or dx is None else dtotal.contiguous()
    shape, T, shift = (x.shape, x.stride()), t.shape[0], gates[4] is not None
    programs, chunks, launch = _launch(*shape, T, t.stride(0), shift, gate_widths(gates)[0], eps, rms)
    partials = None
    if needs_gates:
        partials = torch.empty((2 if shift else 1, programs, x.shape[-1]), dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        partials = None if partials is None else partials.zero_()
    elif dx is not None or needs_gates:
        row_sums = None
        if x.shape[-1] > limits.WIDEST_IN_REGISTERS and dx is not None:
            row_sums = torch.empty((1 if rms else 2, x.numel() // x.shape[-1]), dtype=torch.float32, device=x.device)
            table = modulation_table(t, (*gates[:4], None, None, None, None), x.shape[-1])
            _row_sums_launch(*shape, T, eps, rms)(dy, x, stats, row_sums, table)
        launch(dy, dtotal, x, stats, row_sums, dx, partials, t, *gates[:4])
    if partials is None:
        return [dx, *[None] * len(needs[1:])]
    return [dx, *gate_gradients(partials, chunks, t, gates, needs[1:])]


@cached_by_shape
def _launch(shape, strides, T, t_stride, shift, scale_gate, eps, rms) -> tuple[int, int, Launch]:
    """Rows of partials, how many of them a sample has, and the launch; ``x`` has this shape and these strides."""
    samples, (x,) = as_samples(shape, strides, shared=T == 1)
    config = backward_config(samples)
    chunks = samples.chunks(config.rows_per_program)
    programs, D = samples.B * chunks, samples.D
    launch = Launch(
        _td_norm_bwd_kernel,
        (programs, ceil_div(D, config.columns)),
        (samples.N, D, chunks, *x, 0 if T == 1 else t_stride, samples.rows, programs, float(eps)),
        {
            "RMS": rms, "HAS_SHIFT": shift, "SCALE_GATE": int(scale_gate == D), "ITERATIONS": config.iterations,
            "ROWS": config.rows, "BLOCK_D": config.columns,
        },
        num_warps=config.num_warps,
    )  # fmt: skip
    return programs, chunks, launch


@cached_by_shape
def _row_sums_launch(shape, strides, T, eps, rms) -> Launch:
    samples, (x,) = as_samples(shape, strides, shared=T == 1)
    config = row_sums_config(samples)
    chunks = samples.chunks(config.rows)
    return Launch(
        _td_norm_row_sums_kernel,
        (samples.B * chunks,),
        (samples.N, samples.D, chunks, *x, 0 if T == 1 else samples.D, samples.rows, float(eps)),
        {"RMS": rms, "BLOCKS": config.iterations, "ROWS": config.rows, "BLOCK_D": config.columns},
        num_warps=config.num_warps,
    )
