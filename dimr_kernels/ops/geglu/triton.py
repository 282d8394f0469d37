"""Triton kernels of GeGLU: one pass forward, one pass backward, over rows of any stride."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import TRITON_TYPES, KernelCase, Launch, cached_by_shape, ceil_div, next_power_of_2


@triton.jit
def _gelu_and_slope(a, TANH: tl.constexpr):
    """gelu(a) and its derivative, both float32. For sampling only the first is used and the rest is dropped."""
    if TANH:
        inner = 0.7978845608028654 * (a + 0.044715 * a * a * a)
        # tanh through a sigmoid of a non-positive number: exact at both ends, no overflow.
        e = tl.exp(-2.0 * tl.abs(inner))
        magnitude = (1.0 - e) / (1.0 + e)
        tanh = tl.where(inner < 0, -magnitude, magnitude)
        cdf = 0.5 * (1.0 + tanh)
        slope = cdf + 0.5 * a * (1.0 - tanh * tanh) * 0.7978845608028654 * (1.0 + 0.134145 * a * a)
    else:
        cdf = 0.5 * (1.0 + tl.erf(a * 0.7071067811865476))
        slope = cdf + a * 0.3989422804014327 * tl.exp(-0.5 * a * a)
    return a * cdf, slope


@triton.jit
def _tile(rows, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Row and column numbers of this program's tile, and its mask. Rows are int64: rows * stride may pass 2**31."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    return row, col, (row < rows) & (col < D)


@triton.jit
def _fwd_kernel(
    gate_ptr, value_ptr, out_ptr, rows, D, gate_stride, value_stride,
    TANH: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row, col, mask = _tile(rows, D, ROWS, BLOCK_D)
    a = tl.load(gate_ptr + row * gate_stride + col, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(value_ptr + row * value_stride + col, mask=mask, other=0.0).to(tl.float32)
    gelu, _ = _gelu_and_slope(a, TANH)
    tl.store(out_ptr + row * D + col, (gelu * b).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _bwd_kernel(
    grad_ptr, gate_ptr, value_ptr, dgate_ptr, dvalue_ptr, rows, D, gate_stride, value_stride, dgate_stride,
    dvalue_stride, TANH: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row, col, mask = _tile(rows, D, ROWS, BLOCK_D)
    a = tl.load(gate_ptr + row * gate_stride + col, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(value_ptr + row * value_stride + col, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad_ptr + row * D + col, mask=mask, other=0.0).to(tl.float32)
    gelu, slope = _gelu_and_slope(a, TANH)
    tl.store(dgate_ptr + row * dgate_stride + col, (g * b * slope).to(dgate_ptr.dtype.element_ty), mask=mask)
    tl.store(dvalue_ptr + row * dvalue_stride + col, (g * gelu).to(dvalue_ptr.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class LaunchConfig:
    rows: int
    block_d: int
    num_warps: int


# Elements per tile: 16 to 32 per thread, so that four or more 16-byte loads are in flight. Not yet timed on a GPU.
TILE_ELEMENTS = 4096
WIDEST_BLOCK = 1024


def launch_config(D: int) -> LaunchConfig:
    block_d = min(next_power_of_2(D), WIDEST_BLOCK)
    return LaunchConfig(rows=max(1, TILE_ELEMENTS // block_d), block_d=block_d, num_warps=4)


def _with_unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def forward(gate: Tensor, value: Tensor, approximate: str) -> Tensor:
    """``gate, value [rows, D]`` (rows may be strided) -> ``[rows, D]``."""
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if out.numel():
        gate, value = _with_unit_stride(gate), _with_unit_stride(value)
        _launch(gate.shape, (gate.stride(0), value.stride(0)), approximate)(gate, value, out)
    return out


def backward(grad: Tensor, gate: Tensor, value: Tensor, dgate: Tensor, dvalue: Tensor, approximate: str) -> None:
    """Write the gradients into ``dgate`` and ``dvalue`` ``[rows, D]``, which may be the halves of a packed tensor."""
    if gate.numel():
        gate, value = _with_unit_stride(gate), _with_unit_stride(value)
        strides = gate.stride(0), value.stride(0), dgate.stride(0), dvalue.stride(0)
        launch = _launch(gate.shape, strides, approximate, backward=True)
        launch(grad.contiguous(), gate, value, dgate, dvalue)


@cached_by_shape
def _launch(shape, strides, approximate, backward=False) -> Launch:
    rows, D = shape
    config = launch_config(D)
    return Launch(
        _bwd_kernel if backward else _fwd_kernel,
        (ceil_div(rows, config.rows), ceil_div(D, config.block_d)),
        (rows, D, *strides),
        {"TANH": approximate == "tanh", "ROWS": config.rows, "BLOCK_D": config.block_d},
        num_warps=config.num_warps,
    )


def cases() -> Iterator[KernelCase]:
    """The configurations that the model's widths compile, for analysis without a GPU."""
    for D in (384, 480, 768, 960, 1152, 1536, 1920, 2304):
        for dtype in (torch.bfloat16, torch.float32):
            yield _case("geglu_fwd", _fwd_kernel, ("gate_ptr", "value_ptr", "out_ptr"), D, dtype)
            pointers = ("grad_ptr", "gate_ptr", "value_ptr", "dgate_ptr", "dvalue_ptr")
            yield _case("geglu_bwd", _bwd_kernel, pointers, D, dtype)


def _case(name: str, kernel, pointers: tuple[str, ...], D: int, dtype: torch.dtype) -> KernelCase:
    config = launch_config(D)
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
        outputs_per_program=config.rows * config.block_d,
    )
