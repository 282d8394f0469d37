"""Plain layer norms. Torch's own is one fused kernel, so it stays unless it is asked for."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import autocast_dtype
from ..ops.td_norm.functional import td_layer_norm
from .sites import Rule, Site, loaded_class, why_not_exactly, why_not_plain_tensors
from .swap import Adopted, Change, ClassChange
from .trial import why_not_equal

TIMM = "timm.layers.norm.LayerNorm"  # torch's with another default


class LayerNorm(Adopted):
    """TD-LN whose two ends are one and the same: ``s w + (1 - s) w`` is w, whatever the gate.

    Torch's own runs for single rows, under autocast and for mixed dtypes, where its result has another dtype than ours,
    and in code that is compiled, where Inductor fuses it with its neighbours.
    """

    normalized_shape: tuple[int, ...]
    eps: float
    weight: Tensor | None
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        mixed = weight is not None and weight.dtype != input.dtype
        if mixed or input.dim() < 2 or autocast_dtype(input) is not None or torch.compiler.is_compiling():
            return super().forward(input)
        one, zero = _constants(self.normalized_shape[0], input.device)
        if weight is None:
            weight = one
        shift_gate = None if bias is None else zero
        return td_layer_norm(  # type: ignore[return-value]  # without a residual it is one tensor
            input, zero, weight, weight, bias, bias, zero, zero, shift_gate, shift_gate, self.eps
        )


@lru_cache
def _constants(D: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """``[D]`` ones, and the one zero that is timestep and gate."""
    with torch.inference_mode(False):
        return torch.ones(D, device=device), torch.zeros(1, device=device)


def rule(wanted: bool) -> Rule:
    return Rule(_what, lambda site: _why_not(site, wanted), _swap)


def _what(site: Site) -> str | None:
    return "nn.LayerNorm" if isinstance(site.module, nn.LayerNorm) else None


def _why_not(site: Site, wanted: bool) -> str | None:
    norm: Any = site.module
    problem = _why_not_layer_norm(norm) or why_not_plain_tensors(norm)
    if problem is not None:
        return problem
    if len(norm.normalized_shape) != 1:
        return f"it normalizes {len(norm.normalized_shape)} dimensions, {tuple(norm.normalized_shape)}, at once"
    if not wanted:
        return "torch's own is one fused kernel already; layer_norm=True takes ours"
    return None


def _why_not_layer_norm(norm: Any) -> str | None:
    cls = loaded_class(TIMM)
    if cls is None or type(norm) is not cls:
        return why_not_exactly(norm, nn.LayerNorm)
    if getattr(norm, "_fast_norm", False):
        return "timm's fast norm is set for it, which computes in lower precision"
    return why_not_exactly(norm, cls) or why_not_equal(cls, LayerNorm, lambda: _small(cls))


def _small(cls: type[nn.Module]) -> nn.Module:
    norm = cls(4)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def _swap(site: Site) -> tuple[str, Change]:
    return "td_layer_norm, constant in time", ClassChange(site.path, site.module, LayerNorm)
