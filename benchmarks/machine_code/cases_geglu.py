"""Kernel configurations that GeGLU compiles at the model's widths, with and without the linear layer in front."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from dimr_kernels.launch import RowConfig, ceil_div
from dimr_kernels.ops import geglu_triton as kernels

from .case import TRITON_TYPES, KernelCase

WIDTHS = (384, 480, 768, 960, 1152, 1536, 1920, 2304)
# (K, N) of the MLPs in the model's five variants.
LINEAR_WIDTHS = (
    (768, 1536), (384, 768), (192, 384), (960, 1920), (480, 960), (240, 480), (1152, 2304), (576, 1152)
)  # fmt: skip


def geglu_cases() -> Iterator[KernelCase]:
    for D in WIDTHS:
        for dtype in (torch.bfloat16, torch.float32):
            yield _geglu_case("geglu_fwd", kernels._geglu_fwd_kernel, kernels.forward_config(D), D, dtype)
            yield _geglu_case("geglu_bwd", kernels._geglu_bwd_kernel, kernels.backward_config(D), D, dtype)


def _geglu_case(name: str, kernel: Any, config: RowConfig, D: int, dtype: torch.dtype) -> KernelCase:
    rows, columns = kernels.tile_shape(D, config)
    pointers = [n for n in kernel.arg_names if n.endswith("_ptr")]
    signature = {pointer: f"*{TRITON_TYPES[dtype]}" for pointer in pointers}
    signature |= {"rows": "i32", "D": "i32"}
    signature |= {n: "i32" for n in kernel.arg_names if n.endswith("_stride")}
    return KernelCase(
        name=f"{name}[D={D},{TRITON_TYPES[dtype]}]",
        kernel=kernel,
        signature=signature,
        constants={"TANH": False, "ROWS": rows, "BLOCK_D": columns},
        num_warps=config.num_warps,
        aligned=frozenset(signature) - {"rows"},
        outputs_per_program=rows * D // ceil_div(D, columns),
        bytes_per_output=len(pointers) * dtype.itemsize,
    )


def geglu_linear_cases() -> Iterator[KernelCase]:
    """Describe the product: one kernel where ``block_k`` divides K, another where it does not."""
    for K, N in LINEAR_WIDTHS:
        yield _linear_case(kernels.linear_config(N), K, torch.bfloat16)
    yield _linear_case(kernels.linear_config(1920), 960, torch.float16)


def _linear_case(config: kernels.MatmulConfig, K: int, dtype: torch.dtype) -> KernelCase:
    half = TRITON_TYPES[dtype]
    signature = {name: f"*{half}" for name in ("x_ptr", "weight_ptr", "bias_ptr", "out_ptr")}
    signature |= {name: "i32" for name in ("M", "N", "K", "x_stride", "weight_stride")}
    return KernelCase(
        name=f"geglu_linear[K={K},{half}]",
        kernel=kernels._geglu_linear_fwd_kernel,
        signature=signature,
        constants={
            "TANH": False, "GATE_FIRST": True, "EVEN_K": K % config.block_k == 0, "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "GROUP_M": config.group_m,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        aligned=frozenset(signature) - {"M"},
    )  # fmt: skip


CASES: dict[str, Callable[[], Iterator[KernelCase]]] = {"geglu": geglu_cases, "geglu_linear": geglu_linear_cases}
"""Operator -> its configurations."""
