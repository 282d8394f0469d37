"""The Triton form of the time-dependent group norm: ``forward``, ``backward`` and configurations for analysis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..launch import KernelCase, ceil_div
from ..samples import Samples, Tiling
from ..tiled_case import tiled_case
from . import triton_backward, triton_forward
from .triton_backward import backward
from .triton_forward import forward

__all__ = ["backward", "cases", "forward"]

TABLES = (triton_forward.MOMENTS, triton_forward.FORWARD, triton_backward.SUMS, triton_backward.BACKWARD)
ACTIVATIONS = ("x_ptr", "y_ptr", "grad_ptr", "dx_ptr")


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
    columns = samples.D // ceil_div(samples.D, config.columns)  # of the blocks on average
    return tiled_case(
        f"td_group_norm_{name}[C={samples.D}", kernel, dtype, config, {"SCALE_GATE": 1, "SHIFT_GATE": 1}, ACTIVATIONS,
        outputs_per_program=config.rows_per_program * columns if tensors else 0,
        bytes_per_output=tensors * dtype.itemsize,
    )  # fmt: skip
