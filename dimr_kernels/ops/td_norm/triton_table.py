"""The table of gamma and beta that the kernels of wide rows read: one row of each to a timestep."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launch, cached_by_shape, ceil_div
from ..time_gate.triton import gate_widths, mixed_at

TABLE_BLOCK = 1024


@triton.jit
def _td_norm_table_kernel(
    table_ptr, t_ptr, p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr, p3_ptr, p4_ptr, shift_weight_ptr,
    shift_offset_ptr, D, blocks, t_stride,
    SCALE_GATE: tl.constexpr, SHIFT_GATE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """gamma and beta ``[T, 1 or 2, D]`` float32."""
    b = (tl.program_id(0) // blocks).to(tl.int64)
    col = (tl.program_id(0) % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_row = col < D
    t = tl.load(t_ptr + b * t_stride).to(tl.float32)
    gamma = mixed_at(t, p1_ptr, p2_ptr, scale_weight_ptr, scale_offset_ptr, col, in_row, SCALE_GATE)
    if p3_ptr is not None:
        beta = mixed_at(t, p3_ptr, p4_ptr, shift_weight_ptr, shift_offset_ptr, col, in_row, SHIFT_GATE)
        tl.store(table_ptr + (2 * b) * D + col, gamma, mask=in_row)
        tl.store(table_ptr + (2 * b + 1) * D + col, beta, mask=in_row)
    else:
        tl.store(table_ptr + b * D + col, gamma, mask=in_row)


def modulation_table(t: Tensor, gates: Sequence[Tensor | None], D: int) -> Tensor:
    """gamma, and beta where there is a shift: ``[T, 1 or 2, D]`` float32."""
    T = t.shape[0]
    table = torch.empty((T, 1 if gates[4] is None else 2, D), dtype=torch.float32, device=t.device)
    _table_launch(D, T, t.stride(0), *gate_widths(gates))(table, t, *gates)
    return table


@cached_by_shape
def _table_launch(D, T, t_stride, scale_gate, shift_gate) -> Launch:
    blocks = ceil_div(D, TABLE_BLOCK)
    numbers = D, blocks, 0 if T == 1 else t_stride
    constants = {"SCALE_GATE": int(scale_gate == D), "SHIFT_GATE": int(shift_gate == D), "BLOCK_D": TABLE_BLOCK}
    return Launch(_td_norm_table_kernel, (T * blocks,), numbers, constants)
