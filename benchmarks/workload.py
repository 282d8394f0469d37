"""What is timed: one operator at one shape, with the bytes it has to move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Rival name -> the backend its function runs under. "compiled" is torch.compile of the eager definition.
IMPLEMENTATIONS = ("eager", "compiled", "fused")
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Workload:
    """``function(**make_inputs())``; inputs that require a gradient are those the backward differentiates."""

    operator: str
    fused: str
    """The backend of the operator's fused form: "triton" or "cuda"; "auto" where that is a choice of the function."""
    function: Callable[..., Any]
    make_inputs: Callable[[], dict[str, Any]]
    forward_bytes: int
    """Each input read once, each output written once."""
    backward_bytes: int
    """The same, for the gradients of every input that requires one."""
    flops: int = 0
    """Forward floating-point operations, where they may decide; 0 where they do not."""


def outputs_of(workload: Workload, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    out = workload.function(**inputs)
    return out if isinstance(out, tuple) else (out,)


def differentiable(inputs: dict[str, Any]) -> list[Tensor]:
    return [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]


def random(*shape: int, dtype: torch.dtype, device: torch.device, grad: bool = True) -> Tensor:
    return torch.randn(shape, dtype=torch.float32, device=device).to(dtype).requires_grad_(grad)
