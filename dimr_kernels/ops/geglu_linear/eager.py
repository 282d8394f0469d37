"""The definition in plain PyTorch, and the rules for dtypes that every form shares."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..geglu.eager import geglu_packed


def project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias``; a bias of another dtype is cast, autocast casts all three."""
    return F.linear(x, weight, None if bias is None else bias.to(weight.dtype))


def geglu_linear(x: Tensor, weight: Tensor, bias: Tensor | None, approximate: str, gate_first: bool) -> Tensor:
    return geglu_packed(project(x, weight, bias), approximate, gate_first)
