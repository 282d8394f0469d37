"""The branches: embedding, blocks with long skips, prediction, and the cascade between them, all without a copy."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import dimr_kernels as dk

from ..branches import NoiseHead, PatchEmbedding
from .blocks import PackedConvNeXtBlock, PackedTransformerBlock
from .features import FeatureBuffer, as_rows, column_order
from .packing import PackedLinear, PackedNorm, Packer


class PackedEmbedding:
    """Patches, projected, plus position and bias, straight into a slot.

    Patches are taken as columns, ``[C * p * p, tokens]``: that is how an image with p = 1 lies in memory, and for
    p > 1 one small copy makes it so (the input's size, a hundredth of the stream's). Position and bias are written
    first and the product adds to them: 3 numbers per element, as many as a product and an addition after it.
    """

    def __init__(self, embed: PatchEmbedding, pack: Packer) -> None:
        self.patch_size = embed.patch_size
        self.weight = pack.weight(embed.proj.weight.t())  # [C * p * p, D]
        position = embed.position.detach().float() + embed.proj.bias.detach().float()
        self.position = pack.weight(position.flatten(0, 1))  # [tokens, D]

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """``x [B, C, S, S]``, ``out [B, tokens, D]``."""
        columns = x if self.patch_size == 1 else F.pixel_unshuffle(x, self.patch_size)
        patches = columns.flatten(2).transpose(1, 2)  # [B, tokens, C * p * p]
        weight = self.weight.expand(x.shape[0], -1, -1)
        torch.baddbmm(self.position, patches, weight, out=out)


class PackedHead:
    """TD layer norm and 3x3 convolution, both channels last, as the result is."""

    def __init__(self, head: NoiseHead, pack: Packer) -> None:
        self.norm = PackedNorm(head.norm, pack)
        self.weight = pack.weight(head.conv.weight).contiguous(memory_format=torch.channels_last)
        self.bias = None if head.conv.bias is None else pack.weight(head.conv.bias)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """``x [B, h, w, D]`` -> ``[B, C, h, w]``."""
        return F.conv2d(self.norm(x, t).permute(0, 3, 1, 2), self.weight, self.bias, padding=1)


class PackedLift:
    """The cascade's way from one branch into the next: TD layer norm over all features, and a product.

    The parameters are in the order of the buffer's slots. The norm reads the slots where they are and writes the one
    copy that the product reads.
    """

    def __init__(self, upsample: dk.PixelShuffleUpsample, pack: Packer, half: int, dim: int) -> None:
        columns = column_order(half, dim).to(upsample.proj.weight.device)
        self.norm = PackedNorm(upsample.norm_in, pack, columns)
        self.proj = PackedLinear(upsample.proj, pack, columns)

    def __call__(self, features: Tensor, t: Tensor) -> Tensor:
        """``[B, h, w, slots * D]`` -> ``[B, h, w, 4 * D of the next branch]``."""
        B, h, w, _ = features.shape
        return self.proj(as_rows(self.norm(features, t).flatten(1, 2))).view(B, h, w, -1)


class PackedBranch:
    """What both kinds of branch share. ``above``: the branch that this one feeds."""

    leading = 0
    """Tokens before those of the image."""
    block: Any

    def __init__(self, branch: Any, pack: Packer, resolution: int, above: Any) -> None:
        self.resolution = resolution
        self.dim = branch.embed.proj.out_features
        self.half = len(branch.skips)
        self.embed = PackedEmbedding(branch.embed, pack)
        self.blocks = [self.block(block, pack, resolution) for block in branch.blocks]
        self.skips = [PackedLinear(skip, pack) for skip in branch.skips]
        self.head = PackedHead(branch.head, pack)
        self.lift = None if above is None else PackedLift(above.upsample, pack, self.half, self.dim)

    @property
    def tokens(self) -> int:
        return self.leading + self.resolution**2

    def __call__(self, x: Tensor, t: Tensor, source: Tensor) -> tuple[Tensor, Tensor | None]:
        """``x [B, C, S, S]``, class labels or what the branch below gave -> prediction, what the branch above wants."""
        buffer = FeatureBuffer(x.shape[0], self.tokens, self.dim, self.half, like=x)
        self.begin(x, t, source, buffer.tokens(0))
        for i, block in enumerate(self.blocks):
            h = buffer.tokens(i)
            if i > self.half:
                h = self.skips[i - self.half - 1](buffer.with_skip(i)).view(h.shape)
            block(h, t, buffer.tokens(i + 1))
        prediction = self.head(self.image(buffer.tokens(len(self.blocks))), t)
        return prediction, None if self.lift is None else self.lift(self.image(buffer.all), t)

    def begin(self, x: Tensor, t: Tensor, source: Tensor, out: Tensor) -> None:
        """Write the first feature, ``out [B, tokens, D]``."""
        raise NotImplementedError

    def image(self, x: Tensor) -> Tensor:
        """``[B, tokens, channels]`` -> ``[B, h, w, channels]``, a view."""
        return x[:, self.leading :].unflatten(1, (self.resolution, self.resolution))


class PackedTransformerBranch(PackedBranch):
    leading = 1  # the class
    block = PackedTransformerBlock

    def __init__(self, branch: Any, pack: Packer, resolution: int, above: Any) -> None:
        super().__init__(branch, pack, resolution, above)
        self.classes = pack.weight(branch.class_embedding.weight)

    def begin(self, x: Tensor, t: Tensor, source: Tensor, out: Tensor) -> None:
        torch.index_select(self.classes, 0, source, out=out[:, 0])
        self.embed(x, out[:, 1:])


class PackedConvNeXtBranch(PackedBranch):
    block = PackedConvNeXtBlock

    def __init__(self, branch: Any, pack: Packer, resolution: int, above: Any) -> None:
        super().__init__(branch, pack, resolution, above)
        self.factor = branch.upsample.upscale_factor
        self.norm = PackedNorm(branch.upsample.norm_out, pack)

    def begin(self, x: Tensor, t: Tensor, source: Tensor, out: Tensor) -> None:
        self.embed(x, out)
        norm = self.norm
        dk.inference.pixel_shuffle_td_norm_add_(self.image(out), source, t, self.factor, norm.gates, norm.eps)
