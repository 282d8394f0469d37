"""GeGLU in the epilogue of a matrix product: ``x @ weight.T + bias`` is gated in registers and never written.

A program's tile holds ``BLOCK_N`` outputs, so ``2 * BLOCK_N`` columns of the product: a block of the gate's, then the
same block of the value's, so torch's own layout of the weight is read as it lies. Both halves of an output end in one
thread, and taking them apart costs no instruction. Compiled for sm_90 (128 x 128 outputs, 8 warps), the halves side by
side took 187 registers and 1760 instructions; rows interleaved in pairs 190 and 1800; two accumulators 249 and 1984,
with twice as many products of half the width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configurations import Row, Table
from ..gelu import short_gelu
from ..launch import TRITON_TYPES, KernelCase, Launch, cached_by_shape, ceil_div


@triton.jit
def _tile_of_program(M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Programs walk down ``GROUP_M`` tiles, then on to the next column: those that run together share what L2 holds."""
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group, place = tl.program_id(0) // (GROUP_M * tiles_n), tl.program_id(0) % (GROUP_M * tiles_n)
    rows = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    return group * GROUP_M + place % rows, place // rows


@triton.jit(do_not_specialize=["M"])
def _geglu_linear_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, M, N, K, x_stride, weight_stride,
    TANH: tl.constexpr, GATE_FIRST: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    tile_m, tile_n = _tile_of_program(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    # int64: row * stride may pass 2**31. Rows and columns beyond the last read the last one and are not stored.
    m = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.arange(0, 2 * BLOCK_N)
    weight_row = (j // BLOCK_N).to(tl.int64) * N + tl.minimum(tile_n * BLOCK_N + j % BLOCK_N, N - 1)
    k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + tl.minimum(m, M - 1)[:, None] * x_stride + k[None, :]  # [BLOCK_M, BLOCK_K]
    weight_ptrs = weight_ptr + weight_row[None, :] * weight_stride + k[:, None]  # [BLOCK_K, 2 * BLOCK_N]
    h = tl.zeros((BLOCK_M, 2 * BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            x, weight = tl.load(x_ptrs), tl.load(weight_ptrs)
        else:
            x = tl.load(x_ptrs, mask=k[None, :] < K - start, other=0.0)
            weight = tl.load(weight_ptrs, mask=k[:, None] < K - start, other=0.0)
        h = tl.dot(x, weight, h)
        x_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K
    if bias_ptr is not None:
        h += tl.load(bias_ptr + weight_row).to(tl.float32)[None, :]
    first, second = h.reshape(BLOCK_M, 2, BLOCK_N).permute(0, 2, 1).split()
    out = short_gelu(first, TANH) * second if GATE_FIRST else short_gelu(second, TANH) * first
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    out_ptrs = out_ptr + m[:, None] * N + n[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


@dataclass(frozen=True)
class LaunchConfig:
    block_m: int
    block_n: int
    """Outputs; the tile of the product is twice as wide."""
    block_k: int
    group_m: int
    num_warps: int
    num_stages: int


# On 8.0 two programs share an SM, so one's products cover the other's epilogue; it also fits the 99 KB of shared memory
# of 8.6, 8.9 and 12.0. On 9.0 the widest wgmma, whose operands strain L2 least.
CANDIDATES: dict[int, tuple[LaunchConfig, ...]] = {
    80: (
        LaunchConfig(128, 64, 32, 8, num_warps=4, num_stages=4),
        LaunchConfig(128, 64, 32, 8, num_warps=8, num_stages=4),
        LaunchConfig(128, 64, 64, 8, num_warps=8, num_stages=3),
        LaunchConfig(128, 128, 32, 8, num_warps=8, num_stages=3),
        LaunchConfig(64, 64, 64, 8, num_warps=4, num_stages=3),
    ),
    90: (
        LaunchConfig(128, 128, 64, 8, num_warps=8, num_stages=3),
        LaunchConfig(128, 128, 64, 8, num_warps=8, num_stages=4),
        LaunchConfig(128, 64, 64, 8, num_warps=4, num_stages=3),
        LaunchConfig(128, 64, 64, 8, num_warps=8, num_stages=3),
        LaunchConfig(64, 128, 64, 8, num_warps=4, num_stages=3),
    ),
}
FORWARD = Table(
    "geglu_linear",
    rows=(
        Row(LaunchConfig(128, 64, 32, 8, num_warps=4, num_stages=4), family=80),
        Row(LaunchConfig(128, 128, 64, 8, num_warps=8, num_stages=3), family=90),
    ),
    candidates=lambda N, family: CANDIDATES[family],
)
TABLES = (FORWARD,)


def launch_config(N: int) -> LaunchConfig:
    return FORWARD.choose(N)


def _unit_last_stride(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 or x.shape[1] <= 1 else x.contiguous()


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, approximate: str, gate_first: bool
) -> Tensor:  # fmt: skip
    """``x [M, K]`` and ``weight [2N, K]`` (rows may be strided), ``bias [2N]`` -> ``[M, N]`` in ``x``'s dtype."""
    (M, K), N = x.shape, weight.shape[0] // 2
    out = torch.empty((M, N), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    x, weight = _unit_last_stride(x), _unit_last_stride(weight)
    launch = _launch(M, N, K, x.stride(0), weight.stride(0), approximate == "tanh", gate_first)
    launch(x, weight, None if bias is None else bias.contiguous(), out)
    return out


@cached_by_shape
def _launch(M, N, K, x_stride, weight_stride, tanh, gate_first) -> Launch:
    config = launch_config(N)
    return Launch(
        _geglu_linear_fwd_kernel,
        (ceil_div(M, config.block_m) * ceil_div(N, config.block_n),),
        (M, N, K, x_stride, weight_stride),
        {
            "TANH": tanh, "GATE_FIRST": gate_first, "EVEN_K": K % config.block_k == 0, "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "GROUP_M": config.group_m,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )  # fmt: skip


# (K, N) of the MLPs in the model's five variants.
WIDTHS = ((768, 1536), (384, 768), (192, 384), (960, 1920), (480, 960), (240, 480), (1152, 2304), (576, 1152))


def cases() -> Iterator[KernelCase]:
    """What the model's widths run: one kernel where ``block_k`` divides K, one where not."""
    for K, N in WIDTHS:
        yield case(launch_config(N), K, torch.bfloat16)
    yield case(launch_config(1920), 960, torch.float16)


def case(config: LaunchConfig, K: int, dtype: torch.dtype) -> KernelCase:
    half = TRITON_TYPES[dtype]
    signature = {name: f"*{half}" for name in ("x_ptr", "weight_ptr", "bias_ptr", "out_ptr")}
    signature |= {name: "i32" for name in ("M", "N", "K", "x_stride", "weight_stride")}
    blocks = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}
    return KernelCase(
        name=f"geglu_linear[K={K},{half}]",
        kernel=_geglu_linear_fwd_kernel,
        signature=signature,
        constants={
            "TANH": False, "GATE_FIRST": True, "EVEN_K": K % config.block_k == 0, **blocks,
            "GROUP_M": config.group_m,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        aligned=frozenset(signature) - {"M"},
    )  # fmt: skip
