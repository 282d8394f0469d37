"""Triton kernels of ``y + TDLN(pixel_shuffle(x))``: every element read once and written once, forward and backward.

With channels in ``(r, r, C)`` order the shuffle moves whole rows of C channels, so it is an index map over rows: a
program walks rows of the result in their order, and reads (in the backward also writes) x's rows where the map says.
It stays inside one sample, so gamma(t) and beta(t) are computed once and never written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configurations import Table
from ..launch import KernelCase, Launch, cached_by_shape
from ..row_statistics import row_statistics
from ..samples import Samples, Tiling, row_strides, tiling, walk_candidates, walk_rows, with_rows
from ..tiled_case import tiled_case
from ..time_gate.triton import dense, gate_gradients, gate_widths, mixed_at


@triton.jit
def _source(n, width, x_stride_pixel, C, R: tl.constexpr):
    """Where result row ``n`` (pixel ``(n // (R * width), n % (R * width))`` of its sample) begins in x's sample."""
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
    """``dx`` (contiguous, in x's order) and one partial of dgamma and dbeta; None where not wanted."""
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
            along_xhat = tl.sum(weighted * xhat, axis=1, keep_dims=True) / C
            average = tl.sum(weighted, axis=1, keep_dims=True) / C
            dx = (weighted - along_xhat * xhat - average) * scale
            dx_at = b * N * C + _source(n, width, R * R * C, C, R) + col
            tl.store(dx_ptr + dx_at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if partial_ptr is not None:
        chunk = tl.program_id(0).to(tl.int64)
        tl.store(partial_ptr + chunk * C + col, tl.sum(dgamma, axis=0, keep_dims=True), mask=in_row)
        tl.store(partial_ptr + (chunk + partial_rows) * C + col, tl.sum(dbeta, axis=0, keep_dims=True), mask=in_row)


# 16 to 32 elements per thread and input, so that several 16-byte loads are in flight.
FORWARD = Table(
    "shuffle_norm_add_fwd",
    rows=walk_rows(4096, programs=2048, longest=16),
    candidates=lambda C, family: walk_candidates(C, longest=16),
)
# Fewer, since two sums stay in registers; longer programs, since each writes a partial.
BACKWARD = Table(
    "shuffle_norm_add_bwd",
    rows=walk_rows(2048, programs=1024, longest=32),
    candidates=lambda C, family: walk_candidates(C, longest=32),
)
TABLES = (FORWARD, BACKWARD)


def forward_config(samples: Samples) -> Tiling:
    return tiling(samples, FORWARD.choose(samples.D))


def backward_config(samples: Samples) -> Tiling:
    return tiling(samples, BACKWARD.choose(samples.D))


def _samples(shape: Sequence[int], r: int) -> Samples:
    """Rows of the result of an ``x`` of this shape, sample by sample."""
    B, H, W, channels = shape
    return Samples(B, r * H * r * W, channels // (r * r))


def forward(
    x: Tensor, y: Tensor, t: Tensor, r: int, gates: Sequence[Tensor | None], eps: float, statistics: bool = True
) -> tuple[Tensor, Tensor | None]:
    """``x [B, H, W, r*r*C]``, ``y [B, r*H, r*W, C]``, ``t [B]`` or ``[1]``, ``gates`` by kind -> sum, statistics."""
    out = torch.empty(y.shape, dtype=torch.promote_types(x.dtype, y.dtype), device=x.device)
    stats = None
    if statistics:
        stats = torch.empty((2, y.numel() // y.shape[3]), dtype=torch.float32, device=x.device)
    _add(x, with_rows(y), out, stats, t, r, gates, eps)
    return out, stats


def forward_into(x: Tensor, y: Tensor, t: Tensor, r: int, gates: Sequence[Tensor | None], eps: float) -> None:
    """The same in place of y, whose pixels may be any equal distance apart, without statistics for a backward."""
    _add(x, y, y, None, t, r, gates, eps)


def _add(x, y, out, stats, t, r, gates, eps) -> None:
    """``x [B, H, W, r*r*C]``; ``y`` and ``out``, which may be one, ``[B, r*H, r*W, C]``."""
    if out.numel():
        x, gates = with_rows(x), dense(gates)
        strides = x.stride(), y.stride(), out.stride()
        launch = _forward_launch(x.shape, y.shape, *strides, r, t.shape[0], t.stride(0), *gate_widths(gates), eps)
        launch(x, y, out, stats, t, *gates)


@cached_by_shape
def _forward_launch(shape, out_shape, x, y, out, r, T, t_stride, scale_gate, shift_gate, eps) -> Launch:
    """``shape`` is x's; ``x``, ``y`` and ``out`` are strides."""
    samples = _samples(shape, r)
    config = forward_config(samples)
    chunks = samples.chunks(config.rows_per_program)
    C = samples.D
    strides = *row_strides(shape, x), *row_strides(out_shape, y), *row_strides(out_shape, out)
    return Launch(
        _shuffle_norm_add_fwd_kernel,
        (samples.B * chunks,),
        (samples.N, C, shape[2], chunks, *strides, 0 if T == 1 else t_stride, samples.rows, float(eps)),
        {
            "R": r, "SCALE_GATE": int(scale_gate == C), "SHIFT_GATE": int(shift_gate == C),
            "ITERATIONS": config.iterations, "ROWS": config.rows, "BLOCK_C": config.columns,
        },
        num_warps=config.num_warps,
    )  # fmt: skip


def backward(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    t: Tensor,
    r: int,
    gates: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of x, of t and of each of ``gates``; None where ``needs`` (in that order) is False."""
    x, gates = with_rows(x), dense(gates)
    arguments = x.shape, x.stride(), r, t.shape[0], t.stride(0), gate_widths(gates)[0]
    programs, chunks, launch = _backward_launch(*arguments)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if needs[0] else None
    partials = None
    if any(needs[1:]):
        partials = torch.empty((2, programs, grad.shape[3]), dtype=torch.float32, device=x.device)
    if x.numel():
        launch(grad.contiguous(), x, stats, dx, partials, t, *gates[:4])
    elif partials is not None:
        partials.zero_()
    if partials is None:
        return [dx, *[None] * len(needs[1:])]
    return [dx, *gate_gradients(partials, chunks, t, gates, needs[1:])]


@cached_by_shape
def _backward_launch(shape, x, r, T, t_stride, scale_gate) -> tuple[int, int, Launch]:
    """Rows of partials, how many of them a sample has, and the launch."""
    samples = _samples(shape, r)
    config = backward_config(samples)
    chunks = samples.chunks(config.rows_per_program)
    programs, C = samples.B * chunks, samples.D
    launch = Launch(
        _shuffle_norm_add_bwd_kernel,
        (programs,),
        (samples.N, C, shape[2], chunks, *row_strides(shape, x), 0 if T == 1 else t_stride, samples.rows, programs),
        {
            "R": r, "SCALE_GATE": int(scale_gate == C), "ITERATIONS": config.iterations, "ROWS": config.rows,
            "BLOCK_C": config.columns,
        },
        num_warps=config.num_warps,
    )  # fmt: skip
    return programs, chunks, launch


ACTIVATIONS = ("x_ptr", "y_ptr", "out_ptr", "grad_ptr", "dx_ptr")


def cases() -> Iterator[KernelCase]:
    """The configurations that the model's cascades compile, for analysis without a GPU."""
    for C in (192, 240, 384, 480, 576):
        samples = Samples(B=64, N=1024, D=C)
        for dtype in (torch.bfloat16, torch.float32):
            yield _case("shuffle_norm_add_fwd", _shuffle_norm_add_fwd_kernel, samples, dtype, forward_config(samples))
            yield _case("shuffle_norm_add_bwd", _shuffle_norm_add_bwd_kernel, samples, dtype, backward_config(samples))


def _case(name: str, kernel, samples: Samples, dtype: torch.dtype, config: Tiling) -> KernelCase:
    return tiled_case(
        f"{name}[C={samples.D}", kernel, dtype, config, {"R": 2, "SCALE_GATE": 1, "SHIFT_GATE": 1}, ACTIVATIONS,
        outputs_per_program=config.rows_per_program * samples.D, bytes_per_output=3 * dtype.itemsize,
    )  # fmt: skip
