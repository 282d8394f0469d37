"""The time gate in plain PyTorch (DiMR eq. (5)): ``s = sigmoid(w t + o)``, ``mixed = s first + (1 - s) second``."""

from __future__ import annotations

import torch
from torch import Tensor


def mixed(
    t: Tensor, first: Tensor, second: Tensor, gate_weight: Tensor, gate_offset: Tensor, dtype: torch.dtype
) -> Tensor:
    """``t [T]``, ``first, second [D]``, gate ``[D]`` or ``[1]`` -> ``[T, D]``, computed in ``dtype``.

    Written so that two equal parameters give themselves, whatever the gate.
    """
    values = (t, first, second, gate_weight, gate_offset)
    t, first, second, gate_weight, gate_offset = (v if v.dtype == dtype else v.to(dtype) for v in values)
    gate = torch.sigmoid(torch.addcmul(gate_offset, gate_weight, t[:, None]))  # [T, D] or [T, 1]
    return torch.addcmul(second, gate, first - second)
