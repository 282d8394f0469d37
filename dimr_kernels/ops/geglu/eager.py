"""The definition of GeGLU in plain PyTorch (Shazeer 2020, "GLU Variants Improve Transformer")."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def split_packed(h: Tensor, gate_first: bool) -> tuple[Tensor, Tensor]:
    """``h [..., 2D]`` -> views ``(gate, value)``, both ``[..., D]``."""
    first, second = h.chunk(2, dim=-1)
    return (first, second) if gate_first else (second, first)


def geglu_pair(gate: Tensor, value: Tensor, approximate: str) -> Tensor:
    return F.gelu(gate, approximate=approximate) * value


def geglu_packed(h: Tensor, approximate: str, gate_first: bool) -> Tensor:
    gate, value = split_packed(h, gate_first)
    return geglu_pair(gate, value, approximate)
