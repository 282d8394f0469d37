"""The description of a compiled configuration, for kernels that walk rows in tiles."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch

from .launch import TRITON_TYPES, KernelCase

# Numbers that are seldom multiples of 16; of widths and strides the model's are.
SIZES = frozenset(("N", "blocks", "chunks", "eps", "groups", "partial_rows", "pixels", "rows", "t_stride", "width"))


class TileConfig(Protocol):
    @property
    def columns(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def iterations(self) -> int: ...
    @property
    def num_warps(self) -> int: ...


def tiled_case(
    name: str,
    kernel: Any,
    dtype: torch.dtype,
    config: TileConfig,
    constants: Mapping[str, Any],
    activations: Collection[str],
    **figures: Any,
) -> KernelCase:
    """Pointers in ``activations`` are of ``dtype``, all others of float32. ``name`` is "kernel[width"."""
    tiles = {"ITERATIONS": config.iterations, "BLOCKS": config.iterations, "ROWS": config.rows}
    blocks = dict.fromkeys(("BLOCK", "BLOCK_C", "BLOCK_D"), config.columns)
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
        num_warps=config.num_warps,
        aligned=frozenset(signature) - SIZES,
        turns=config.iterations,
        **figures,
    )
