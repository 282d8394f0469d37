"""Kernel configurations that the norms compile at the model's widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from dimr_kernels.launch import Samples, Tiling, ceil_div
from dimr_kernels.ops import norm_triton, td_group_norm_triton, td_norm_triton, upsample_triton
from dimr_kernels.ops.time_gate import WIDEST_IN_REGISTERS

from .case import KernelCase, tiled_case

WIDTHS = (192, 240, 384, 480, 576, 768, 960, 1152)
CASCADE_WIDTH = 38400
GROUP_NORM_WIDTHS = (320, 640, 1280)  # of a latent diffusion U-Net with 32 groups
UPSAMPLE_WIDTHS = (192, 240, 384, 480, 576)
ACTIVATIONS = ("x_ptr", "residual_ptr", "y_ptr", "out_ptr", "sum_ptr", "dy_ptr", "dsum_ptr", "grad_ptr", "dx_ptr")
SHIFT_POINTERS = ("p3_ptr", "p4_ptr", "shift_weight_ptr", "shift_offset_ptr")


def td_norm_cases() -> Iterator[KernelCase]:
    for D in WIDTHS:
        samples = Samples(B=64, N=1024, D=D)
        yield _norm_forward_case(samples, torch.bfloat16, rms=True, residual=True)
        yield _norm_backward_case(samples, torch.bfloat16, rms=True)
        yield _norm_forward_case(samples, torch.bfloat16, rms=False, residual=False)
        yield _norm_backward_case(samples, torch.bfloat16, rms=False)
        yield _norm_forward_case(samples, torch.bfloat16, rms=True, residual=True, offset=True)
        yield _norm_forward_case(samples, torch.bfloat16, rms=False, residual=False, offset=True)
    for D in (480, 1152):
        samples = Samples(B=64, N=1024, D=D)
        yield _norm_forward_case(samples, torch.float32, rms=False, residual=True)
        yield _norm_backward_case(samples, torch.float32, rms=False)
    yield _reduce_case(samples)
    widest = Samples(B=64, N=256, D=WIDEST_IN_REGISTERS)
    cascade = Samples(B=64, N=256, D=CASCADE_WIDTH)
    yield _norm_backward_case(widest, torch.bfloat16, rms=False)
    yield _norm_backward_case(cascade, torch.bfloat16, rms=False)
    yield _norm_forward_case(widest, torch.bfloat16, rms=False, residual=True)
    yield _wide_forward_case(cascade, torch.bfloat16)
    yield _row_sums_case(cascade, torch.bfloat16)
    yield _table_case(cascade)
    yield _reduce_case(cascade)


def _norm_forward_case(
    samples: Samples, dtype: torch.dtype, rms: bool, residual: bool, offset: bool = False
) -> KernelCase:
    """Describe the forward; with ``offset`` that for inference, which keeps no statistics."""
    tiling = td_norm_triton.forward_config(samples.D).tiling(samples)
    constants = {"RMS": rms, "SCALE_GATE": 1, "SHIFT_GATE": 1}
    absent = (() if residual else ("residual_ptr",)) + (SHIFT_POINTERS if rms else ())
    absent += ("stats_ptr",) if offset else ("offset_ptr",)
    kind = ("rms" if rms else "layer") + ("+residual" if residual else "") + ("+offset" if offset else "")
    figures = _figures(tiling.rows_per_program * samples.D, dtype, 4 if residual else 2)
    return _case(
        f"td_norm_fwd_{kind}", td_norm_triton._td_norm_fwd_kernel, samples, dtype, tiling, constants, absent, figures
    )


def _wide_forward_case(samples: Samples, dtype: torch.dtype) -> KernelCase:
    tiling = _over_whole_rows(td_norm_triton.wide_forward_config(samples.D).tiling(samples), samples)
    constants = {"RMS": False, "HAS_SHIFT": True}
    kernel = td_norm_triton._td_norm_fwd_wide_kernel
    figures = _figures(tiling.rows * samples.D, dtype, 2)
    return _case("td_norm_fwd_wide", kernel, samples, dtype, tiling, constants, ("residual_ptr",), figures)


def _norm_backward_tiling(samples: Samples) -> Tiling:
    if samples.D > WIDEST_IN_REGISTERS:
        return td_norm_triton.wide_backward_config(samples.D).tiling(samples)
    return td_norm_triton.backward_config(samples.D).tiling(samples)


def _norm_backward_case(samples: Samples, dtype: torch.dtype, rms: bool) -> KernelCase:
    tiling = _norm_backward_tiling(samples)
    constants = {"RMS": rms, "HAS_SHIFT": not rms, "SCALE_GATE": 1}
    wide = samples.D > WIDEST_IN_REGISTERS
    absent = () if wide else ("row_sums_ptr",)
    figures = _figures(tiling.rows_per_program * min(samples.D, tiling.columns), dtype, 4)
    name = f"td_norm_bwd{'_wide' if wide else ''}_{'rms' if rms else 'layer'}"
    return _case(name, td_norm_triton._td_norm_bwd_kernel, samples, dtype, tiling, constants, absent, figures)


def _row_sums_case(samples: Samples, dtype: torch.dtype) -> KernelCase:
    tiling = _over_whole_rows(td_norm_triton.row_sums_config(samples.D).tiling(samples), samples)
    kernel = td_norm_triton._td_norm_row_sums_kernel
    figures = _figures(tiling.rows * samples.D, dtype, 2)
    return _case("td_norm_bwd_wide_sums", kernel, samples, dtype, tiling, {"RMS": False}, (), figures)


def _table_case(samples: Samples) -> KernelCase:
    tiling = Tiling(norm_triton.TABLE_BLOCK, rows=1, iterations=1, num_warps=4)
    constants = {"SCALE_GATE": 1, "SHIFT_GATE": 1}
    figures = {"outputs_per_program": 2 * tiling.columns}
    kernel = norm_triton._td_norm_table_kernel
    return _case("time_gate_table", kernel, samples, torch.float32, tiling, constants, (), figures)


def _reduce_case(samples: Samples) -> KernelCase:
    chunks = samples.chunks(_norm_backward_tiling(samples).rows_per_program)
    tiling, _ = norm_triton.reduce_tiling(samples.B * chunks, samples.D)
    constants = {"SCALE_GATE": 1, "SHIFT_GATE": 1}
    # A program takes one of two branches, for scale or for shift: both are counted, with the partials of both.
    figures = _figures(tiling.rows_per_program * 2 * tiling.columns, torch.float32, 1)
    return _case(
        "time_gate_reduce", norm_triton._time_gate_reduce_kernel, samples, torch.float32, tiling, constants,
        ("scale_dt_ptr", "shift_dt_ptr"), figures,
    )  # fmt: skip


def td_group_norm_cases() -> Iterator[KernelCase]:
    kernels = td_group_norm_triton
    for C in GROUP_NORM_WIDTHS:
        samples = Samples(B=64, N=1024, D=C)
        merge = Tiling(kernels.MERGE_BLOCK, rows=1, iterations=1, num_warps=4)
        moments, forward = (choose(C).tiling(samples) for choose in (kernels.moments_config, kernels.forward_config))
        sums, backward = (choose(C).tiling(samples) for choose in (kernels.sums_config, kernels.backward_config))
        for dtype in (torch.bfloat16, torch.float32):
            yield _group_norm_case("moments_fwd", kernels._td_group_norm_moments_kernel, C, dtype, moments, tensors=1)
            yield _group_norm_case("statistics_fwd", kernels._td_group_norm_statistics_kernel, C, torch.float32, merge)
            yield _group_norm_case("fwd", kernels._td_group_norm_fwd_kernel, C, dtype, forward, tensors=2)
            yield _group_norm_case("sums_bwd", kernels._td_group_norm_sums_kernel, C, dtype, sums, tensors=2)
            yield _group_norm_case("group_sums_bwd", kernels._td_group_norm_group_sums_kernel, C, torch.float32, merge)
            yield _group_norm_case("bwd", kernels._td_group_norm_bwd_kernel, C, dtype, backward, tensors=3)


def _group_norm_case(
    name: str, kernel: Any, C: int, dtype: torch.dtype, tiling: Tiling, tensors: int = 0
) -> KernelCase:  # fmt: skip
    """``tensors``: how many of x's size are read or written; 0 for a kernel that merges a few numbers."""
    columns = C // ceil_div(C, tiling.columns)  # of the blocks on average
    return tiled_case(
        f"td_group_norm_{name}[C={C}", kernel, dtype, tiling, {"SCALE_GATE": 1, "SHIFT_GATE": 1}, ACTIVATIONS,
        outputs_per_program=tiling.rows_per_program * columns if tensors else 0,
        bytes_per_output=tensors * dtype.itemsize,
    )  # fmt: skip


