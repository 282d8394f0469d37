"""The branches of the multi-resolution network: embedding, blocks with long skips, prediction (paper, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import dimr_kernels as dk

from .ablations.cascades import PatchHead, make_upsample
from .ablations.norms import FREQUENCIES, LayerNorm, TimeMLP, TimeToken
from .blocks import make_block
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
    """Norm (TD layer norm but for ablations) and a 3x3 convolution: ``[B, H, W, D]`` -> ``[B, C, H, W]``."""

    def __init__(self, norm: nn.Module, dim: int, out_channels: int) -> None:
        super().__init__()
        self.norm = norm
        self.conv = nn.Conv2d(dim, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.conv(self.norm(x, t).permute(0, 3, 1, 2)).contiguous()


def make_head(config: DiMRConfig, index: int) -> nn.Module:
    D, C, p = config.dims[index], config.in_channels, config.patch_size
    norm = dk.TDLayerNorm(D) if config.has_td_norms else LayerNorm(D)
    return NoiseHead(norm, D, C) if p == 1 else PatchHead(norm, D, C, p)


class Branch(nn.Module):
    """What all kinds of branch share."""

    def __init__(self, config: DiMRConfig, index: int) -> None:
        super().__init__()
        D, count = config.dims[index], config.blocks[index]
        self.embed = PatchEmbedding(config.in_channels, D, config.patch_sizes[index], config.resolutions[index])
        self.blocks = nn.ModuleList(make_block(config, index) for _ in range(count))
        self.skips = nn.ModuleList(nn.Linear(2 * D, D) for _ in range(count // 2))
        self.head = make_head(config, index)
        self.time_mlp: TimeMLP | None = None
        if config.norm == "adaln_zero":
            self.time_mlp = TimeMLP(D, D if config.modulation == "mlp" else FREQUENCIES)
        self.feeds_another = index + 1 < config.num_branches
        self.hands_on_all = config.branch_skips
        self.checkpointing = "none"  # see DiMR.set_checkpointing

    def through_blocks(self, h: Tensor, t: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``h [B, ..., D]`` -> the last block's output, and for a branch above ``h`` and the output of every block.

        The outputs of the first half come back in reverse order as long skips into the second.
        """
        if self.time_mlp is not None:
            t = self.time_mlp(t)  # [B or 1, D], what these blocks take for the time
        features: list[Tensor] = [h]
        skips: list[Tensor] = []
        half = len(self.skips)
        for i in range(len(self.blocks)):
            h = checkpointed(self.checkpointing, self._block, i, h, skips.pop() if i > half else None, t)
            if i < half:
                skips.append(h)
            if self.feeds_another:
                features.append(h)
        return h, features if self.hands_on_all else [h]

    def _block(self, i: int, h: Tensor, skip: Tensor | None, t: Tensor) -> Tensor:
        if skip is not None:
            h = self.skips[i - len(self.skips) - 1](torch.cat((h, skip), dim=-1))
        return self.blocks[i](h, t)


class TransformerBranch(Branch):
    """The lowest resolution: tokens, the class first among them (before it the time, where that is a token)."""

    def __init__(self, config: DiMRConfig, index: int) -> None:
        super().__init__(config, index)
        self.class_embedding = nn.Embedding(config.num_embeddings, config.dims[index])
        self.time_token = TimeToken(config.dims[index]) if config.norm == "layer" else None
        self.resolution = config.resolutions[index]

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``x [B, C, S, S]``, ``t [B] or [1]``, ``class_labels [B]`` -> prediction and features ``[B, h, w, D]``."""
        patches = self.embed(x).flatten(1, 2)
        tokens = torch.cat((self.class_embedding(class_labels)[:, None].to(patches.dtype), patches), dim=1)
        if self.time_token is not None:
            time = self.time_token(t).to(tokens.dtype).expand(len(tokens), -1, -1)
            tokens = torch.cat((time, tokens), dim=1)
        h, features = self.through_blocks(tokens, t)
        return self.head(self._image(h), t), [self._image(f) for f in features]

    def _image(self, tokens: Tensor) -> Tensor:
        """``[B, class and so on + h*w, D]`` -> ``[B, h, w, D]``, a view."""
        return tokens[:, -(self.resolution**2) :].unflatten(1, (self.resolution, self.resolution))


class ConvNeXtFirstBranch(Branch):
    """The lowest resolution without attention (an ablation): the class is added at every position."""

    def __init__(self, config: DiMRConfig, index: int) -> None:
        super().__init__(config, index)
        self.class_embedding = nn.Embedding(config.num_embeddings, config.dims[index])

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        patches = self.embed(x)
        h, features = self.through_blocks(
            patches + self.class_embedding(class_labels)[:, None, None].to(patches.dtype), t
        )
        return self.head(h, t), features


def make_first_branch(config: DiMRConfig) -> Branch:
    return {"transformer": TransformerBranch, "convnext": ConvNeXtFirstBranch}[config.first_branch](config, 0)


class ConvNeXtBranch(Branch):
    """A higher resolution: the input's patches plus the features of the branch below, upsampled."""

    def __init__(self, config: DiMRConfig, index: int) -> None:
        super().__init__(config, index)
        features = config.blocks[index - 1] + 1 if config.branch_skips else 1
        self.upsample = make_upsample(config, features * config.dims[index - 1], config.dims[index])

    def forward(self, x: Tensor, t: Tensor, lower: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """``x [B, C, S, S]``, ``t [B] or [1]``, ``lower [B, h/2, w/2, D'] each`` -> prediction and features."""
        h = checkpointed(self.checkpointing, self._upsampled, self.embed(x), t, *lower)
        h, features = self.through_blocks(h, t)
        return self.head(h, t), features

    def _upsampled(self, patches: Tensor, t: Tensor, *lower: Tensor) -> Tensor:
        return self.upsample(torch.cat(lower, dim=-1), patches, t)
