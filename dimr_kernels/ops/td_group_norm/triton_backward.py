"""Backward kernels: sums of every channel over chunks of pixels, a group's two sums from them, and dx.

The sums of a chunk are its shares of dgamma and dbeta, which ``time_gate`` reduces to the parameters' gradients. What
dx needs of a group, the sums of ``gamma dy`` and of ``gamma dy xhat``, is made of the same numbers. No atomics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configurations import Row, Table
from ..launch import Launch, cached_by_shape, ceil_div
from ..samples import Columns, Samples, Tiling, Walk, column_candidates, column_tiling, with_rows
from ..time_gate.triton import dense, gate_gradients, gate_widths, mixed_at
from .triton_forward import MERGE_BLOCK, as_pixels, group_statistics


@triton.jit
def _td_group_norm_sums_kernel(
    grad_ptr, x_ptr, stats_ptr, partial_ptr, N, C, chunks, x_stride_b, x_stride_n, groups, rows, half,
    ITERATIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """``partials [2, R, C]``: of a chunk's pixels, the sums of ``dy xhat`` and of ``dy``; ``half`` elements each."""
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
    tl.store(sums_ptr + tl.program_id(0), tl.sum(along_xhat, axis=0) / N / width)
    tl.store(sums_ptr + tl.num_programs(0) + tl.program_id(0), tl.sum(plain, axis=0) / N / width)


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


# As forward, but for two inputs a thread holds half as many elements of each.
SUMS = Table(
    "td_group_norm_sums_bwd",
    rows=(Row(Columns(1024, Walk(2048, programs=1024, longest=32, num_warps=4))),),
    candidates=lambda C, family: column_candidates(longest=32),
)
BACKWARD = Table(
    "td_group_norm_bwd",
    rows=(Row(Columns(1024, Walk(2048, programs=2048, longest=16, num_warps=4))),),
    candidates=lambda C, family: column_candidates(longest=16),
)


def sums_config(samples: Samples) -> Tiling:
    return column_tiling(samples, SUMS.choose(samples.D))


def backward_config(samples: Samples) -> Tiling:
    return column_tiling(samples, BACKWARD.choose(samples.D))


def backward(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    t: Tensor,
    groups: int,
    gates: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of x, of t and of each of ``gates``; None where ``needs`` (in that order) is False."""
    x, grad, gates = with_rows(x), grad.contiguous(), dense(gates)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if needs[0] else None
    of_x = x.shape, x.stride(), groups
    of_gates = t.shape[0], t.stride(0), gate_widths(gates)[0]
    programs, chunks, sums = _sums_launch(*of_x)
    partials = torch.empty((2, programs, x.shape[-1]), dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        partials.zero_()
    else:
        sums(grad, x, stats, partials)
        if dx is not None:
            group_sums = torch.empty_like(stats)
            join, launch = _launches(*of_x, programs, chunks, *of_gates)
            join(partials, group_sums, t, *gates[:4])
            launch(grad, x, stats, group_sums, dx, t, *gates[:4])
    if not any(needs[1:]):
        return [dx, *[None] * len(needs[1:])]
    kinds = partials if gates[4] is not None else partials[:1]
    return [dx, *gate_gradients(kinds, chunks, t, gates, needs[1:])]


@cached_by_shape
def _sums_launch(shape, strides, groups) -> tuple[int, int, Launch]:
    """Rows of partials, how many of them a sample has, and the launch."""
    samples, x = as_pixels(shape, strides)
    config = sums_config(samples)
    chunks, C = samples.chunks(config.rows_per_program), samples.D
    programs = samples.B * chunks
    launch = Launch(
        _td_group_norm_sums_kernel,
        (programs, ceil_div(C, config.columns)),
        (samples.N, C, chunks, *x, groups, samples.B * groups, programs * C),
        {"ITERATIONS": config.iterations, "ROWS": config.rows, "BLOCK_C": config.columns},
        num_warps=config.num_warps,
    )
    return programs, chunks, launch


@cached_by_shape
def _launches(shape, strides, groups, R, partial_chunks, T, t_stride, scale_gate) -> tuple[Launch, Launch]:
    """Of a group's sums, and of dx."""
    samples, x = as_pixels(shape, strides)
    config = backward_config(samples)
    chunks, C = samples.chunks(config.rows_per_program), samples.D
    t_stride, gate = 0 if T == 1 else t_stride, int(scale_gate == C)
    join = Launch(
        _td_group_norm_group_sums_kernel,
        (samples.B * groups,),
        (samples.N, C, partial_chunks, t_stride, groups, R * C),
        {"SCALE_GATE": gate, "BLOCK": MERGE_BLOCK},
    )
    launch = Launch(
        _td_group_norm_bwd_kernel,
        (samples.B * chunks, ceil_div(C, config.columns)),
        (samples.N, C, chunks, *x, t_stride, groups, samples.B * groups),
        {"SCALE_GATE": gate, "ITERATIONS": config.iterations, "ROWS": config.rows, "BLOCK_C": config.columns},
        num_warps=config.num_warps,
    )
    return join, launch
