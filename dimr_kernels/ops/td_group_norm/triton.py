"""The Triton form of the time-dependent group norm: ``forward``, ``backward`` and configurations for analysis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..launch import TRITON_TYPES, KernelCase, ceil_div
from ..samples import Samples, Tiling
from . import triton_backward, triton_forward
from .triton_backward import backward
from .triton_forward import forward

__all__ = ["backward", "cases", "forward"]

TABLES = (triton_forward.MOMENTS, triton_forward.FORWARD, triton_backward.SUMS, triton_backward.BACKWARD)
# Activations; everything else is float32.
IN_X_DTYPE = ("x_ptr", "y_ptr", "grad_ptr", "dx_ptr")


def cases() -> Iterator[KernelCase]:
    """The widths of a latent diffusion U-Net, 32 groups."""
    for C in (320, 640, 1280):
        samples = Samples(B=64, N=1024, D=C)
        for dtype in (torch.bfloat16, torch.float32):
            yield from _cases(samples, dtype)


def _cases(samples: Samples, dtype: torch.dtype) -> Iterator[KernelCase]:
    forward, backward = triton_forward, triton_backward
    moments, sums = forward.moments_config(samples), backward.sums_config(samples)
    merge = Tiling(forward.MERGE_BLOCK, rows=1, iterations=1, num_warps=4)
    yield _case("moments_fwd", forward._td_group_norm_moments_kernel, samples, dtype, moments, tensors=1)
    yield _case("statistics_fwd", forward._td_group_norm_statistics_kernel, samples, torch.float32, merge)
    yield _case("fwd", forward._td_group_norm_fwd_kernel, samples, dtype, forward.forward_config(samples), tensors=2)
    yield _case("sums_bwd", backward._td_group_norm_sums_kernel, samples, dtype, sums, tensors=2)
    yield _case("group_sums_bwd", backward._td_group_norm_group_sums_kernel, samples, torch.float32, merge)
    yield _case("bwd", backward._td_group_norm_bwd_kernel, samples, dtype, backward.backward_config(samples), tensors=3)


def _case(
    name: str, kernel: Any, samples: Samples, dtype: torch.dtype, config: Tiling, tensors: int = 0
) -> KernelCase:  # fmt: skip
    """``tensors``: how many of x's size are read or written; 0 for a kernel that joins a few numbers."""
    constants = {
        "SCALE_GATE": 1, "SHIFT_GATE": 1, "ITERATIONS": config.iterations, "ROWS": config.rows,
        "BLOCK_C": config.columns, "BLOCK": config.columns,
    }  # fmt: skip
    constants = {argument: value for argument, value in constants.items() if argument in kernel.arg_names}
    signature = {argument: "i32" for argument in kernel.arg_names if argument not in constants}
    for argument in signature:
        if argument.endswith("_ptr"):
            signature[argument] = f"*{TRITON_TYPES[dtype if argument in IN_X_DTYPE else torch.float32]}"
        elif argument == "eps":
            signature[argument] = "fp32"
    multiples = {argument for argument in signature if argument.endswith("_ptr")} | {"C", "x_stride_b", "x_stride_n"}
    columns = samples.D // ceil_div(samples.D, config.columns)  # of the blocks on average
    return KernelCase(
        name=f"td_group_norm_{name}[C={samples.D},{TRITON_TYPES[dtype]}]",
        kernel=kernel,
        signature=signature,
        constants=constants,
        num_warps=config.num_warps,
        aligned=frozenset(multiples & set(signature)),
        outputs_per_program=config.rows_per_program * columns if tensors else 0,
        turns=config.iterations,
        bytes_per_output=tensors * dtype.itemsize,
    )
