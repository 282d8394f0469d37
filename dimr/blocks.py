"""The two kinds of block. Both keep channels last and take the time only through their norms."""

from __future__ import annotations

from torch import Tensor, nn

import dimr_kernels as dk

from .ablations.blocks import AdaLNZeroConvNeXtBlock, AdaLNZeroTransformerBlock, make_mlp
from .ablations.norms import LayerNorm
from .config import DiMRConfig


def make_norm(kind: str, dim: int) -> nn.Module:
    """The blocks' norm over the last dimension, time-dependent (paper, eq. (4) and (5)) but for ablations."""
    return {"td_layer": dk.TDLayerNorm, "td_rms": dk.TDRMSNorm, "layer": LayerNorm}[kind](dim)


class TransformerBlock(nn.Module):
    """Attention and MLP, each after a norm, each with a residual. ``[B, L, D]`` -> ``[B, L, D]``."""

    def __init__(self, config: DiMRConfig, branch: int) -> None:
        super().__init__()
        D = config.dims[branch]
        self.norm1 = make_norm(config.norm, D)
        self.attn = dk.SelfAttention(D, config.num_heads)
        self.norm2 = make_norm(config.norm, D)
        self.mlp = make_mlp(config, branch)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h, x = self.norm2(self.attn(self.norm1(x, t)), t, residual=x)
        return x + self.mlp(h)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, then norm and MLP, each with a residual. ``[B, H, W, D]`` -> ``[B, H, W, D]``."""

    def __init__(self, config: DiMRConfig, branch: int) -> None:
        super().__init__()
        D = config.dims[branch]
        self.conv = dk.DepthwiseConv2d(D, config.kernel_size)
        self.norm = make_norm(config.norm, D)
        self.mlp = make_mlp(config, branch)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.conv(x, residual=x)
        return x + self.mlp(self.norm(x, t))


def make_block(config: DiMRConfig, branch: int) -> nn.Module:
    """A block of this branch."""
    attends = branch == 0 and config.first_branch == "transformer"
    if config.norm == "adaln_zero":
        return (AdaLNZeroTransformerBlock if attends else AdaLNZeroConvNeXtBlock)(config, branch)
    return (TransformerBlock if attends else ConvNeXtBlock)(config, branch)
