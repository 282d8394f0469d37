"""Parts of blocks that only ablations have."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

import dimr_kernels as dk

from ..config import DiMRConfig
from .norms import LayerNorm, Modulation, modulate


class MLP(nn.Module):
    """Two layers with GELU between: ``[..., dim]`` -> ``[..., dim]`` through ``hidden_dim``."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.proj(x)))


def make_mlp(config: DiMRConfig, branch: int) -> nn.Module:
    kind = {"geglu": dk.GEGLUMLP, "gelu": MLP}[config.mlp]
    return kind(config.dims[branch], config.hidden_dims[branch])


class AdaLNZeroBlock(nn.Module):
    """Two residuals, each normed, modulated and gated by the time: ``x [B, ..., D]``, ``c [B or 1, D]``."""

    def __init__(self, config: DiMRConfig, branch: int) -> None:
        super().__init__()
        D = config.dims[branch]
        self.modulation = Modulation(D, hidden=config.modulation == "mlp")
        self.norm1, self.norm2 = LayerNorm(D), LayerNorm(D)
        self.mlp = make_mlp(config, branch)

    def mix(self, h: Tensor) -> Tensor:
        """Between positions."""
        raise NotImplementedError

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(c, x.dim())
        x = x + gate1 * self.mix(modulate(self.norm1(x), scale1, shift1))
        return x + gate2 * self.mlp(modulate(self.norm2(x), scale2, shift2))


class AdaLNZeroTransformerBlock(AdaLNZeroBlock):
    def __init__(self, config: DiMRConfig, branch: int) -> None:
        super().__init__(config, branch)
        self.attn = dk.SelfAttention(config.dims[branch], config.num_heads)

    def mix(self, h: Tensor) -> Tensor:
        return self.attn(h)


class AdaLNZeroConvNeXtBlock(AdaLNZeroBlock):
    """Unlike the paper's own block this one has a norm before its convolution, which makes six vectors a block."""

    def __init__(self, config: DiMRConfig, branch: int) -> None:
        super().__init__(config, branch)
        self.conv = dk.DepthwiseConv2d(config.dims[branch], config.kernel_size)

    def mix(self, h: Tensor) -> Tensor:
        return self.conv(h)
