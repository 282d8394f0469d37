"""Triton kernels of ``y + TDLN(pixel_shuffle(x))``: every element read once and written once, forward and backward.

With channels in ``(r, r, C)`` order the shuffle moves whole rows of C channels, so it is an index map over rows: a
program walks rows of the result in their order, and reads (in the backward also writes) x's rows where the map says.
It stays inside one sample, so gamma(t) and beta(t) are computed once and never written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import TRITON_TYPES, KernelCase, device_guard, next_power_of_2
from ..row_statistics import row_statistics
from ..samples import Samples, walk
from ..time_gate.triton import gate_gradients, gate_stride, mixed_at, time_stride


@triton.jit
def _source(n, width, x_stride_pixel, C, R: tl.constexpr):
    """Where result row ``n`` (pixel ``(n // (R * width), n % (R * width))`` of its sample) begins in x's sample."""
    row = n // (R * width)
    column = n - row * (R * width)
    pixel = (row // R) * width + column // R
    slot = (row % R) * R + column % R
    return pixel.to(tl.int64) * x_stride_pixel + slot * C


@triton.jit
def _fwd_kernel(
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
def _bwd_kernel(
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


@dataclass(frozen=True)
class LaunchConfig:
    block_c: int
    rows: int
    iterations: int
    """Tiles of rows per program."""
    num_warps: int


# Not yet timed on a GPU. Forward: 16 to 32 elements per thread and input, so that several 16-byte loads are in flight.
# Backward: fewer, since two sums stay in registers; longer programs, since each writes a partial.
FORWARD_TILE, FORWARD_PROGRAMS, FORWARD_WALK = 4096, 2048, 16
BACKWARD_TILE, BACKWARD_PROGRAMS, BACKWARD_WALK = 2048, 1024, 32


def forward_config(samples: Samples) -> LaunchConfig:
    return _config(samples, FORWARD_TILE, FORWARD_PROGRAMS, FORWARD_WALK)


def backward_config(samples: Samples) -> LaunchConfig:
    return _config(samples, BACKWARD_TILE, BACKWARD_PROGRAMS, BACKWARD_WALK)


def _config(samples: Samples, tile: int, programs: int, longest: int) -> LaunchConfig:
    block_c = next_power_of_2(samples.D)
    rows, iterations = walk(samples, tile, programs, longest)
    return LaunchConfig(block_c, rows, iterations, num_warps=max(4, min(16, block_c // 512)))


def _samples(x: Tensor, r: int) -> Samples:
    """Rows of the result, sample by sample."""
    B, H, W, channels = x.shape
    return Samples(B, r * H * r * W, channels // (r * r))


def _pixels(x: Tensor) -> Tensor:
    """``[B, H, W, channels]`` -> ``[B, H * W, channels]`` with a unit last stride; a view where there is one."""
    x = x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3])
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def forward(x: Tensor, y: Tensor, t: Tensor, r: int, gates: tuple[Tensor, ...], eps: float) -> tuple[Tensor, Tensor]:
    """``x [B, H, W, r*r*C]``, ``y [B, r*H, r*W, C]``, ``t [B]`` or ``[1]``, ``gates`` by kind -> sum, statistics."""
    samples = _samples(x, r)
    out = torch.empty(y.shape, dtype=torch.promote_types(x.dtype, y.dtype), device=x.device)
    stats = torch.empty((2, samples.rows), dtype=torch.float32, device=x.device)
    if out.numel():
        _launch_forward(samples, x, _pixels(y), _pixels(out), stats, t, r, gates, eps)
    return out, stats


def forward_into(x: Tensor, y: Tensor, t: Tensor, r: int, gates: tuple[Tensor, ...], eps: float) -> None:
    """The same in place of y, whose pixels may be any equal distance apart, without statistics for a backward."""
    if y.numel():
        pixels = y.view(y.shape[0], -1, y.shape[3])
        _launch_forward(_samples(x, r), x, pixels, pixels, None, t, r, gates, eps)


def _launch_forward(samples, x, y, out, stats, t, r, gates, eps) -> None:
    """``x [B, H, W, r*r*C]``; ``y`` and ``out``, which may be one, ``[B, r*H * r*W, C]``."""
    config = forward_config(samples)
    chunks = samples.chunks(config.rows * config.iterations)
    width, x = x.shape[2], _pixels(x)
    with device_guard(x):
        _fwd_kernel[(samples.B * chunks,)](
            x, y, out, stats, t, *gates, samples.N, samples.D, width, chunks, x.stride(0), x.stride(1), y.stride(0),
            y.stride(1), out.stride(0), out.stride(1), time_stride(t), samples.rows, eps, R=r,
            SCALE_GATE=gate_stride(gates[2], samples.D), SHIFT_GATE=gate_stride(gates[6], samples.D),
            ITERATIONS=config.iterations, ROWS=config.rows, BLOCK_C=config.block_c, num_warps=config.num_warps,
        )  # fmt: skip


def backward(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    t: Tensor,
    r: int,
    gates: tuple[Tensor, ...],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of x, of t and of each of ``gates``; None where ``needs`` (in that order) is False."""
    samples = _samples(x, r)
    config = backward_config(samples)
    chunks = samples.chunks(config.rows * config.iterations)
    programs = samples.B * chunks
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if needs[0] else None
    partials = None
    if any(needs[1:]):
        partials = torch.empty((2, programs, samples.D), dtype=torch.float32, device=x.device)
    if samples.rows:
        width, x = x.shape[2], _pixels(x)
        with device_guard(x):
            _bwd_kernel[(programs,)](
                grad.contiguous(), x, stats, dx, partials, t, *gates[:4], samples.N, samples.D, width, chunks,
                x.stride(0), x.stride(1), time_stride(t), samples.rows, programs, R=r,
                SCALE_GATE=gate_stride(gates[2], samples.D), ITERATIONS=config.iterations, ROWS=config.rows,
                BLOCK_C=config.block_c, num_warps=config.num_warps,
            )  # fmt: skip
    elif partials is not None:
        partials.zero_()
    if partials is None:
        return [dx, *[None] * len(needs[1:])]
    return [dx, *gate_gradients(partials, chunks, t, gates, needs[1:])]


def cases() -> Iterator[KernelCase]:
    """The configurations that the model's cascades compile, for analysis without a GPU."""
    for C in (240, 480, 576):
        samples = Samples(B=64, N=1024, D=C)
        for dtype in (torch.bfloat16, torch.float32):
            yield _case("shuffle_norm_add_fwd", _fwd_kernel, samples, dtype, forward_config(samples))
            yield _case("shuffle_norm_add_bwd", _bwd_kernel, samples, dtype, backward_config(samples))


def _case(name: str, kernel, samples: Samples, dtype: torch.dtype, config: LaunchConfig) -> KernelCase:
    """Activations in ``dtype``, statistics, partials and parameters in float32."""
    constants = {
        "R": 2, "SCALE_GATE": 1, "SHIFT_GATE": 1, "ITERATIONS": config.iterations,
        "ROWS": config.rows, "BLOCK_C": config.block_c,
    }  # fmt: skip
    constants = {argument: value for argument, value in constants.items() if argument in kernel.arg_names}
    signature = {argument: "i32" for argument in kernel.arg_names if argument not in constants}
    for argument in signature:
        if argument.endswith("_ptr"):
            activation = argument in ("x_ptr", "y_ptr", "out_ptr", "grad_ptr", "dx_ptr")
            signature[argument] = f"*{TRITON_TYPES[dtype if activation else torch.float32]}"
        elif argument == "eps":
            signature[argument] = "fp32"
    return KernelCase(
        name=f"{name}[C={samples.D},{TRITON_TYPES[dtype]}]",
        kernel=kernel,
        signature=signature,
        constants=constants,
        num_warps=config.num_warps,
        aligned=frozenset(signature) - {"N", "width", "chunks", "t_stride", "rows", "partial_rows", "eps"},
        outputs_per_program=config.rows * config.iterations * samples.D,
    )
