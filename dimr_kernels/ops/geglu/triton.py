"""Triton kernels of GeGLU: one pass forward, one pass backward, over rows of any stride."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configurations import Row, Table
from ..gelu import gelu, gelu_and_slope
from ..launch import TRITON_TYPES, KernelCase, Launch, cached_by_shape, ceil_div, next_power_of_2
from ..samples import row_stride


@triton.jit
def _tile(rows, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Row and column numbers of this program's tile, and its mask. Rows are int64: rows * stride may pass 2**31."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    return row, col, (row < rows) & (col < D)


@triton.jit
def _geglu_fwd_kernel(
    gate_ptr, value_ptr, out_ptr, rows, D, gate_stride, value_stride,
    TANH: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row, col, mask = _tile(rows, D, ROWS, BLOCK_D)
    a = tl.load(gate_ptr + row * gate_stride + col, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(value_ptr + row * value_stride + col, mask=mask, other=0.0).to(tl.float32)
    SHORT: tl.constexpr = out_ptr.dtype.element_ty != tl.float32
    tl.store(out_ptr + row * D + col, (gelu(a, TANH, SHORT) * b).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _geglu_bwd_kernel(
    grad_ptr, gate_ptr, value_ptr, dgate_ptr, dvalue_ptr, rows, D, gate_stride, value_stride, dgate_stride,
    dvalue_stride, TANH: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row, col, mask = _tile(rows, D, ROWS, BLOCK_D)
    a = tl.load(gate_ptr + row * gate_stride + col, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(value_ptr + row * value_stride + col, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad_ptr + row * D + col, mask=mask, other=0.0).to(tl.float32)
    SHORT: tl.constexpr = dgate_ptr.dtype.element_ty != tl.float32
    value, slope = gelu_and_slope(a, TANH, SHORT)
    tl.store(dgate_ptr + row * dgate_stride + col, (g * b * slope).to(dgate_ptr.dtype.element_ty), mask=mask)
    tl.store(dvalue_ptr + row * dvalue_stride + col, (g * value).to(dvalue_ptr.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class LaunchConfig:
    rows: int
    block_d: int
    num_warps: int


@dataclass(frozen=True)
class Tile:
    elements: int
    widest_block: int
    num_warps: int


# 16 to 32 elements per thread, so that four or more 16-byte loads are in flight.
FORWARD, BACKWARD = (
    Table(
        kernel,
        rows=(Row(Tile(4096, widest_block=1024, num_warps=4)),),
        candidates=lambda D, family: [
            Tile(elements, widest_block, warps)
            for elements, warps in ((1024, 4), (2048, 4), (4096, 8), (8192, 8))
            for widest_block in (256, 1024)
        ],
    )
    for kernel in ("geglu_fwd", "geglu_bwd")
)
TABLES = (FORWARD, BACKWARD)
NARROWEST_BLOCK = 128


def launch_config(D: int, backward: bool = False) -> LaunchConfig:
    """The block is the widest that leaves an eighth of the lanes idle at most: of 2 * 1024, D = 1152 uses 56%."""
    tile = (BACKWARD if backward else FORWARD).choose(D)
    block_d = min(next_power_of_2(D), tile.widest_block)
    while block_d > NARROWEST_BLOCK and 7 * ceil_div(D, block_d) * block_d > 8 * D:
        block_d //= 2
    return LaunchConfig(rows=max(1, tile.elements // block_d), block_d=block_d, num_warps=tile.num_warps)


def forward(gate: Tensor, value: Tensor, approximate: str) -> Tensor:
    """``gate, value [..., D]``, each with rows at equal distances (``with_even_rows``) -> ``[..., D]``."""
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if out.numel():
        _launch(gate.shape, (gate.stride(), value.stride()), approximate)(gate, value, out)
    return out


def backward(grad: Tensor, gate: Tensor, value: Tensor, dgate: Tensor, dvalue: Tensor, approximate: str) -> None:
    """Write the gradients into ``dgate`` and ``dvalue`` ``[..., D]``, which may be halves of one tensor."""
    if gate.numel():
        strides = gate.stride(), value.stride(), dgate.stride(), dvalue.stride()
        launch = _launch(gate.shape, strides, approximate, backward=True)
        launch(grad.contiguous(), gate, value, dgate, dvalue)


@cached_by_shape
def _launch(shape, strides, approximate, backward=False) -> Launch:
    rows, D = math.prod(shape[:-1]), shape[-1]
    config = launch_config(D, backward)
    return Launch(
        _geglu_bwd_kernel if backward else _geglu_fwd_kernel,
        (ceil_div(rows, config.rows), ceil_div(D, config.block_d)),
        (rows, D, *(row_stride(shape, s) for s in strides)),
        {"TANH": approximate == "tanh", "ROWS": config.rows, "BLOCK_D": config.block_d},
        num_warps=config.num_warps,
    )


def cases() -> Iterator[KernelCase]:
    """The configurations that the model's widths compile, for analysis without a GPU."""
    for D in (384, 480, 768, 960, 1152, 1536, 1920, 2304):
        for dtype in (torch.bfloat16, torch.float32):
            yield _case("geglu_fwd", _geglu_fwd_kernel, launch_config(D), D, dtype)
            yield _case("geglu_bwd", _geglu_bwd_kernel, launch_config(D, backward=True), D, dtype)


def _case(name: str, kernel, config: LaunchConfig, D: int, dtype: torch.dtype) -> KernelCase:
    pointers = [n for n in kernel.arg_names if n.endswith("_ptr")]
    signature = {pointer: f"*{TRITON_TYPES[dtype]}" for pointer in pointers}
    signature |= {"rows": "i32", "D": "i32"}
    signature |= {n: "i32" for n in kernel.arg_names if n.endswith("_stride")}
    return KernelCase(
        name=f"{name}[D={D},{TRITON_TYPES[dtype]}]",
        kernel=kernel,
        signature=signature,
        constants={"TANH": False, "ROWS": config.rows, "BLOCK_D": config.block_d},
        num_warps=config.num_warps,
        aligned=frozenset(signature) - {"rows"},
        outputs_per_program=config.rows * D // ceil_div(D, config.block_d),
        bytes_per_output=len(pointers) * dtype.itemsize,
    )
