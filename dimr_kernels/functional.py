"""Stateless operators. Each checks its arguments, then runs its fused form or its eager definition (``dispatch``)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from . import checks
from .dispatch import choose, current_backend
from .ops.attention import eager as attention_eager
from .ops.geglu import eager as geglu_eager
from .ops.geglu import op as geglu_op


def _rows(x: Tensor) -> Tensor:
    """``[..., D]`` -> ``[rows, D]``, also where D is 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def geglu(h: Tensor, value: Tensor | None = None, approximate: str = "none", gate: str = "first") -> Tensor:
    """Gated GELU: ``gelu(gate) * value`` (Shazeer 2020; DiMR's MLP).

    Args:
        h: ``[..., 2D]`` holding gate and value side by side, or the gate ``[..., D]`` where ``value`` is given.
        value: ``[..., D]``, of ``h``'s shape, dtype and device; None for the packed form.
        approximate: "none" is the exact erf, "tanh" the usual approximation.
        gate: which half of a packed ``h`` is the gate, "first" or "last". Not used with ``value``.

    Returns:
        ``[..., D]`` in ``h``'s dtype; float16 and bfloat16 are computed in float32.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit.
        BackendError: the implementation asked for cannot run (see :func:`dimr_kernels.use_backend`).
    """
    checks.check_floating("geglu", h=h, value=value)
    checks.check_choice("geglu", "approximate", approximate, ("none", "tanh"))
    checks.check_choice("geglu", "gate", gate, ("first", "last"))
    if h.dim() == 0:
        raise ValueError("geglu: h must have at least one dimension, got a scalar")
    fused = choose("geglu", h, "triton") == "triton"
    if value is None:
        if h.shape[-1] % 2:
            raise ValueError(f"geglu: h must have an even last dimension [..., 2D], got shape {list(h.shape)}")
        gate_first = gate == "first"
        if not fused:
            return geglu_eager.geglu_packed(h, approximate, gate_first)
        out = geglu_op.geglu_packed(_rows(h), approximate, gate_first)
    else:
        checks.check_shape("geglu", "value", value, tuple(h.shape))
        checks.check_same_dtype("geglu", h=h, value=value)
        checks.check_same_device("geglu", h=h, value=value)
        if not fused:
            return geglu_eager.geglu_pair(h, value, approximate)
        out = geglu_op.geglu_pair(_rows(h), _rows(value), approximate)
    return out.reshape(*h.shape[:-1], out.shape[-1])


def attention(q: Tensor, k: Tensor, v: Tensor, backend: str = "auto", scale: float | None = None) -> Tensor:
    """``softmax(q k^T * scale) v`` for ``q, k, v [B, heads, L, head_dim]``; scale None is ``1/sqrt(head_dim)``."""
    if scale is None:
        scale = q.shape[-1] ** -0.5
    if backend == "eager" or current_backend() == "eager":
        return attention_eager.attention(q, k, v, scale)
    return F.scaled_dot_product_attention(q, k, v, scale=scale)
