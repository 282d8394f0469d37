"""The definition in plain PyTorch: group norm (Wu and He 2018), with TD-LN's scale and shift (DiMR eq. (4) and (5))."""

from __future__ import annotations

import torch
from torch import Tensor

from ..time_gate.eager import mixed


def td_group_norm(
    x: Tensor,
    t: Tensor,
    num_groups: int,
    p1: Tensor,
    p2: Tensor,
    p3: Tensor | None,
    p4: Tensor | None,
    scale_gate_weight: Tensor,
    scale_gate_offset: Tensor,
    shift_gate_weight: Tensor | None,
    shift_gate_offset: Tensor | None,
    eps: float,
) -> Tensor:
    """``x [B, ..., C]``, ``t [B]`` or ``[1]`` -> x's shape and dtype."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    B, C = x.shape[0], x.shape[-1]
    gamma = mixed(t, p1, p2, scale_gate_weight, scale_gate_offset, dtype)[:, None]  # [T, 1, C]
    groups = x.to(dtype).reshape(B, x.shape[1:-1].numel(), num_groups, C // num_groups)  # [B, N, G, C / G]
    if groups.numel():  # torch warns of the variance of nothing
        variance, mean = torch.var_mean(groups, (1, 3), correction=0, keepdim=True)
        groups = (groups - mean) * (variance + eps).rsqrt()
    y = groups.flatten(-2) * gamma  # [B, N, C]
    if p3 is not None:
        shift = (p3, p4, shift_gate_weight, shift_gate_offset)
        y = y + mixed(t, *shift, dtype)[:, None]  # type: ignore[arg-type]  # all given, or none
    return y.view(x.shape).to(x.dtype)
