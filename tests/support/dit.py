"""A small DiT in plain PyTorch, in the form of the published code (Peebles and Xie 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, CHANNELS, CLASSES = 16, 6, 5


class Attention(nn.Module):
    def __init__(self, D: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class DiTBlock(nn.Module):
    def __init__(self, D: int, affine: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(D, elementwise_affine=affine, eps=1e-6)
        self.attn = Attention(D)
        self.norm2 = nn.LayerNorm(D, elementwise_affine=affine, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * D, D))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(D, 6 * D))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, alpha1, shift2, scale2, alpha2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + alpha1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + alpha2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class TimestepEmbedder(nn.Module):
    def __init__(self, D: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(8, D), nn.SiLU(), nn.Linear(D, D))

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None].to(self.mlp[0].weight.dtype) * torch.tensor([1.0, 0.1, 0.01, 0.001], device=t.device)
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    def __init__(self, classes: int, D: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, D)

    def forward(self, labels: Tensor, train: bool) -> Tensor:
        if train:
            labels = labels.where(torch.rand(labels.shape) > 0.1, self.embedding_table.num_embeddings - 1)
        return self.embedding_table(labels)


class FinalLayer(nn.Module):
    def __init__(self, D: int, channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(D, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(D, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(D, 2 * D))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """``x [B, L, CHANNELS]``, ``t [B]`` in [0, 1000), ``y [B]`` up to ``CLASSES``, the absent one."""

    def __init__(self, depth: int = 2, D: int = WIDTH, affine: bool = False) -> None:
        super().__init__()
        self.x_embedder = nn.Linear(CHANNELS, D)
        self.t_embedder = TimestepEmbedder(D)
        self.y_embedder = LabelEmbedder(CLASSES, D)
        self.blocks = nn.ModuleList(DiTBlock(D, affine) for _ in range(depth))
        self.final_layer = FinalLayer(D, CHANNELS)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = self.x_embedder(x)
        c = self.t_embedder(t) + self.y_embedder(y, self.training)
        for block in self.blocks:
            x = block(x, c)
        return self.final_layer(x, c)

    def forward_with_cfg(self, x: Tensor, t: Tensor, y: Tensor, guidance: float) -> Tensor:
        """Return the guided output; calls ``forward`` and not the module, as the published code does."""
        with_class = self.forward(x, t, y)
        without = self.forward(x, t, torch.full_like(y, CLASSES))
        return without + guidance * (with_class - without)


def random_dit(depth: int = 2, affine: bool = False) -> DiT:
    """Make a DiT in evaluation mode whose parameters, zero-initialised ones too, are random."""
    model = DiT(depth, affine=affine)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.5 if "adaLN" in name or "embedder" in name else 0.2)
    return model.eval()


def arguments(batch: int = 3, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(batch, 4, CHANNELS, device=device)
    t = torch.linspace(37, 911, batch, device=device).round().long()
    return x, t, torch.arange(batch, device=device) % (CLASSES + 1)
