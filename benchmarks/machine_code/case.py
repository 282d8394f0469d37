"""Descriptions of compiled kernel configurations."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dimr_kernels.launch import Tiling

TRITON_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# Numbers that are seldom multiples of 16; the model's widths and strides are.
UNALIGNED = frozenset(("N", "blocks", "chunks", "eps", "groups", "partial_rows", "pixels", "rows", "t_stride", "width"))


@dataclass(frozen=True)
class KernelCase:
    """One configuration of one kernel, with all that is needed to compile it without a GPU."""

    name: str
    kernel: Any
    """The ``triton.jit`` function."""
    signature: Mapping[str, str]
    """Run-time arguments in order: name -> Triton type ("*bf16", "i32", "fp32")."""
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    aligned: frozenset[str] = field(default_factory=frozenset)
    """Arguments known to be multiples of 16 (bytes, for pointers), which allows 16-byte accesses."""
    outputs_per_program: int = 0
    """Elements that one program writes; 0 where the figure means nothing."""
    outputs_per_turn: int = 0
    """Elements that one program finishes per turn of its longest loop; 0 where the figure means nothing."""
    turns: int = 1
    """Turns of each innermost loop, where that is fixed when the kernel is compiled."""
    bytes_per_output: float = 0.0
    """Fewest bytes moved to and from memory for each of those elements."""


def tiled_case(
    name: str,
    kernel: Any,
    dtype: torch.dtype,
    tiling: Tiling,
    constants: Mapping[str, Any],
    activations: Collection[str],
    **figures: Any,
) -> KernelCase:
    """Describe a kernel that works on tiles of rows. ``name`` is "kernel[width".

    Pointers in ``activations`` are of ``dtype``, all others of float32.
    """
    tiles = {"ITERATIONS": tiling.iterations, "BLOCKS": tiling.iterations, "ROWS": tiling.rows}
    blocks = dict.fromkeys(("BLOCK", "BLOCK_C", "BLOCK_D"), tiling.columns)
    given = {**tiles, **blocks, **constants}
    constants = {argument: given[argument] for argument in kernel.arg_names if argument in given}
    signature = {}
    for argument in kernel.arg_names:
        if argument.endswith("_ptr"):
            signature[argument] = f"*{TRITON_TYPES[dtype if argument in activations else torch.float32]}"
        else:
            signature[argument] = "fp32" if argument == "eps" else "i32"
    signature = {argument: kind for argument, kind in signature.items() if argument not in constants}
    return KernelCase(
        name=f"{name},{TRITON_TYPES[dtype]}]",
        kernel=kernel,
        signature=signature,
        constants=constants,
        num_warps=tiling.num_warps,
        aligned=frozenset(signature) - UNALIGNED,
        turns=tiling.iterations,
        **figures,
    )
