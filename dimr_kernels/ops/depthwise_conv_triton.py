"""Triton kernels of the depthwise convolution: forward and input gradient (one kernel), weight and bias gradient.

A program owns ``GROUPS`` groups of ``COLS`` neighbouring columns times ``BLOCK_C`` channels and loops over the rows of
an image. K*K taps (or tap gradients) live in registers, so a thread has room for two channels (four where K is 3) and
an access is that wide: 4 bytes of bfloat16 at K = 7. A warp still covers whole 32-byte sectors. Wider ones do not pay:
compiled for sm_90, 8 bytes (four channels, one column) spill 88 bytes a thread at 78 instructions per output, 16 bytes
2184 at 166. Rows staged in shared memory would add copies to the same narrow reads, in a kernel bound by issue.

With K = 7 the kernels are bound by the issue of instructions, 49 of them fused multiply-adds per output. Therefore the
rows rotate by rebinding tuples (no copies), the distance between columns is a constant (it becomes part of each
instruction's address; as a variable it costs 6 more instructions per output) and the next row is loaded ahead.
``tl.fma`` is spelled out because newer Triton does not contract ``a * b + c`` by itself.
"""

# ruff: noqa: RUF005  (Triton has no unpacking: ``(*row, x)`` does not compile)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launch, LaunchConfig, cached_by_shape, ceil_div, launch_config

# Sizes that only steer loops and masks: compiling again for each of their values would gain nothing.
SIZES = ("B", "H", "W", "chunk", "units_per_split", "partials")


@triton.jit
def _repeated(value, N: tl.constexpr):
    out = ()
    for _ in tl.static_range(N):
        out = out + (value,)  # type: ignore[assignment]
    return out


@triton.jit
def _if_row(in_c, r, top, bottom):
    """Mask in_c [1, BLOCK_C] if top <= r < bottom, else no element."""
    r = r + tl.zeros((1, 1), tl.int32)  # a tile, since Triton 3.9's interpreter refuses scalar conditions in masks
    return in_c & (r >= top) & (r < bottom)


@triton.jit
def _inside(col, j: tl.constexpr, W, COLS: tl.constexpr, EVEN: tl.constexpr):
    """Mask of column ``col + j`` inside the image.

    ``EVEN``: COLS divides W and is no less than R. Then the columns before a group, in it and after it are all inside
    or all outside, and for a group that begins outside (which stores nothing) the answer does not matter: three
    conditions, which hold for all rows, instead of one for each column, and up to 6% fewer instructions.
    """
    if EVEN and j < 0:
        return (col - 1).to(tl.uint32) < (W - 1).to(tl.uint32)
    elif EVEN and j < COLS:
        return col < W
    elif EVEN:
        return col + COLS < W
    else:  # Unsigned, a negative column is a huge one: one comparison does for both edges.
        return (col + j).to(tl.uint32) < W.to(tl.uint32)


