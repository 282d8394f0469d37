"""The two kinds of block: seven and four launches, every one writing where its result is needed.

``x`` is the block's input and ``out`` its slot, both ``[B, N, D]`` with any distance between rows. The residual stream
moves 9 numbers per element through a transformer block (norm 2, projection 1, norm with sum 4, product onto it 2) and 6
through a ConvNeXt block (convolution 2, norm 2, product 2); what is inside attention and MLP comes on top.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

import dimr_kernels as dk

from .features import as_rows
from .packing import PackedMLP, PackedNorm, Packer


class PackedTransformerBlock:
    """Norm, qkv, attention, projection, norm (which adds the residual into ``out``), GeGLU, product onto ``out``."""

    def __init__(self, block: Any, pack: Packer, resolution: int) -> None:
        attn = block.attn
        self.num_heads = attn.num_heads
        self.scale = attn.head_dim**-0.5
        self.norm1, self.norm2 = PackedNorm(block.norm1, pack), PackedNorm(block.norm2, pack)
        qkv, out = attn.qkv.weight, attn.out.weight
        if pack.dtype != torch.float32 and not attn.is_packed:  # flash kernels, which float32 has not, want it
            qkv, out = dk.pad_head_dim(qkv, out, self.num_heads)
        self.mlp = PackedMLP(block.mlp, pack)
        self.qkv, self.out = pack.weight(qkv), pack.weight(out)
        self.bias = pack.weight(attn.out.bias.detach().float() + self.mlp.bias)

    def __call__(self, x: Tensor, t: Tensor, out: Tensor) -> None:
        B, N, D = x.shape
        qkv = linear(as_rows(self.norm1(x, t)), self.qkv).view(B, N, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # views [B, heads, N, head_dim]
        h = dk.functional.attention(q, k, v, scale=self.scale).transpose(1, 2)  # as dense as q, so rows are a view
        h = linear(h.reshape(B * N, -1), self.out, self.bias).view(B, N, D)
        h = self.norm2(h, t, residual=x, total=out, offset=self.mlp.offset)
        self.mlp(as_rows(h), as_rows(out))


class PackedConvNeXtBlock:
    """Convolution (with its residual, into ``out``), norm, GeGLU, product onto ``out``."""

    def __init__(self, block: Any, pack: Packer, resolution: int) -> None:
        self.resolution = resolution
        self.norm = PackedNorm(block.norm, pack)
        self.mlp = PackedMLP(block.mlp, pack)
        C, _, K, _ = block.conv.weight.shape
        taps = pack.weight(block.conv.weight.reshape(C, K * K).t())  # [K * K, C], the order in memory
        self.weight = taps.t().unflatten(1, (1, K, K))
        self.bias = pack.weight(block.conv.bias.detach().float() + self.mlp.bias)

    def __call__(self, x: Tensor, t: Tensor, out: Tensor) -> None:
        image = (self.resolution, self.resolution)
        dk.inference.depthwise_conv2d(x.unflatten(1, image), self.weight, self.bias, out.unflatten(1, image))
        self.mlp(as_rows(self.norm(out, t, offset=self.mlp.offset)), as_rows(out))
