"""Triton kernels of the depthwise convolution: forward and input gradient (one kernel), weight and bias gradient.

A program owns ``GROUPS`` groups of ``COLS`` neighbouring columns times ``BLOCK_C`` channels and walks down the rows of
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

import triton
import triton.language as tl

# Sizes that only steer loops and masks: compiling again for each of their values would gain nothing.
SIZES = ("B", "H", "W", "chunk", "units_per_split", "partials")


@triton.jit
def _repeated(value, N: tl.constexpr):
    out = ()
    for _ in tl.static_range(N):
        out = out + (value,)
    return out


@triton.jit
def _if_row(in_c, r, top, bottom):
    """The mask in_c [1, BLOCK_C] where top <= r < bottom, else nothing."""
    r = r + tl.zeros((1, 1), tl.int32)  # a tile, since Triton 3.9's interpreter refuses scalar conditions in masks
    return in_c & (r >= top) & (r < bottom)


@triton.jit
def _inside(col, j: tl.constexpr, W, COLS: tl.constexpr, EVEN: tl.constexpr):
    """Whether column ``col + j`` lies inside the image.

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
    """Columns ``col + FIRST`` .. ``col + FIRST + N - 1`` as N tiles [GROUPS, BLOCK_C], zero outside the image."""
    row = ()
    for j in tl.static_range(N):
        inside = _inside(col, FIRST + j, W, COLS, EVEN) & mask
        row = row + (tl.load(ptrs + (FIRST + j) * COL_STRIDE, mask=inside, other=0.0).to(tl.float32),)
    return row


@triton.jit
def _store_row(ptrs, row, col, mask, W, COL_STRIDE: tl.constexpr, COLS: tl.constexpr, EVEN: tl.constexpr):
    for j in tl.static_range(COLS):
        inside = _inside(col, j, W, COLS, EVEN) & mask
        tl.store(ptrs + j * COL_STRIDE, row[j].to(ptrs.dtype.element_ty), mask=inside)


@triton.jit
def _first_sums(bias, residual_ptrs, col, mask, W, COL_STRIDE: tl.constexpr, COLS: tl.constexpr, EVEN: tl.constexpr):
    """What the sums of one output row start from: bias, and the residual where there is one.

    Outside the image that may be anything, since the sums there are never stored.
    """
    if residual_ptrs is not None:
        sums = ()
        for j in tl.static_range(COLS):
            residual = tl.load(residual_ptrs + j * COL_STRIDE, mask=_inside(col, j, W, COLS, EVEN) & mask)
            sums = sums + (residual.to(tl.float32) + bias,)
        return sums
    else:
        return _repeated(bias, COLS)


@triton.jit(do_not_specialize=SIZES)
def _depthwise_conv_fwd_kernel(
    x_ptr, taps_ptr, bias_ptr, residual_ptr, out_ptr, H, W, C, chunk, x_image, x_row, residual_image, residual_row,
    X_COL: tl.constexpr, RESIDUAL_COL: tl.constexpr, K: tl.constexpr, FLIP: tl.constexpr, ADD_INPUT: tl.constexpr,
    COLS: tl.constexpr, EVEN: tl.constexpr, GROUPS: tl.constexpr, BLOCK_C: tl.constexpr, OUT_COL: tl.constexpr,
):  # fmt: skip
    """Output rows [top, bottom) of one image. ``sums`` holds K rows of partial sums, the next one to store first."""
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
        taps = taps + (tap + 1.0 if ADD_INPUT and k == TAPS // 2 else tap,)
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
                total = sums[s * COLS + j]
                for kw in tl.static_range(K):
                    total = tl.fma(row[j + kw], taps[(K - 1 - s) * K + kw], total)
                done = done + (total,)
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
    """Tap and bias gradients over some columns of some units (``chunk`` rows of one image) -> partial [., K*K+1, C].

    ``ring`` holds the K rows of the output's gradient around the input row h, the uppermost first.
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
                    sums = sums + (total,)
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
    """partial [partials, TAPS + 1, C] -> dweight [C, TAPS] and dbias [C], always added in the same order."""
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
