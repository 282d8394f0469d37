"""The Triton form of the time-dependent norms: ``forward``, ``backward`` and the configurations the model compiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .. import limits
from ..configurations import Table
from ..launch import KernelCase
from ..samples import Samples, Tiling
from ..tiled_case import TileConfig, tiled_case
from ..time_gate import triton as time_gate
from . import triton_backward, triton_forward, triton_table
from .triton_backward import backward
from .triton_forward import forward, forward_into

__all__ = ["backward", "cases", "forward", "forward_into"]

TABLES = (
    triton_forward.FORWARD,
    triton_forward.WIDE_FORWARD,
    triton_backward.BACKWARD,
    triton_backward.WIDE_BACKWARD,
    triton_backward.ROW_SUMS,
    time_gate.REDUCE,
)


def reads(table: Table[Any], D: int) -> bool:
    """Whether rows of this width are launched by what the table says."""
    if table is time_gate.REDUCE:
        return True
    wide = (triton_forward.WIDE_FORWARD, triton_backward.WIDE_BACKWARD, triton_backward.ROW_SUMS)
    return (table in wide) == (D > limits.WIDEST_IN_REGISTERS)


WIDTHS = (192, 240, 384, 480, 576, 768, 960, 1152)
CASCADE_WIDTH = 38400
ACTIVATIONS = ("x_ptr", "residual_ptr", "y_ptr", "sum_ptr", "dy_ptr", "dsum_ptr", "dx_ptr")
SHIFT_POINTERS = ("p3_ptr", "p4_ptr", "shift_weight_ptr", "shift_offset_ptr")


def cases() -> Iterator[KernelCase]:
    """The configurations that the model's widths compile, for analysis without a GPU."""
    for D in WIDTHS:
        samples = Samples(B=64, N=1024, D=D)
        yield _forward_case(samples, torch.bfloat16, rms=True, residual=True)
        yield _backward_case(samples, torch.bfloat16, rms=True)
        yield _forward_case(samples, torch.bfloat16, rms=False, residual=False)
        yield _backward_case(samples, torch.bfloat16, rms=False)
        yield _forward_case(samples, torch.bfloat16, rms=True, residual=True, offset=True)
        yield _forward_case(samples, torch.bfloat16, rms=False, residual=False, offset=True)
    for D in (480, 1152):
        samples = Samples(B=64, N=1024, D=D)
        yield _forward_case(samples, torch.float32, rms=False, residual=True)
        yield _backward_case(samples, torch.float32, rms=False)
    yield _reduce_case(samples)
    widest = Samples(B=64, N=256, D=limits.WIDEST_IN_REGISTERS)
    cascade = Samples(B=64, N=256, D=CASCADE_WIDTH)
    for samples in (widest, cascade):
        yield _backward_case(samples, torch.bfloat16, rms=False)
    yield _forward_case(widest, torch.bfloat16, rms=False, residual=True)
    yield _wide_forward_case(cascade, torch.bfloat16)
    yield _row_sums_case(cascade, torch.bfloat16)
    yield _table_case(cascade)
    yield _reduce_case(cascade)


def _forward_case(samples: Samples, dtype: torch.dtype, rms: bool, residual: bool, offset: bool = False) -> KernelCase:
    """With ``offset`` the form for inference, which keeps no statistics."""
    config = triton_forward.forward_config(samples)
    constants = {"RMS": rms, "SCALE_GATE": 1, "SHIFT_GATE": 1}
    absent = (() if residual else ("residual_ptr",)) + (SHIFT_POINTERS if rms else ())
    absent += ("stats_ptr",) if offset else ("offset_ptr",)
    kind = ("rms" if rms else "layer") + ("+residual" if residual else "") + ("+offset" if offset else "")
    figures = _figures(samples, config.rows_per_program, dtype, 4 if residual else 2)
    return _case(
        f"td_norm_fwd_{kind}", triton_forward._td_norm_fwd_kernel, samples, dtype, config, constants, absent, figures
    )


def _wide_forward_case(samples: Samples, dtype: torch.dtype) -> KernelCase:
    config = triton_forward.wide_forward_config(samples)
    constants = {"RMS": False, "HAS_SHIFT": True}
    kernel = triton_forward._td_norm_fwd_wide_kernel
    figures = _figures(samples, config.rows, dtype, 2)
    return _case("td_norm_fwd_wide", kernel, samples, dtype, config, constants, ("residual_ptr",), figures)


def _backward_case(samples: Samples, dtype: torch.dtype, rms: bool) -> KernelCase:
    config = triton_backward.backward_config(samples)
    constants = {"RMS": rms, "HAS_SHIFT": not rms, "SCALE_GATE": 1}
    wide = config.columns < samples.D
    absent = () if wide else ("row_sums_ptr",)
    columns = Samples(samples.B, samples.N, min(samples.D, config.columns))
    figures = _figures(columns, config.rows_per_program, dtype, 4)
    name = f"td_norm_bwd{'_wide' if wide else ''}_{'rms' if rms else 'layer'}"
    return _case(name, triton_backward._td_norm_bwd_kernel, samples, dtype, config, constants, absent, figures)


def _row_sums_case(samples: Samples, dtype: torch.dtype) -> KernelCase:
    config = triton_backward.row_sums_config(samples)
    constants = {"RMS": False}
    kernel = triton_backward._td_norm_row_sums_kernel
    figures = _figures(samples, config.rows, dtype, 2)
    return _case("td_norm_bwd_wide_sums", kernel, samples, dtype, config, constants, (), figures)


def _table_case(samples: Samples) -> KernelCase:
    config = Tiling(triton_table.TABLE_BLOCK, rows=1, iterations=1, num_warps=4)
    constants = {"SCALE_GATE": 1, "SHIFT_GATE": 1}
    figures = {"outputs_per_program": 2 * config.columns}
    kernel = triton_table._td_norm_table_kernel
    return _case("time_gate_table", kernel, samples, torch.float32, config, constants, (), figures)


def _reduce_case(samples: Samples) -> KernelCase:
    backward_config = triton_backward.backward_config(samples)
    chunks = samples.chunks(backward_config.rows * backward_config.iterations)
    config = time_gate.reduce_config(samples.B * chunks, samples.D)
    constants = {"SCALE_GATE": 1, "SHIFT_GATE": 1}
    kernel = time_gate._time_gate_reduce_kernel
    absent = ("scale_dt_ptr", "shift_dt_ptr")
    # A program takes one of two branches, for scale or for shift: both are counted, with the partials of both.
    partials = Samples(samples.B, samples.N, 2 * config.columns)
    figures = _figures(partials, config.rows * config.iterations, torch.float32, 1)
    return _case("time_gate_reduce", kernel, samples, torch.float32, config, constants, absent, figures)


def _figures(samples: Samples, rows: int, dtype: torch.dtype, tensors: int) -> dict[str, Any]:
    """Of a program that makes so many rows, when so many tensors of their size are read or written."""
    return {"outputs_per_program": rows * samples.D, "bytes_per_output": tensors * dtype.itemsize}


def _case(
    name: str,
    kernel: Any,
    samples: Samples,
    dtype: torch.dtype,
    config: TileConfig,
    constants: dict[str, Any],
    absent: tuple[str, ...],
    figures: dict[str, Any],
) -> KernelCase:
    """``absent``: pointers that are None."""
    constants = {**constants, **dict.fromkeys(absent)}
    return tiled_case(f"{name}[D={samples.D}", kernel, dtype, config, constants, ACTIVATIONS, **figures)
