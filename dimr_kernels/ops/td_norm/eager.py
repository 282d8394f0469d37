"""The definition of TD-LN (DiMR eq. (4) and (5)) and of its RMS form in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..time_gate.eager import mixed


def td_norm(
    x: Tensor,
    residual: Tensor | None,
    t: Tensor,
    p1: Tensor,
    p2: Tensor,
    p3: Tensor | None,
    p4: Tensor | None,
    scale_gate_weight: Tensor,
    scale_gate_offset: Tensor,
    shift_gate_weight: Tensor | None,
    shift_gate_offset: Tensor | None,
    eps: float,
    rms: bool,
) -> tuple[Tensor, Tensor]:
    """``x [B, ..., D]``, ``t [B]`` or ``[1]`` -> the norm of ``x + residual`` in x's dtype, and ``x + residual``."""
    total = x if residual is None else x + residual
    dtype = torch.float64 if total.dtype == torch.float64 else torch.float32
    gamma = mixed(t, p1, p2, scale_gate_weight, scale_gate_offset, dtype)  # [T, D]
    shift = (p3, p4, shift_gate_weight, shift_gate_offset)
    beta = None if p3 is None else mixed(t, *shift, dtype)  # type: ignore[arg-type]  # all given, or none
    norm = rms_norm if rms else layer_norm
    return norm(total.to(dtype), gamma, beta, eps).to(x.dtype), total


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor | None, eps: float) -> Tensor:
    """``x [B, ..., D]``, ``gamma, beta [T, D]``."""
    D = x.shape[-1]
    if gamma.shape[0] == 1:  # torch's layer norm applies one scale and shift for the whole batch in the same pass
        return F.layer_norm(x, (D,), gamma[0], None if beta is None else beta[0], eps)
    return _modulated(F.layer_norm(x, (D,), eps=eps), gamma, beta)


def rms_norm(x: Tensor, gamma: Tensor, beta: Tensor | None, eps: float) -> Tensor:
    """``x / (rms + eps)``: eps outside the root. The derivative of the norm of a zero row is taken as zero."""
    rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
    return _modulated(x / (rms + eps), gamma, beta)


def _modulated(z: Tensor, gamma: Tensor, beta: Tensor | None) -> Tensor:
    """``z [B, ..., D]`` times ``gamma [T, D]`` plus ``beta [T, D]``, one row of each per sample."""
    per_sample = (gamma.shape[0], *[1] * (z.dim() - 2), gamma.shape[1])
    gamma = gamma.view(per_sample)
    return z * gamma if beta is None else torch.addcmul(beta.view(per_sample), z, gamma)
