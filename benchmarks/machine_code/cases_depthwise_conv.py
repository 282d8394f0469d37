"""Kernel configurations that the models' depthwise convolutions compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from dimr_kernels.ops import depthwise_conv_triton as kernels

from .case import TRITON_TYPES, KernelCase

C = 480  # the width only changes constants
IMAGE_WIDTH = 32


def depthwise_conv_cases() -> Iterator[KernelCase]:
    """Describe what the models' ConvNeXt branches compile (K = 7), and the smaller kernel sizes.

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


def _forward_case(K: int, dtype: torch.dtype, residual: bool, even: bool = True) -> KernelCase:
    constants = {"X_COL": C, "RESIDUAL_COL": C, "OUT_COL": C, "K": K, "FLIP": False, "ADD_INPUT": not residual}
    absent = {} if residual else {"residual_ptr": None}
    x, parameter = f"*{TRITON_TYPES[dtype]}", "*fp32"
    pointers = {"x_ptr": x, "taps_ptr": parameter, "bias_ptr": parameter, "residual_ptr": x, "out_ptr": x}
    return _case(
        f"depthwise_conv_fwd[K={K},{TRITON_TYPES[dtype]}{',residual' if residual else ''}{'' if even else ',odd'}]",
        kernels._depthwise_conv_fwd_kernel,
        pointers,
        constants | absent,
        kernels.forward_config(K, IMAGE_WIDTH),
        even,
        (3 if residual else 2) * dtype.itemsize,
    )


def _weight_case(K: int, dtype: torch.dtype, even: bool = True) -> KernelCase:
    x = f"*{TRITON_TYPES[dtype]}"
    return _case(
        f"depthwise_conv_weight[K={K},{TRITON_TYPES[dtype]}{'' if even else ',odd'}]",
        kernels._depthwise_conv_weight_kernel,
        {"x_ptr": x, "grad_ptr": x, "partial_ptr": "*fp32"},
        {"X_COL": C, "GRAD_COL": C, "K": K},
        kernels.weight_config(K, IMAGE_WIDTH),
        even,
        2 * dtype.itemsize,
    )


def _sum_case(K: int) -> KernelCase:
    kernel = kernels._depthwise_conv_sum_partials_kernel
    signature = {n: "*fp32" if n.endswith("_ptr") else "i32" for n in kernel.arg_names if not n.isupper() or n == "C"}
    return KernelCase(
        name=f"depthwise_conv_sum[K={K},fp32]",
        kernel=kernel,
        signature=signature,
        constants={"TAPS": K * K, "ROWS": kernels.SUM_ROWS, "BLOCK_C": kernels.SUM_BLOCK_C},
        aligned=frozenset(signature) - set(kernels.SIZES),
        outputs_per_turn=kernels.SUM_ROWS * kernels.SUM_BLOCK_C,
        bytes_per_output=torch.float32.itemsize,
    )


def _case(
    name: str,
    kernel: Any,
    pointers: dict[str, str],
    constants: dict[str, Any],
    config: kernels.ConvConfig,
    even: bool,
    moved: int,
) -> KernelCase:
    tiling = {"COLS": config.cols, "EVEN": even, "GROUPS": config.groups, "BLOCK_C": config.block_c}
    run_time = [n for n in kernel.arg_names if n not in constants and n not in tiling]
    return KernelCase(
        name=name,
        kernel=kernel,
        signature={n: pointers.get(n, "i32") for n in run_time},
        constants=constants | tiling,
        num_warps=config.num_warps,
        aligned=frozenset(run_time) - set(kernels.SIZES),
        outputs_per_turn=config.tile_width * config.block_c,
        bytes_per_output=moved,
    )


CASES: dict[str, Callable[[], Iterator[KernelCase]]] = {"depthwise_conv": depthwise_conv_cases}
"""Operator -> its configurations."""
