"""The branches of the multi-resolution network: embedding, blocks with long skips, prediction (paper, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import dimr_kernels as dk

from .blocks import ConvNeXtBlock, TransformerBlock
from .config import DiMRConfig
from .recomputation import checkpointed


class PatchEmbedding(nn.Module):
    """Patches of the input, projected, plus a learned position. ``[B, C, S, S]`` -> ``[B, S/p, S/p, D]``."""

    def __init__(self, in_channels: int, dim: int, patch_size: int, resolution: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(in_channels * patch_size * patch_size, dim)
        self.position = nn.Parameter(torch.empty(resolution, resolution, dim))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        p = self.patch_size
        patches = x.reshape(B, C, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5)  # [B, H/p, W/p, C, p, p]
        h = self.proj(patches.flatten(3))
        return h + self.position.to(h.dtype)  # under autocast everything after this has its dtype


class NoiseHead(nn.Module):
    """TD layer norm and a 3x3 convolution: ``[B, H, W, D]`` -> ``[B, C, H, W]``."""

    def __init__(self, dim: int, out_channels: int) -> None:
        super().__init__()
        self.norm = dk.TDLayerNorm(dim)
        self.conv = nn.Conv2d(dim, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.conv(self.norm(x, t).permute(0, 3, 1, 2)).contiguous()


class Branch(nn.Module):
    """What both kinds of branch share."""

    def __init__(self, config: DiMRConfig, index: int, block: type[nn.Module]) -> None:
        super().__init__()
        D, count = config.dims[index], config.blocks[index]
        self.embed = PatchEmbedding(config.in_channels, D, config.patch_sizes[index], config.resolutions[index])
        self.blocks = nn.ModuleList(block(config, index) for _ in range(count))
        self.skips = nn.ModuleList(nn.Linear(2 * D, D) for _ in range(count // 2))
        self.head = NoiseHead(D, config.in_channels)
        self.feeds_another = index + 1 < config.num_branches
        self.checkpointing = "none"  # see DiMR.set_checkpointing

    def through_blocks(self, h: Tensor, t: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``h [B, ..., D]`` -> the last block's output, and for a branch above ``h`` and the output of every block.

        The outputs of the first half come back in reverse order as long skips into the second.
        """
        features: list[Tensor] = [h]
        skips: list[Tensor] = []
        half = len(self.skips)
        for i in range(len(self.blocks)):
            h = checkpointed(self.checkpointing, self._block, i, h, skips.pop() if i > half else None, t)
            if i < half:
                skips.append(h)
            if self.feeds_another:
                features.append(h)
        return h, features

    def _block(self, i: int, h: Tensor, skip: Tensor | None, t: Tensor) -> Tensor:
        if skip is not None:
            h = self.skips[i - len(self.skips) - 1](torch.cat((h, skip), dim=-1))
        return self.blocks[i](h, t)


class TransformerBranch(Branch):
    """The lowest resolution: tokens, the class first among them."""

    def __init__(self, config: DiMRConfig, index: int) -> None:
        super().__init__(config, index, TransformerBlock)
        self.class_embedding = nn.Embedding(config.num_embeddings, config.dims[index])
        self.resolution = config.resolutions[index]

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``x [B, C, S, S]``, ``t [B] or [1]``, ``class_labels [B]`` -> prediction and features ``[B, h, w, D]``."""
        patches = self.embed(x).flatten(1, 2)
        tokens = torch.cat((self.class_embedding(class_labels)[:, None].to(patches.dtype), patches), dim=1)
        h, features = self.through_blocks(tokens, t)
        return self.head(self._without_class(h), t), [self._without_class(f) for f in features]

    def _without_class(self, tokens: Tensor) -> Tensor:
        """``[B, 1 + h*w, D]`` -> ``[B, h, w, D]``, a view."""
        return tokens[:, 1:].unflatten(1, (self.resolution, self.resolution))


class ConvNeXtBranch(Branch):
    """A higher resolution: the input's patches plus the features of the branch below, upsampled."""

    def __init__(self, config: DiMRConfig, index: int) -> None:
        super().__init__(config, index, ConvNeXtBlock)
        lower = config.dims[index - 1] * (config.blocks[index - 1] + 1)
        self.upsample = dk.PixelShuffleUpsample(lower, config.dims[index], upscale_factor=2)

    def forward(self, x: Tensor, t: Tensor, lower: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """``x [B, C, S, S]``, ``t [B] or [1]``, ``lower [B, h/2, w/2, D'] each`` -> prediction and features."""
        h = checkpointed(self.checkpointing, self._upsampled, self.embed(x), t, *lower)
        h, features = self.through_blocks(h, t)
        return self.head(h, t), features

    def _upsampled(self, patches: Tensor, t: Tensor, *lower: Tensor) -> Tensor:
        return self.upsample(torch.cat(lower, dim=-1), patches, t)