def upsample_cases() -> Iterator[KernelCase]:
    kernels = upsample_triton
    for C in UPSAMPLE_WIDTHS:
        samples = Samples(B=64, N=1024, D=C)
        forward, backward = (choose(C).tiling(samples) for choose in (kernels.forward_config, kernels.backward_config))
        for dtype in (torch.bfloat16, torch.float32):
            yield _upsample_case("shuffle_norm_add_fwd", kernels._shuffle_norm_add_fwd_kernel, C, dtype, forward)
            yield _upsample_case("shuffle_norm_add_bwd", kernels._shuffle_norm_add_bwd_kernel, C, dtype, backward)


def _upsample_case(name: str, kernel: Any, C: int, dtype: torch.dtype, tiling: Tiling) -> KernelCase:
    return tiled_case(
        f"{name}[C={C}", kernel, dtype, tiling, {"R": 2, "SCALE_GATE": 1, "SHIFT_GATE": 1}, ACTIVATIONS,
        **_figures(tiling.rows_per_program * C, dtype, 3),
    )  # fmt: skip


def _over_whole_rows(tiling: Tiling, samples: Samples) -> Tiling:
    """Count a program's blocks of columns as its iterations."""
    return tiling._replace(iterations=ceil_div(samples.D, tiling.columns))


def _figures(outputs: int, dtype: torch.dtype, tensors: int) -> dict[str, Any]:
    """``tensors``: how many of the outputs' size are read or written."""
    return {"outputs_per_program": outputs, "bytes_per_output": tensors * dtype.itemsize}


def _case(
    name: str,
    kernel: Any,
    samples: Samples,
    dtype: torch.dtype,
    tiling: Tiling,
    constants: dict[str, Any],
    absent: tuple[str, ...],
    figures: dict[str, Any],
) -> KernelCase:
    """``absent``: pointers that are None."""
    constants = {**constants, **dict.fromkeys(absent)}
    return tiled_case(f"{name}[D={samples.D}", kernel, dtype, tiling, constants, ACTIVATIONS, **figures)


CASES: dict[str, Callable[[], Iterator[KernelCase]]] = {
    "td_norm": td_norm_cases,
    "td_group_norm": td_group_norm_cases,
    "shuffle_norm_add": upsample_cases,
}
"""Operator -> its configurations."""
