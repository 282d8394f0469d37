"""Norms and time for models without TD-LN: a plain layer norm, sinusoids of the timestep, adaLN-Zero's modulation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_PERIOD = 10_000
FREQUENCIES = 256  # width of the sinusoids before a time MLP (DiT)


class LayerNorm(nn.LayerNorm):
    """Torch's, called as the time-dependent norms are; the time changes nothing."""

    def forward(  # type: ignore[override]
        self, x: Tensor, t: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if residual is None:
            return super().forward(x)
        total = x + residual
        return super().forward(total), total


def sinusoids(t: Tensor, width: int) -> Tensor:
    """``t [B] or [1]`` in (-1, 1] -> ``[B or 1, width]`` float32, cosines first, of the timestep in (0, 1000]."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(MAX_PERIOD) / half))
    angles = (t.float()[:, None] + 1) * 500 * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class TimeToken(nn.Module):
    """Sinusoids of the timestep as a token (U-ViT): ``t [B] or [1]`` -> ``[B or 1, 1, D]``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(dim))

    def forward(self, t: Tensor) -> Tensor:
        dtype = self.position.dtype
        return (sinusoids(t, self.position.numel()).to(dtype) + self.position)[:, None]


class TimeMLP(nn.Module):
    """What a branch's modulations see of the time: ``t [B] or [1]`` -> ``[B or 1, D]``."""

    def __init__(self, dim: int, frequencies: int) -> None:
        super().__init__()
        self.proj = nn.Linear(frequencies, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        wave = sinusoids(t, self.proj.in_features).to(self.proj.weight.dtype)
        return self.out(F.silu(self.proj(wave)))


class Modulation(nn.Module):
    """adaLN-Zero: a scale, a shift and a gate for each of two norms, ``c [B or 1, D]`` -> six ``[B or 1, 1.., D]``.

    All start at zero, so that the block starts as the identity.

    Args:
        dim: D.
        hidden: whether a hidden layer of width D stands before the projection.
    """

    def __init__(self, dim: int, hidden: bool = False) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, dim) if hidden else None
        self.proj = nn.Linear(dim, 6 * dim)

    def start_at_zero(self) -> None:
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, c: Tensor, dimensions: int) -> tuple[Tensor, ...]:
        """``dimensions``: of what is modulated, ``[B, ..., D]``."""
        h = F.silu(c)
        if self.hidden is not None:
            h = F.silu(self.hidden(h))
        six = self.proj(h)
        return six.view(six.shape[0], *[1] * (dimensions - 2), six.shape[1]).chunk(6, dim=-1)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(x + shift, x, scale)
