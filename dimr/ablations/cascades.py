"""Ways into and out of a branch that only ablations have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dimr_kernels as dk

from ..config import DiMRConfig
from .norms import LayerNorm


class PlainUpsample(nn.Module):
    """:class:`dimr_kernels.PixelShuffleUpsample` with layer norms: ``y + LN(shuffle(Linear(LN(x))))``."""

    def __init__(self, dim_in: int, dim_out: int, upscale_factor: int = 2) -> None:
        super().__init__()
        self.upscale_factor = upscale_factor
        self.norm_in = LayerNorm(dim_in)
        self.proj = nn.Linear(dim_in, upscale_factor * upscale_factor * dim_out)
        self.norm_out = LayerNorm(dim_out)

    def forward(self, x: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
        """``x [B, H, W, dim_in]``, ``y [B, r*H, r*W, dim_out]`` -> ``[B, r*H, r*W, dim_out]``."""
        B, H, W, _ = x.shape
        r = self.upscale_factor
        h = self.proj(self.norm_in(x)).view(B, H, W, r, r, -1).transpose(2, 3).reshape(B, r * H, r * W, -1)
        return y + self.norm_out(h)


class ConcatUpsample(nn.Module):
    """The cascade by concatenation: ``Linear(cat(y, upsampled x))`` in place of ``y + upsampled x``."""

    def __init__(self, upsample: nn.Module, dim: int) -> None:
        super().__init__()
        self.upsample = upsample
        self.fuse = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return self.fuse(torch.cat((y, self.upsample(x, torch.zeros_like(y), t)), dim=-1))


def make_upsample(config: DiMRConfig, dim_in: int, dim_out: int) -> nn.Module:
    """From one branch into the next (paper, eq. (2)), called with ``x, y, t``."""
    kind = dk.PixelShuffleUpsample if config.has_td_norms else PlainUpsample
    upsample = kind(dim_in, dim_out, upscale_factor=2)
    return ConcatUpsample(upsample, dim_out) if config.cascade == "concat" else upsample


class PatchHead(nn.Module):
    """Norm, pixels of each patch, 3x3 convolution (U-ViT): ``[B, h, w, D]`` -> ``[B, C, h * p, w * p]``."""

    def __init__(self, norm: nn.Module, dim: int, out_channels: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.norm = norm
        self.proj = nn.Linear(dim, out_channels * patch_size * patch_size)
        self.conv = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        pixels = self.proj(self.norm(x, t)).permute(0, 3, 1, 2)
        return self.conv(F.pixel_shuffle(pixels, self.patch_size))
