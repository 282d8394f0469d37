"""Operators without a gradient that write into given tensors: slots of a larger buffer, or in place.

Each is the fused form of a few functions of :mod:`dimr_kernels.functional` and spares the copy that would bring their
result to its place. ``t`` is a float32 tensor ``[B]`` or ``[1]``; its values are not checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from . import checks
from .dispatch import choose
from .ops import time_gate
from .ops.depthwise_conv import depthwise_conv2d_into_definition, depthwise_conv2d_into_ops
from .ops.linear import linear_add_ as linear_add_
from .ops.td_norm import td_norm_into_definition, td_norm_into_ops
from .ops.time_gate import GATES, GateParameters
from .ops.upsample import shuffle_norm_add_definition, shuffle_norm_add_in_place_ops

Gates = Sequence[Tensor | None]
"""The parameters of a time-dependent norm in the order of ``GATES``; the shift's four are None where there is none."""


def td_norm(
    x: Tensor,
    t: Tensor,
    gates: Gates,
    eps: float,
    rms: bool,
    residual: Tensor | None = None,
    total: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """Time-dependent norm of ``x + residual + offset``; ``x + residual``, without the offset, goes into ``total``.

    The offset serves a sum that already holds a bias which the norm must not see: subtracting it here is free, while
    adding it later would read and write the sum once more.

    Args:
        x: ``[B, ..., D]``; rows may lie any distance apart.
        t: ``[B]`` or ``[1]``.
        gates, eps, rms: see :data:`Gates`; ``rms`` chooses between :func:`~dimr_kernels.functional.td_layer_norm` and
            :func:`~dimr_kernels.functional.td_rms_norm`.
        residual: x's shape and dtype; None, with ``total``, for none.
        total: x's shape and dtype, whole rows, viewable as ``[B, N, D]``; must not overlap x.
        offset: ``[D]`` float32.

    Returns:
        ``[B, ..., D]``, contiguous, in x's dtype.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit.
        RuntimeError: an argument requires a gradient and autograd is on.
    """
    operator = "inference.td_norm"
    checks.check_floating(operator, x=x, residual=residual, total=total, offset=offset, t=t)
    if x.dim() < 2 or x.shape[-1] == 0:
        raise ValueError(f"{operator}: x must have shape [B, ..., D] with D >= 1, got {list(x.shape)}")
    D = x.shape[-1]
    for name, tensor in (("residual", residual), ("total", total)):
        if tensor is not None:
            checks.check_shape(operator, name, tensor, tuple(x.shape))
    if offset is not None:
        checks.check_shape(operator, "offset", offset, (D,))
    if (total is None) != (residual is None):
        raise ValueError(f"{operator}: residual and total must both be given or both be None")
    checks.check_same_device(operator, x=x, residual=residual, total=total, offset=offset, t=t)
    checks.check_same_dtype(operator, x=x, residual=residual, total=total)
    _check_pixels(operator, "total", total)
    _check_timestep(operator, t, x.shape[0])
    gates = _check_gates(operator, gates, D, x.device)
    _refuse_gradients(operator, x, residual, total, offset, t, *gates)
    form = choose(operator, x)
    fits = form != "triton" or D <= time_gate.WIDEST_IN_REGISTERS or (residual is None and offset is None)
    if form == "eager" or not fits:
        return td_norm_into_definition(x, residual, total, offset, t, gates, eps, rms)
    return td_norm_into_ops[form](x, residual, total, offset, t, *gates.in_schema_order(), eps, rms)


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """``conv(x) + bias + x`` into ``out``, as :func:`dimr_kernels.functional.depthwise_conv2d` with ``residual=x``.

    Args:
        x: ``[B, H, W, C]``; pixels may lie any distance apart.
        weight: ``[C, 1, K, K]``, K one of 3, 5, 7; stored with its channels last it is not copied.
        bias: ``[C]``, or None.
        out: x's shape and dtype, pixels at equal distances throughout; must not overlap x.

    Raises as :func:`td_norm`.
    """
    operator = "inference.depthwise_conv2d"
    checks.check_floating(operator, x=x, weight=weight, bias=bias, out=out)
    checks.check_rank(operator, "x", x, 4, "[B, H, W, C]")
    checks.check_rank(operator, "weight", weight, 4, "[C, 1, K, K]")
    checks.check_choice(operator, "weight's kernel size", weight.shape[3], (3, 5, 7))
    checks.check_shape(operator, "weight", weight, (x.shape[3], 1, weight.shape[3], weight.shape[3]))
    if bias is not None:
        checks.check_shape(operator, "bias", bias, (x.shape[3],))
    checks.check_shape(operator, "out", out, tuple(x.shape))
    checks.check_same_device(operator, x=x, weight=weight, bias=bias, out=out)
    checks.check_same_dtype(operator, x=x, out=out)
    _check_pixels(operator, "out", out, across_samples=True)
    _refuse_gradients(operator, x, weight, bias, out)
    form = choose(operator, x)
    compute = depthwise_conv2d_into_definition if form == "eager" else depthwise_conv2d_into_ops[form]
    compute(x, weight, bias, out)


def pixel_shuffle_td_norm_add_(
    y: Tensor, x: Tensor, t: Tensor, upscale_factor: int, gates: Gates, eps: float = 1e-5
) -> None:
    """``y += TDLN(shuffle(x))``: :func:`dimr_kernels.functional.pixel_shuffle_td_norm_add` in place.

    Args:
        y: ``[B, r*H, r*W, C]``, pixels at equal distances.
        x: ``[B, H, W, r*r*C]``.
        t, gates, eps: as for :func:`td_norm`; the gates have a shift.

    Raises as :func:`td_norm`.
    """
    operator = "inference.pixel_shuffle_td_norm_add_"
    r = checks.check_shuffle(operator, x, "upscale_factor", upscale_factor, "nhwc")
    C = checks.check_shuffled(operator, x, y, r, "nhwc")
    checks.check_same_dtype(operator, y=y, x=x)
    checks.check_same_device(operator, y=y, x=x, t=t)
    _check_pixels(operator, "y", y)
    _check_timestep(operator, t, y.shape[0])
    gates = _check_gates(operator, gates, C, y.device)
    if gates.p3 is None:
        raise ValueError(f"{operator}: gates must have a shift, got none")
    _refuse_gradients(operator, y, x, t, *gates)
    form = choose(operator, y)
    if form == "eager" or (form == "triton" and C > time_gate.WIDEST_IN_REGISTERS):
        y.copy_(shuffle_norm_add_definition(x, y, t, r, gates, eps))
    else:
        shuffle_norm_add_in_place_ops[form](x, y, t, r, *gates.in_schema_order(), eps)


def _check_pixels(operator: str, name: str, tensor: Tensor | None, across_samples: bool = False) -> None:
    """Check for dense rows at equal distances within a sample, so a view ``[B, N, D]`` exists; or in the batch."""
    if tensor is None or tensor.numel() == 0:
        return
    dense = tensor.shape[-1] == 1 or tensor.stride(-1) == 1
    sizes, strides = tensor.shape[:-1], tensor.stride()[:-1]
    first = 0 if across_samples else 1
    outer = [(n, s) for n, s in zip(sizes[first:], strides[first:], strict=True) if n > 1]
    even = all(s == n * inside for (_, s), (n, inside) in pairwise(outer))
    if not (dense and even):
        where = "in the batch" if across_samples else "within a sample"
        raise ValueError(
            f"{operator}: {name} must have dense rows at equal distances {where}, got shape {list(tensor.shape)} with "
            f"strides {list(tensor.stride())}"
        )


def _check_timestep(operator: str, t: Tensor, batch: int) -> None:
    if t.dim() != 1 or t.shape[0] not in (1, batch):
        raise ValueError(f"{operator}: t must have shape [{batch}] or [1], got {list(t.shape)}")


def _check_gates(operator: str, gates: Gates, D: int, device: torch.device) -> GateParameters:
    if len(gates) != len(GATES):
        raise ValueError(f"{operator}: gates must be {', '.join(GATES)}; got {len(gates)} values")
    if not isinstance(gates, GateParameters):
        gates = GateParameters.from_schema(gates)
    time_gate.check_gates(operator, D, device, gates)
    return gates


def _refuse_gradients(operator: str, *tensors: Tensor | None) -> None:
    if torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in tensors):
        raise RuntimeError(f"{operator}: it has no gradient; call it under torch.no_grad() or torch.inference_mode()")
