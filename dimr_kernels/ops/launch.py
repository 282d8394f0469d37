"""What every Triton launcher shares: the launch itself, block sizes, the description of a compiled configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..launch import Launch, cached_by_shape, ceil_div, forget_launches, next_power_of_2  # noqa: F401

TRITON_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}


@dataclass(frozen=True)
class KernelCase:
    """One configuration of one kernel, enough to compile it without a GPU (see ``static_analysis``)."""

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
    """How many turns each innermost loop takes, where that is fixed when the kernel is compiled."""
    bytes_per_output: float = 0.0
    """Moved to and from memory for each of those elements, at the least."""
