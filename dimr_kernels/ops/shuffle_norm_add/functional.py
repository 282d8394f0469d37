"""The public function: checks, and which form runs."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import checks, shuffle_checks, time_checks
from ...dispatch import choose
from ..pixel_shuffle import eager as pixel_shuffle_eager
from ..td_norm import op as td_norm_op
from . import eager, op

FUSED_FORMS = {"pixel_shuffle_td_norm_add": "triton"}


def pixel_shuffle_td_norm_add(
    x: Tensor,
    y: Tensor,
    t: Tensor | float,
    upscale_factor: int,
    p1: Tensor,
    p2: Tensor,
    p3: Tensor,
    p4: Tensor,
    scale_gate_weight: Tensor,
    scale_gate_offset: Tensor,
    shift_gate_weight: Tensor,
    shift_gate_offset: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """The cascade's way up: ``y + TDLN(shuffle(x))`` in one pass (DiMR eq. (2), (4) and (5)), channels last.

    Args:
        x: ``[B, H, W, r*r*C]`` with channels in ``(r, r, C)`` order.
        y: ``[B, r*H, r*W, C]``; its dtype may differ from x's.
        upscale_factor: ``r >= 1``.
        t, p1, p2, p3, p4, the gates, eps: as for :func:`td_layer_norm`, of width C.

    Rows wider than 8192 channels are shuffled, normalized and added in three passes.

    Returns:
        ``[B, r*H, r*W, C]`` in the dtype that torch's promotion gives ``x`` and ``y``.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit, or ``t`` is NaN.
        BackendError: the implementation asked for cannot run (see :func:`dimr_kernels.use_backend`).

    Example:
        >>> x, y, one, zero = torch.randn(1, 2, 2, 4 * 8), torch.randn(1, 4, 4, 8), torch.ones(8), torch.zeros(8)
        >>> pixel_shuffle_td_norm_add(x, y, 0.5, 2, one, one, zero, zero, one, zero, one, zero).shape
        torch.Size([1, 4, 4, 8])
    """
    operator = "pixel_shuffle_td_norm_add"
    r = shuffle_checks.check_shuffle(operator, x, "upscale_factor", upscale_factor, "nhwc")
    checks.check_floating(operator, y=y)
    C = shuffle_checks.check_shuffled(operator, x, y, r, "nhwc")
    if C == 0:
        raise ValueError(f"{operator}: x must have at least one channel, got shape {list(x.shape)}")
    if (x.dtype == torch.float64) != (y.dtype == torch.float64):
        raise TypeError(f"{operator}: y has dtype {y.dtype}, x has {x.dtype}: float64 does not mix")
    checks.check_number(operator, "eps", eps)
    gates = (p1, p2, p3, p4, scale_gate_weight, scale_gate_offset, shift_gate_weight, shift_gate_offset)
    time_checks.check_gates(operator, C, x.device, gates, needs_shift=True)
    t = time_checks.as_timesteps(operator, t, x)
    if choose(operator, x, "triton") == "eager":
        return eager.shuffle_norm_add(x, y, t, r, *gates, eps)
    if not op.fits(y):
        return y + td_norm_op.td_norm(pixel_shuffle_eager.pixel_shuffle(x, r, "nhwc"), None, t, *gates, eps, False)[0]
    return op.shuffle_norm_add(x, y, t, r, *gates, eps)[0]
