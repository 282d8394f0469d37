"""What every Triton launcher shares: the device guard, block sizes, and the description of a compiled configuration."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

TRITON_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}


def device_guard(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make x's GPU current: Triton launches on the current device, whatever the tensors' own."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


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
    architectures: tuple[int, ...] = ()
    """Compute capabilities times ten whose launch configuration this is; empty where all share it."""
