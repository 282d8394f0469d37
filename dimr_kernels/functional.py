"""Stateless operators. Each checks its arguments, then runs its fused form or its eager definition (``dispatch``)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from . import checks
from .dispatch import choose, current_backend
from .ops.attention import eager as attention_eager
from .ops.depthwise_conv import eager as depthwise_conv_eager
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


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """Depthwise convolution of a channels-last feature map, stride 1, same padding: ``conv(x) + bias + residual``.

    Args:
        x: ``[B, H, W, C]``.
        weight: ``[C, 1, K, K]``, torch's layout, K one of 3, 5, 7.
        bias: ``[C]``, or None.
        residual: ``[B, H, W, C]`` in ``x``'s dtype, added to the result; it costs nothing where it is ``x`` itself.

    ``weight`` and ``bias`` may have another dtype than ``x``; each gradient has its own tensor's. Sums are float32.

    Returns:
        ``[B, H, W, C]`` in ``x``'s dtype. Under autocast ``x`` and ``residual`` are cast first, as for torch's
        convolutions.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit.
        BackendError: the implementation asked for cannot run (see :func:`dimr_kernels.use_backend`).
    """
    operator = "depthwise_conv2d"
    checks.check_floating(operator, x=x, weight=weight, bias=bias, residual=residual)
    checks.check_rank(operator, "x", x, 4, "[B, H, W, C]")
    checks.check_rank(operator, "weight", weight, 4, "[C, 1, K, K]")
    channels, kernel_size = x.shape[3], weight.shape[3]
    checks.check_choice(operator, "weight's kernel size", kernel_size, (3, 5, 7))
    checks.check_shape(operator, "weight", weight, (channels, 1, kernel_size, kernel_size))
    if 0 in x.shape[1:]:
        raise ValueError(f"{operator}: x must have positive H, W and C, got shape {list(x.shape)}")
    if bias is not None:
        checks.check_shape(operator, "bias", bias, (channels,))
    if residual is not None:
        checks.check_shape(operator, "residual", residual, tuple(x.shape))
    checks.check_same_device(operator, x=x, weight=weight, bias=bias, residual=residual)
    residual_is_x = residual is x
    dtype = checks.autocast_dtype(x)
    if dtype is not None:
        x = x.to(dtype)
        residual = x if residual_is_x else None if residual is None else residual.to(dtype)
    checks.check_same_dtype(operator, x=x, residual=residual)
    return depthwise_conv_eager.depthwise_conv2d(x, weight, bias, residual)
