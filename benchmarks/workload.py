"""Workloads: one operator at one shape, the bytes it must move, and its rivals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]
# Every operator runs as these; further rivals belong to the workload.
IMPLEMENTATIONS = ("fused", "eager", "compiled", "max-autotune")
FORWARD_BACKWARD = "forward_backward"


@dataclass(frozen=True)
class Direction:
    """The forward, or the gradients of some inputs with the forward already run."""

    bytes: int
    """Each tensor that is needed read once, each result written once."""
    gradients: tuple[str, ...] = ()
    """The inputs that are differentiated; () is the forward."""
    flops: int = 0
    """Floating-point operations, where they may decide; 0 where they do not."""
    with_forward: bool = False
    """Each call runs the forward too."""


@dataclass(frozen=True)
class Rival:
    """Another implementation, ours included: what is called and under which settings."""

    function: Callable[..., Any]
    backend: str = "eager"
    """In force for ``dk.use_backend`` while it runs."""
    make_inputs: Callable[[], Inputs] | None = None
    """Its own inputs, where they differ from the workload's in layout or kind."""
    gradients: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Direction -> which of its own inputs are differentiated."""
    batched: tuple[str, ...] = ()
    """Its own inputs whose first dimension is the batch."""
    definition: Callable[..., Any] | None = None
    """Plain PyTorch for what it computes, where that is not the workload's operator."""
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    unavailable_reason: Callable[[str, Inputs], str | None] = lambda direction, inputs: None
    """Function that explains why it cannot run a direction on these inputs, or returns None."""
    note: str = ""
    """Caveat for readers of its figures."""


@dataclass(frozen=True)
class Workload:
    """``function(**make_inputs())``, once in each direction and implementation."""

    operator: str
    shape: str
    batch: int
    width: int
    fused: str
    """The backend of the operator's fused form: "triton" or "cuda"; "auto" where torch's own kernels are."""
    function: Callable[..., Any]
    make_inputs: Callable[[], Inputs]
    batched: tuple[str, ...]
    """Inputs whose first dimension is the batch, as it is of every output."""
    directions: Mapping[str, Direction]
    rivals: Mapping[str, Rival] = field(default_factory=dict)
    matmul: bool = False
    """Its flops are those of matrix products, to be held against a large one's."""

    @property
    def implementations(self) -> tuple[str, ...]:
        return *IMPLEMENTATIONS, *self.rivals

    @property
    def differentiable(self) -> set[str]:
        return {name for direction in self.directions.values() for name in direction.gradients}


def with_both_directions(workload: Workload) -> Workload:
    """Add a direction that is the forward and all gradients after it, as in training."""
    parts = workload.directions.values()
    both = Direction(
        bytes=sum(part.bytes for part in parts),
        gradients=tuple(dict.fromkeys(name for part in parts for name in part.gradients)),
        flops=sum(part.flops for part in parts),
        with_forward=True,
    )
    return replace(workload, directions={**workload.directions, FORWARD_BACKWARD: both})


def random(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, dtype=torch.float32, device=device).to(dtype)


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def bind(
    function: Callable[..., Any], inputs: Inputs, gradients: tuple[str, ...], with_forward: bool = False
) -> Callable[[], tuple[Tensor, ...]]:
    """Return a call on these inputs. For gradients alone the forward runs here, and all calls share its graph."""
    inputs = {name: x.detach() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    if not gradients:
        return lambda: as_tuple(function(**inputs))
    leaves = [inputs[name].requires_grad_() for name in gradients]
    outputs = [out for out in as_tuple(function(**inputs)) if out.requires_grad]
    cotangents = [torch.randn_like(out) for out in outputs]
    if with_forward:
        del outputs  # with the graph of the forward

        def call() -> tuple[Tensor, ...]:
            results = [out for out in as_tuple(function(**inputs)) if out.requires_grad]
            return torch.autograd.grad(results, leaves, cotangents)

        return call
    return lambda: torch.autograd.grad(outputs, leaves, cotangents, retain_graph=True)


def first_samples(inputs: Inputs, batched: tuple[str, ...], count: int) -> Inputs:
    """Return the same inputs for the first samples of the batch only."""
    return {name: x[:count] if name in batched else x for name, x in inputs.items()}
