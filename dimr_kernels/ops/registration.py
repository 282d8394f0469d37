"""How every operator is registered with torch: schema, CPU and CUDA kernels, fake, autograd.

The low-level ``torch.library.Library`` is used, not ``custom_op``: it costs about a third per call on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "dimr_kernels"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def define_op(schema: str, *, kernel: Callable[..., Any] | None, fake: Callable[..., Any]) -> torch._ops.OpOverload:
    """Register ``schema`` ("name(arguments) -> results") and return the callable overload.

    ``kernel`` is None where the compiled extension registers the implementations itself.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    if kernel is not None:
        for key in ("CPU", "CUDA"):
            _library.impl(name, kernel, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    return getattr(torch.ops.dimr_kernels, name).default


def define_gradient(
    op: torch._ops.OpOverload, *, setup_context: Callable[..., None], backward: Callable[..., Any]
) -> None:
    """``backward(ctx, *output_gradients)`` returns one gradient (or None) per argument of ``op``."""
    torch.library.register_autograd(op, backward, setup_context=setup_context, lib=_library)


def refuse_double_backward(op: torch._ops.OpOverload, operator: str) -> None:
    """For an operator that computes gradients: differentiating it again raises an error that says what to do."""

    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(
            f"{operator}: its fused backward has no derivative of its own; for a double backward run the forward "
            f"under dimr_kernels.use_backend('eager')"
        )

    torch.library.register_autograd(op, backward, lib=_library)