@triton.jit
def _load_row(
    ptrs, col, mask, W, COL_STRIDE: tl.constexpr, FIRST: tl.constexpr, N: tl.constexpr, COLS: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Load columns ``col + FIRST`` .. ``col + FIRST + N - 1`` as N tiles [GROUPS, BLOCK_C], zero outside the image."""
    row = ()
    for j in tl.static_range(N):
        inside = _inside(col, FIRST + j, W, COLS, EVEN) & mask
        row = row + (tl.load(ptrs + (FIRST + j) * COL_STRIDE, mask=inside, other=0.0).to(tl.float32),)  # type: ignore[assignment]
    return row


@triton.jit
def _store_row(ptrs, row, col, mask, W, COL_STRIDE: tl.constexpr, COLS: tl.constexpr, EVEN: tl.constexpr):
    for j in tl.static_range(COLS):
        inside = _inside(col, j, W, COLS, EVEN) & mask
        tl.store(ptrs + j * COL_STRIDE, row[j].to(ptrs.dtype.element_ty), mask=inside)


@triton.jit
def _first_sums(bias, residual_ptrs, col, mask, W, COL_STRIDE: tl.constexpr, COLS: tl.constexpr, EVEN: tl.constexpr):
    """Initial sums of one output row: bias, plus the residual if there is one.

    Outside the image they may be anything, since the sums there are never stored.
    """
    if residual_ptrs is not None:
        sums = ()
        for j in tl.static_range(COLS):
            residual = tl.load(residual_ptrs + j * COL_STRIDE, mask=_inside(col, j, W, COLS, EVEN) & mask)
            sums = sums + (residual.to(tl.float32) + bias,)  # type: ignore[assignment]
        return sums
    else:
        return _repeated(bias, COLS)


@triton.jit(do_not_specialize=SIZES)
def _depthwise_conv_fwd_kernel(
    x_ptr, taps_ptr, bias_ptr, residual_ptr, out_ptr, H, W, C, chunk, x_image, x_row, residual_image, residual_row,
    X_COL: tl.constexpr, RESIDUAL_COL: tl.constexpr, K: tl.constexpr, FLIP: tl.constexpr, ADD_INPUT: tl.constexpr,
    COLS: tl.constexpr, EVEN: tl.constexpr, GROUPS: tl.constexpr, BLOCK_C: tl.constexpr, OUT_COL: tl.constexpr,
):  # fmt: skip
    """Compute output rows [top, bottom) of one image.

    ``sums`` holds K rows of partial sums, the next one to store first.
    """
    R: tl.constexpr = K // 2
    TAPS: tl.constexpr = K * K
    c_blocks, tiles, chunks = tl.cdiv(C, BLOCK_C), tl.cdiv(W, GROUPS * COLS), tl.cdiv(H, chunk)
    pid = tl.program_id(0)
    c = pid % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    col = (pid // c_blocks % tiles * GROUPS + tl.arange(0, GROUPS)[:, None]) * COLS
    pid = pid // (c_blocks * tiles)
    top = pid % chunks * chunk
    bottom = tl.minimum(top + chunk, H)
    b = (pid // chunks).to(tl.int64)
    first = tl.maximum(top - R, 0)
    last = tl.minimum(bottom + R, H)
    in_c = c < C

    whole = tl.zeros((GROUPS, BLOCK_C), tl.int32) + c  # a tile of its own per thread: loaded in place, not exchanged
    taps = ()
    for k in tl.static_range(TAPS):
        tap = tl.load(taps_ptr + (TAPS - 1 - k if FLIP else k) * C + whole, mask=whole < C, other=0.0).to(tl.float32)
        taps = taps + (tap + 1.0 if ADD_INPUT and k == TAPS // 2 else tap,)  # type: ignore[assignment]
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + whole, mask=whole < C, other=0.0).to(tl.float32)
    else:
        bias = tl.zeros((GROUPS, BLOCK_C), tl.float32)

    wide_col = col.to(tl.int64)
    x_ptrs = x_ptr + b * x_image + first.to(tl.int64) * x_row + wide_col * X_COL + c
    out_row = W.to(tl.int64) * OUT_COL
    out_ptrs = out_ptr + (b * H + first - R) * out_row + wide_col * OUT_COL + c
    residual_ptrs = None
    if residual_ptr is not None:
        residual_ptrs = residual_ptr + b * residual_image + (first - R).to(tl.int64) * residual_row
        residual_ptrs += wide_col * RESIDUAL_COL + c
    sums = ()
    for s in tl.static_range(K):
        r = first - R + s
        sums = sums + _first_sums(bias, residual_ptrs, col, _if_row(in_c, r, top, bottom), W, RESIDUAL_COL, COLS, EVEN)
        if residual_ptrs is not None:
            residual_ptrs += residual_row
    ahead = _load_row(x_ptrs, col, in_c, W, X_COL, -R, COLS + K - 1, COLS, EVEN)
    for h in range(first, last):
        row = ahead
        x_ptrs += x_row
        ahead = _load_row(x_ptrs, col, _if_row(in_c, h + 1, first, last), W, X_COL, -R, COLS + K - 1, COLS, EVEN)
        done = ()
        for s in tl.static_range(K):  # output row h - R + s sees input row h through tap row K - 1 - s
            for j in tl.static_range(COLS):
                total = sums[s * COLS + j]  # type: ignore[var-annotated]
                for kw in tl.static_range(K):
                    total = tl.fma(row[j + kw], taps[(K - 1 - s) * K + kw], total)
                done = done + (total,)  # type: ignore[assignment]
        _store_row(out_ptrs, done, col, _if_row(in_c, h - R, top, bottom), W, OUT_COL, COLS, EVEN)
        sums = done[COLS:] + _first_sums(
            bias, residual_ptrs, col, _if_row(in_c, h + R + 1, top, bottom), W, RESIDUAL_COL, COLS, EVEN
        )
        out_ptrs += out_row
        if residual_ptrs is not None:
            residual_ptrs += residual_row
    for s in tl.static_range(R):  # complete too: below the last input row there are only zeros
        r = last - R + s
        _store_row(out_ptrs, sums[s * COLS :], col, _if_row(in_c, r, top, bottom), W, OUT_COL, COLS, EVEN)
        out_ptrs += out_row


@triton.jit(do_not_specialize=SIZES)
def _depthwise_conv_weight_kernel(
    x_ptr, grad_ptr, partial_ptr, B, H, W, C, chunk, units_per_split, x_image, x_row, grad_image, grad_row,
    X_COL: tl.constexpr, GRAD_COL: tl.constexpr, K: tl.constexpr, COLS: tl.constexpr, EVEN: tl.constexpr,
    GROUPS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sum tap and bias gradients over some columns of some units -> partial [., K*K+1, C].

    A unit is ``chunk`` rows of one image. ``ring`` holds the K rows of the output's gradient around the input row h,
    the uppermost first.
    """
    R: tl.constexpr = K // 2
    TAPS: tl.constexpr = K * K
    c_blocks, tiles, chunks = tl.cdiv(C, BLOCK_C), tl.cdiv(W, GROUPS * COLS), tl.cdiv(H, chunk)
    pid = tl.program_id(0)
    part = pid // c_blocks
    split = part // tiles
    c = pid % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    col = (part % tiles * GROUPS + tl.arange(0, GROUPS)[:, None]) * COLS
    in_c = c < C
    x_cols, grad_cols = col.to(tl.int64) * X_COL + c, col.to(tl.int64) * GRAD_COL + c
    dbias = tl.zeros((GROUPS, BLOCK_C), tl.float32)
    dtaps = _repeated(dbias, TAPS)
    for unit in range(split * units_per_split, tl.minimum((split + 1) * units_per_split, B * chunks)):
        b = (unit // chunks).to(tl.int64)
        top = unit % chunks * chunk
        bottom = tl.minimum(top + chunk, H)
        x_ptrs = x_ptr + b * x_image + top.to(tl.int64) * x_row + x_cols
        grad_ptrs = grad_ptr + b * grad_image + (top - R).to(tl.int64) * grad_row + grad_cols
        ring = ()
        for s in tl.static_range(2 * R):
            r = top - R + s
            ring = ring + _load_row(grad_ptrs, col, _if_row(in_c, r, 0, H), W, GRAD_COL, 0, COLS, COLS, EVEN)
            grad_ptrs += grad_row
        x_ahead = _load_row(x_ptrs, col, in_c, W, X_COL, -R, COLS + K - 1, COLS, EVEN)
        grad_ahead = _load_row(grad_ptrs, col, _if_row(in_c, top + R, 0, H), W, GRAD_COL, 0, COLS, COLS, EVEN)
        for h in range(top, bottom):
            row = x_ahead
            ring = ring + grad_ahead
            x_ptrs += x_row
            grad_ptrs += grad_row
            x_ahead = _load_row(x_ptrs, col, _if_row(in_c, h + 1, top, bottom), W, X_COL, -R, COLS + K - 1, COLS, EVEN)
            grad_ahead = _load_row(grad_ptrs, col, _if_row(in_c, h + 1 + R, 0, H), W, GRAD_COL, 0, COLS, COLS, EVEN)
            sums = ()
            for kh in tl.static_range(K):  # tap row kh brought input row h to output row h - kh + R
                for kw in tl.static_range(K):
                    total = dtaps[kh * K + kw]
                    for j in tl.static_range(COLS):
                        total = tl.fma(row[j + kw], ring[(K - 1 - kh) * COLS + j], total)
                    sums = sums + (total,)  # type: ignore[assignment]
            dtaps = sums
            for j in tl.static_range(COLS):
                dbias += ring[R * COLS + j]
            ring = ring[COLS:]
    partial_ptrs = partial_ptr + part.to(tl.int64) * (TAPS + 1) * C + c
    for k in tl.static_range(TAPS):
        tl.store(partial_ptrs + k * C, tl.sum(dtaps[k], 0)[None, :], mask=in_c)
    tl.store(partial_ptrs + TAPS * C, tl.sum(dbias, 0)[None, :], mask=in_c)


@triton.jit(do_not_specialize=SIZES)
def _depthwise_conv_sum_partials_kernel(
    partial_ptr, dweight_ptr, dbias_ptr, C, partials, TAPS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Sum partial [partials, TAPS + 1, C] to dweight [C, TAPS] and dbias [C], always in the same order."""
    k = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    total = tl.zeros((ROWS, BLOCK_C), tl.float32)
    for first in range(0, partials, ROWS):
        p = first + tl.arange(0, ROWS)[:, None]
        offset = (p.to(tl.int64) * (TAPS + 1) + k) * C + c
        total += tl.load(partial_ptr + offset, mask=(p < partials) & (c < C), other=0.0)
    total = tl.sum(total, 0)[None, :]
    if k < TAPS:
        tl.store(dweight_ptr + c * TAPS + k, total.to(dweight_ptr.dtype.element_ty), mask=c < C)
    else:
        tl.store(dbias_ptr + c, total.to(dbias_ptr.dtype.element_ty), mask=c < C)


@dataclass(frozen=True, kw_only=True)
class ConvConfig(LaunchConfig):
    """Launch configuration of a depthwise convolution."""

    cols: int
    groups: int
    block_c: int = 32
    resident_warps: int = 1024
    """About what one large GPU keeps resident at these register counts; fewer programs than that leave it idle."""

    @property
    def tile_width(self) -> int:
        return self.cols * self.groups

    def is_even(self, K: int, W: int) -> bool:
        """Return True if three conditions do for the columns of a row (see ``_inside``)."""
        return W % self.cols == 0 and self.cols >= K // 2


# By kernel size and image width. Chosen by the compiled code: the most columns per thread that fit the registers.
@launch_config("depthwise_conv_fwd")
def forward_config(K: int, W: int) -> ConvConfig:
    if K == 3:
        return ConvConfig(cols=4, groups=4, num_warps=1)
    return ConvConfig(cols=4, groups=2, num_warps=1) if W <= 8 else ConvConfig(cols=4, groups=4, num_warps=2)


# One warp, so that the sum over its threads is (at K = 7 and 5) an exchange of registers.
@launch_config("depthwise_conv_weight")
def weight_config(K: int, W: int) -> ConvConfig:
    return ConvConfig(cols=2, groups=4, num_warps=1) if K == 3 else ConvConfig(cols=4, groups=2, num_warps=1)


SUM_ROWS, SUM_BLOCK_C = 8, 128
SHORTEST_CHUNK = 4


def _rows_per_program(H: int, warps_per_row_range: int, resident_warps: int) -> int:
    """Choose all of H, or fewer rows if so few warps leave the GPU idle. A chunk reads K - 1 rows of its neighbours."""
    return max(min(SHORTEST_CHUNK, H), ceil_div(H, ceil_div(resident_warps, warps_per_row_range)))


def _dense_channels(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    add_input: bool,
    flip: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Convolve ``x [B, H, W, C]`` (any strides) with ``weight [C, 1, K, K]`` -> ``[B, H, W, C]``.

    ``add_input`` adds x to the result; ``flip`` turns the taps around, which makes it the gradient for the input.
    ``out``, where given, has its pixels at equal distances and must not overlap x.
    """
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    x = _dense_channels(x)
    residual = None if residual is None else _dense_channels(residual)
    residual_strides = (0, 0, 0, 0) if residual is None else residual.stride()
    # [1, C, K, K], channels last: a small copy, or none where the weight is stored with its channels last.
    taps = weight.transpose(0, 1).contiguous(memory_format=torch.channels_last)
    strides = x.stride(), residual_strides, out.stride(2)
    launch = _forward_launch(x.shape, *strides, weight.shape[3], add_input, flip)
    launch(x, taps, bias if bias is None else bias.contiguous(), residual, out)
    return out


@cached_by_shape
def _forward_launch(shape, x, residual, out_column, K, add_input, flip) -> Launch:
    """Make the launch of the forward kernel; ``x`` and ``residual`` are strides."""
    B, H, W, C = shape
    config = forward_config(K, W)
    programs = ceil_div(C, config.block_c) * ceil_div(W, config.tile_width) * B
    chunk = _rows_per_program(H, programs * config.num_warps, config.resident_warps)
    return Launch(
        _depthwise_conv_fwd_kernel,
        (programs * ceil_div(H, chunk),),
        (H, W, C, chunk, x[0], x[1], residual[0], residual[1]),
        {
            "X_COL": x[2], "RESIDUAL_COL": residual[2], "K": K, "FLIP": flip, "ADD_INPUT": add_input,
            "COLS": config.cols, "EVEN": config.is_even(K, W), "GROUPS": config.groups, "BLOCK_C": config.block_c,
            "OUT_COL": out_column,
        },
        num_warps=config.num_warps,
    )  # fmt: skip


def weight_gradient(
    grad: Tensor, x: Tensor, K: int, weight_dtype: torch.dtype, bias_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Sum ``grad, x [B, H, W, C]`` to the gradients of weight ``[C, 1, K, K]`` and bias ``[C]``; no atomics."""
    C = x.shape[3]
    dweight = torch.empty((C, 1, K, K), dtype=weight_dtype, device=x.device)
    dbias = torch.empty((C,), dtype=bias_dtype, device=x.device)
    if x.shape[0] == 0:
        return dweight.zero_(), dbias.zero_()
    x, grad = _dense_channels(x), _dense_channels(grad)
    parts, launch, sum_launch = _weight_launches(x.shape, x.stride(), grad.stride(), K)
    partial = torch.empty((parts, K * K + 1, C), dtype=torch.float32, device=x.device)
    launch(x, grad, partial)
    sum_launch(partial, dweight, dbias)
    return dweight, dbias


@cached_by_shape
def _weight_launches(shape, x, grad, K) -> tuple[int, Launch, Launch]:
    """Return the number of partials, their launch and that of the sum; ``x`` and ``grad`` are strides."""
    B, H, W, C = shape
    config = weight_config(K, W)
    c_blocks, tiles = ceil_div(C, config.block_c), ceil_div(W, config.tile_width)
    splits = ceil_div(config.resident_warps, c_blocks * tiles * config.num_warps)
    chunk = max(min(2 * SHORTEST_CHUNK, H), ceil_div(H, ceil_div(4 * splits, B)))  # four units a split: even shares
    units = B * ceil_div(H, chunk)
    units_per_split = ceil_div(units, splits)
    parts = ceil_div(units, units_per_split) * tiles
    launch = Launch(
        _depthwise_conv_weight_kernel,
        (c_blocks * parts,),
        (B, H, W, C, chunk, units_per_split, x[0], x[1], grad[0], grad[1]),
        {
            "X_COL": x[2], "GRAD_COL": grad[2], "K": K, "COLS": config.cols, "EVEN": config.is_even(K, W),
            "GROUPS": config.groups, "BLOCK_C": config.block_c,
        },
        num_warps=config.num_warps,
    )  # fmt: skip
    sum_launch = Launch(
        _depthwise_conv_sum_partials_kernel,
        (K * K + 1, ceil_div(C, SUM_BLOCK_C)),
        (C, parts),
        {"TAPS": K * K, "ROWS": SUM_ROWS, "BLOCK_C": SUM_BLOCK_C},
    )
    return parts, launch, sum_launch
