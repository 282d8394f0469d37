"""Triton kernels of ``y + TDLN(pixel_shuffle(x))``: every element read once and written once, forward and backward.

With channels in ``(r, r, C)`` order the shuffle moves whole rows of C channels, so it is an index map over rows: a
program loops over rows of the result in their order, and reads (in the backward also writes) x's rows where the map
says. It stays inside one sample, so gamma(t) and beta(t) are computed once and never written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launch, RowConfig, Samples, cached_by_shape, launch_config, row_strides, with_rows
from .norm_triton import dense, divide, gate_gradients, gate_widths, mixed_at, row_statistics, row_warps
from .time_gate import GateParameters


@triton.jit
def _source(n, width, x_stride_pixel, C, R: tl.constexpr):
    """Find where row ``n`` of the result, pixel ``(n // (R * width), n % (R * width))``, begins in x's sample."""
    row = n // (R * width)
    column = n - row * (R * width)
    pixel = (row // R) * width + column // R
    slot = (row % R) * R + column % R
    return pixel.to(tl.int64) * x_stride_pixel + slot * C


@triton.jit
def _shuffle_norm_add_fwd_kernel(
    x_ptr, y_ptr, out_ptr, stats_ptr, t_ptr,
    p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr, p3_ptr, p4_ptr, shift_weight_ptr, shift_offset_ptr,
    N, C, width, chunks, x_stride_b, x_stride_pixel, y_stride_b, y_stride_n, out_stride_b, out_stride_n, t_stride, rows,
    eps,
    R: tl.constexpr, SCALE_GATE: tl.constexpr, SHIFT_GATE: tl.constexpr,
    ITERATIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // chunks).to(tl.int64)
    first_tile = (tl.program_id(0) % chunks) * ITERATIONS
    col = tl.arange(0, BLOCK_C)[None, :]
    in_row = col < C
    t = tl.load(t_ptr + b * t_stride).to(tl.float32)
    gamma = mixed_at(t, p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr, col, in_row, SCALE_GATE)
    beta = mixed_at(t, p3_ptr, p4_ptr, shift_weight_ptr, shift_offset_ptr, col, in_row, SHIFT_GATE)
    for i in range(ITERATIONS):
        n = (first_tile + i) * ROWS + tl.arange(0, ROWS)[:, None]
        in_sample = n < N
        mask = in_sample & in_row
        row = b * N + n
        x_at = b * x_stride_b + _source(n, width, x_stride_pixel, C, R) + col
        x = tl.load(x_ptr + x_at, mask=mask, other=0.0).to(tl.float32)
        y_at = b * y_stride_b + n.to(tl.int64) * y_stride_n + col
        y = tl.load(y_ptr + y_at, mask=mask, other=0.0).to(tl.float32)
        mean, scale = row_statistics(x, in_row, C, eps, False)
        if stats_ptr is not None:
            tl.store(stats_ptr + row, mean, mask=in_sample)
            tl.store(stats_ptr + rows + row, scale, mask=in_sample)
        out = (x - mean) * scale * gamma + beta + y
        out_at = b * out_stride_b + n.to(tl.int64) * out_stride_n + col
        tl.store(out_ptr + out_at, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _shuffle_norm_add_bwd_kernel(
    grad_ptr, x_ptr, stats_ptr, dx_ptr, partial_ptr, t_ptr, p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr,
    N, C, width, chunks, x_stride_b, x_stride_pixel, t_stride, rows, partial_rows,
    R: tl.constexpr, SCALE_GATE: tl.constexpr,
    ITERATIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write ``dx`` (contiguous, in x's order) and one partial of dgamma and dbeta; None where not wanted."""
    b = (tl.program_id(0) // chunks).to(tl.int64)
    first_tile = (tl.program_id(0) % chunks) * ITERATIONS
    col = tl.arange(0, BLOCK_C)[None, :]
    in_row = col < C
    t = tl.load(t_ptr + b * t_stride).to(tl.float32)
    gamma = mixed_at(t, p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr, col, in_row, SCALE_GATE)
    dgamma = tl.zeros([ROWS, BLOCK_C], dtype=tl.float32)
    dbeta = tl.zeros([ROWS, BLOCK_C], dtype=tl.float32)
    for i in range(ITERATIONS):
        n = (first_tile + i) * ROWS + tl.arange(0, ROWS)[:, None]
        in_sample = n < N
        mask = in_sample & in_row
        row = b * N + n
        x_at = b * x_stride_b + _source(n, width, x_stride_pixel, C, R) + col
        x = tl.load(x_ptr + x_at, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + row * C + col, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(stats_ptr + row, mask=in_sample, other=0.0)
        scale = tl.load(stats_ptr + rows + row, mask=in_sample, other=0.0)
        xhat = (x - mean) * scale  # where masked, grad is zero
        dgamma += grad * xhat
        dbeta += grad
        if dx_ptr is not None:
            weighted = grad * gamma
            along_xhat = divide(tl.sum(weighted * xhat, axis=1, keep_dims=True), C)
            average = divide(tl.sum(weighted, axis=1, keep_dims=True), C)
            dx = (weighted - along_xhat * xhat - average) * scale
            dx_at = b * N * C + _source(n, width, R * R * C, C, R) + col
            tl.store(dx_ptr + dx_at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if partial_ptr is not None:
        chunk = tl.program_id(0).to(tl.int64)
        tl.store(partial_ptr + chunk * C + col, tl.sum(dgamma, axis=0, keep_dims=True), mask=in_row)
        tl.store(partial_ptr + (chunk + partial_rows) * C + col, tl.sum(dbeta, axis=0, keep_dims=True), mask=in_row)


# 16 to 32 elements per thread and input, so that several 16-byte loads are in flight.
@launch_config("shuffle_norm_add_fwd")
def forward_config(C: int) -> RowConfig:
    return RowConfig(elements=4096, min_programs=2048, max_tiles=16, num_warps=row_warps(C))


# Fewer, since two sums stay in registers; longer programs, since each writes a partial.
@launch_config("shuffle_norm_add_bwd")
def backward_config(C: int) -> RowConfig:
    return RowConfig(elements=2048, min_programs=1024, max_tiles=32, num_warps=row_warps(C))


def _samples(shape: Sequence[int], r: int) -> Samples:
    """Return the rows of the result of an ``x`` of this shape, by sample."""
    B, H, W, channels = shape
    return Samples(B, r * H * r * W, channels // (r * r))


def forward(
    x: Tensor, y: Tensor, t: Tensor, r: int, gates: GateParameters, eps: float, statistics: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Compute the sum and the statistics: ``x [B, H, W, r*r*C]``, ``y [B, r*H, r*W, C]``, ``t [B]`` or ``[1]``."""
    out = torch.empty(y.shape, dtype=torch.promote_types(x.dtype, y.dtype), device=x.device)
    stats = None
    if statistics:
        stats = torch.empty((2, y.numel() // y.shape[3]), dtype=torch.float32, device=x.device)
    _add(x, with_rows(y), out, stats, t, r, gates, eps)
    return out, stats


def forward_into(x: Tensor, y: Tensor, t: Tensor, r: int, gates: GateParameters, eps: float) -> None:
    """Add to y in place, whose pixels may be any equal distance apart, without statistics for a backward."""
    _add(x, y, y, None, t, r, gates, eps)


def _add(x, y, out, stats, t, r, gates, eps) -> None:
    """Write the sum of ``x [B, H, W, r*r*C]`` and ``y`` to ``out``, which may be y: both ``[B, r*H, r*W, C]``."""
    if out.numel():
        x, gates = with_rows(x), dense(gates)
        strides = x.stride(), y.stride(), out.stride()
        launch = _forward_launch(x.shape, y.shape, *strides, r, t.shape[0], t.stride(0), *gate_widths(gates), eps)
        launch(x, y, out, stats, t, *gates)


@cached_by_shape
def _forward_launch(shape, out_shape, x, y, out, r, T, t_stride, scale_gate, shift_gate, eps) -> Launch:
    """``shape`` is x's; ``x``, ``y`` and ``out`` are strides."""
    samples = _samples(shape, r)
    C = samples.D
    tiling = forward_config(C).tiling(samples)
    chunks = samples.chunks(tiling.rows_per_program)
    strides = *row_strides(shape, x), *row_strides(out_shape, y), *row_strides(out_shape, out)
    return Launch(
        _shuffle_norm_add_fwd_kernel,
        (samples.B * chunks,),
        (samples.N, C, shape[2], chunks, *strides, 0 if T == 1 else t_stride, samples.rows, float(eps)),
        {
            "R": r, "SCALE_GATE": int(scale_gate == C), "SHIFT_GATE": int(shift_gate == C),
            "ITERATIONS": tiling.iterations, "ROWS": tiling.rows, "BLOCK_C": tiling.columns,
        },
        num_warps=tiling.num_warps,
    )  # fmt: skip


def backward(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    t: Tensor,
    r: int,
    gates: GateParameters,
    needs_x: bool,
    needs_t: bool,
    needs_gates: GateParameters,
) -> tuple[Tensor | None, Tensor | None, GateParameters]:
    """Compute the gradients of x, of t and of the gates; None where one is not needed."""
    x, gates = with_rows(x), dense(gates)
    arguments = x.shape, x.stride(), r, t.shape[0], t.stride(0), gate_widths(gates)[0]
    programs, chunks, launch = _backward_launch(*arguments)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if needs_x else None
    partials = None
    if needs_t or any(needs_gates):
        partials = torch.empty((2, programs, grad.shape[3]), dtype=torch.float32, device=x.device)
    if x.numel():
        launch(grad.contiguous(), x, stats, dx, partials, t, *gates[:4])
    elif partials is not None:
        partials.zero_()
    if partials is None:
        return dx, None, GateParameters(None, None, None, None)
    return dx, *gate_gradients(partials, chunks, t, gates, needs_t, needs_gates)


@cached_by_shape
def _backward_launch(shape, x, r, T, t_stride, scale_gate) -> tuple[int, int, Launch]:
    """Return the rows of partials, how many of them a sample has, and the launch."""
    samples = _samples(shape, r)
    C = samples.D
    tiling = backward_config(C).tiling(samples)
    chunks = samples.chunks(tiling.rows_per_program)
    programs = samples.B * chunks
    launch = Launch(
        _shuffle_norm_add_bwd_kernel,
        (programs,),
        (samples.N, C, shape[2], chunks, *row_strides(shape, x), 0 if T == 1 else t_stride, samples.rows, programs),
        {
            "R": r, "SCALE_GATE": int(scale_gate == C), "ITERATIONS": tiling.iterations, "ROWS": tiling.rows,
            "BLOCK_C": tiling.columns,
        },
        num_warps=tiling.num_warps,
    )  # fmt: skip
    return programs, chunks, launch
