"""The Triton form of the depthwise convolution: configurations and launches of its kernels, what the models compile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..configurations import Row, Table
from ..launch import TRITON_TYPES, KernelCase, Launch, cached_by_shape, ceil_div
from .triton_kernels import (
    SIZES,
    _depthwise_conv_fwd_kernel,
    _depthwise_conv_sum_partials_kernel,
    _depthwise_conv_weight_kernel,
)


@dataclass(frozen=True)
class LaunchConfig:
    cols: int
    groups: int
    num_warps: int
    block_c: int = 32
    resident_warps: int = 1024
    """About what one large GPU keeps resident at these register counts; fewer programs than that leave it idle."""

    @property
    def tile_width(self) -> int:
        return self.cols * self.groups

    def is_even(self, K: int, W: int) -> bool:
        """Whether three conditions do for the columns of a row (see ``_inside``)."""
        return W % self.cols == 0 and self.cols >= K // 2


def _candidates(W: int, family: int) -> list[LaunchConfig]:
    """For the tuner; at K = 7 many of them do not fit the registers and drop out when they are compiled."""
    tilings = ((4, 2, 1), (4, 4, 1), (4, 4, 2), (4, 8, 4), (2, 4, 1), (2, 8, 2), (8, 2, 1), (2, 4, 2))
    return [
        LaunchConfig(cols, groups, warps, resident_warps=resident)
        for cols, groups, warps in tilings
        if cols <= W
        for resident in (512, 1024, 2048)
    ]


SMALL, LARGE = LaunchConfig(4, 2, num_warps=1), LaunchConfig(4, 4, num_warps=2)
# By kernel size, then by image width. Chosen by the compiled code: the most columns per thread that fit the registers.
FORWARD = {
    3: Table("depthwise_conv_fwd[K=3]", (Row(LaunchConfig(4, 4, num_warps=1)),), _candidates),
    5: Table("depthwise_conv_fwd[K=5]", (Row(SMALL, up_to=8), Row(LARGE)), _candidates),
    7: Table("depthwise_conv_fwd[K=7]", (Row(SMALL, up_to=8), Row(LARGE)), _candidates),
}
# One warp, so that the sum over its threads is (at K = 7 and 5) an exchange of registers.
WEIGHT = {
    3: Table("depthwise_conv_weight[K=3]", (Row(LaunchConfig(2, 4, num_warps=1)),), _candidates),
    5: Table("depthwise_conv_weight[K=5]", (Row(SMALL),), _candidates),
    7: Table("depthwise_conv_weight[K=7]", (Row(SMALL),), _candidates),
}
TABLES = (*FORWARD.values(), *WEIGHT.values())
SUM_ROWS, SUM_BLOCK_C = 8, 128
SHORTEST_CHUNK = 4


def forward_config(K: int, W: int) -> LaunchConfig:
    return FORWARD[K].choose(W)


def weight_config(K: int, W: int) -> LaunchConfig:
    return WEIGHT[K].choose(W)


def _rows_per_program(H: int, warps_per_row_range: int, resident_warps: int) -> int:
    """All of H, or less where that many warps would not fill the GPU. A chunk reads K - 1 rows of its neighbours."""
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
    """``x [B, H, W, C]`` (strided is fine), ``weight [C, 1, K, K]`` -> ``[B, H, W, C]``.

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
    """``x`` and ``residual`` are strides."""
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
    """``grad, x [B, H, W, C]`` -> gradients for weight ``[C, 1, K, K]`` and bias ``[C]``; no atomics."""
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
    """The number of partials, their kernel and the one that sums them up; ``x`` and ``grad`` are strides."""
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


def cases() -> Iterator[KernelCase]:
    """What the models' ConvNeXt branches compile (K = 7; the width only changes constants), and the smaller kernels.

    "odd": for images whose width is not a multiple of the columns per thread.
    """
    bf16, fp32 = torch.bfloat16, torch.float32
    for K, dtype, residual in ((7, bf16, False), (7, bf16, True), (7, fp32, False), (5, bf16, False), (3, bf16, False)):
        yield _forward_case(K, dtype, residual)
    yield _forward_case(7, bf16, False, even=False)
    for K, dtype in ((7, bf16), (7, fp32), (5, bf16), (3, bf16)):
        yield _weight_case(K, dtype)
    yield _weight_case(7, bf16, even=False)
    yield _sum_case(7)


def _forward_case(K: int, dtype: torch.dtype, residual: bool, C: int = 480, even: bool = True) -> KernelCase:
    config = forward_config(K, 32)
    constants = {"X_COL": C, "RESIDUAL_COL": C, "OUT_COL": C, "K": K, "FLIP": False, "ADD_INPUT": not residual}
    absent = {} if residual else {"residual_ptr": None}
    x, parameter = f"*{TRITON_TYPES[dtype]}", "*fp32"
    pointers = {"x_ptr": x, "taps_ptr": parameter, "bias_ptr": parameter, "residual_ptr": x, "out_ptr": x}
    name = f"depthwise_conv_fwd[K={K},{TRITON_TYPES[dtype]}{',residual' if residual else ''}{'' if even else ',odd'}]"
    moved = (3 if residual else 2) * dtype.itemsize
    return _case(name, _depthwise_conv_fwd_kernel, pointers, constants | absent, config, even, moved)


def _weight_case(K: int, dtype: torch.dtype, C: int = 480, even: bool = True) -> KernelCase:
    x = f"*{TRITON_TYPES[dtype]}"
    pointers = {"x_ptr": x, "grad_ptr": x, "partial_ptr": "*fp32"}
    name = f"depthwise_conv_weight[K={K},{TRITON_TYPES[dtype]}{'' if even else ',odd'}]"
    return _case(
        name,
        _depthwise_conv_weight_kernel,
        pointers,
        {"X_COL": C, "GRAD_COL": C, "K": K},
        weight_config(K, 32),
        even,
        2 * dtype.itemsize,
    )


def _sum_case(K: int) -> KernelCase:
    names = _depthwise_conv_sum_partials_kernel.arg_names
    signature = {n: "*fp32" if n.endswith("_ptr") else "i32" for n in names if not n.isupper() or n == "C"}
    return KernelCase(
        name=f"depthwise_conv_sum[K={K},fp32]",
        kernel=_depthwise_conv_sum_partials_kernel,
        signature=signature,
        constants={"TAPS": K * K, "ROWS": SUM_ROWS, "BLOCK_C": SUM_BLOCK_C},
        aligned=frozenset(signature) - set(SIZES),
        outputs_per_turn=SUM_ROWS * SUM_BLOCK_C,
        bytes_per_output=torch.float32.itemsize,
    )


def _case(
    name: str, kernel, pointers: dict[str, str], constants: dict, config: LaunchConfig, even: bool, moved: int
) -> KernelCase:
    tiling = {"COLS": config.cols, "EVEN": even, "GROUPS": config.groups, "BLOCK_C": config.block_c}
    run_time = [n for n in kernel.arg_names if n not in constants and n not in tiling]
    return KernelCase(
        name=name,
        kernel=kernel,
        signature={n: pointers.get(n, "i32") for n in run_time},
        constants=constants | tiling,
        num_warps=config.num_warps,
        aligned=frozenset(run_time) - set(SIZES),
        outputs_per_turn=config.tile_width * config.block_c,
        bytes_per_output=moved,
    )
