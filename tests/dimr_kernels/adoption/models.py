"""Small networks of other projects, with random weights; each skips where its library is not installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn


@dataclass
class Case:
    model: nn.Module
    inputs: tuple[Any, ...]
    swapped: int
    """The number of layers that adopt swaps."""
    keywords: dict[str, Any] = field(default_factory=dict)
    """Arguments of adopt."""


def timm_convnext(name: str = "convnext_atto", drop_path: float = 0.0, **options: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    small = {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24), "kernel_sizes": (7, 3, 3, 5)}
    small |= {"num_classes": 5, "drop_path_rate": drop_path}
    if name == "convnext_atto":
        small["ls_init_value"] = 1.0  # timm's own 1e-6 would hide whatever a block computes
    model = timm.create_model(name, **small, **options)
    for module in model.modules():
        if type(module).__name__ == "GlobalResponseNorm":
            nn.init.normal_(module.weight)
    return model


def torchvision_convnext(stochastic_depth: float = 0.0) -> nn.Module:
    convnext = pytest.importorskip("torchvision.models.convnext")
    blocks = [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 1)]
    return convnext.ConvNeXt(blocks, stochastic_depth_prob=stochastic_depth, layer_scale=1.0, num_classes=5)


def glu_vit(drop: float = 0.0, **options: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    mlp = partial(timm.layers.GluMlp, **options)
    return timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5, mlp_layer=mlp, proj_drop_rate=drop
    )


def basic_transformer_block(dropout: float = 0.0) -> nn.Module:
    attention = pytest.importorskip("diffusers.models.attention")
    return attention.BasicTransformerBlock(16, 2, 8, dropout=dropout, activation_fn="geglu", cross_attention_dim=12)


def unet() -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    return diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=12, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
    )  # fmt: skip


def transformer_2d() -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    return diffusers.Transformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=8, num_layers=2, cross_attention_dim=12,
        norm_num_groups=4,
    )  # fmt: skip


def image(batch: int = 1, size: int = 32) -> Tensor:
    return torch.randn(batch, 3, size, size)


CASES: dict[str, Callable[[], Case]] = {
    "timm ConvNeXt": lambda: Case(timm_convnext(), (image(),), 4),
    "timm ConvNeXt, linear MLP": lambda: Case(timm_convnext(conv_mlp=False), (image(),), 4),
    "timm ConvNeXt V2": lambda: Case(timm_convnext("convnextv2_atto"), (image(),), 4),
    "torchvision ConvNeXt": lambda: Case(torchvision_convnext(), (image(size=16),), 2),
    "ViT, gate last": lambda: Case(glu_vit(), (image(size=16),), 2),
    "ViT, gate first, tanh": lambda: Case(
        glu_vit(gate_last=False, act_layer=partial(nn.GELU, approximate="tanh"), norm_layer=nn.LayerNorm),
        (image(size=16),),
        2,
    ),
    "BasicTransformerBlock": lambda: Case(
        basic_transformer_block(), (torch.randn(2, 5, 16), None, torch.randn(2, 3, 12)), 1
    ),
    "UNet2DConditionModel": lambda: Case(
        unet(), (torch.randn(2, 4, 8, 8), torch.tensor([1.0, 500.0]), torch.randn(2, 3, 12)), 4
    ),
    "Transformer2DModel": lambda: Case(transformer_2d(), (torch.randn(2, 8, 4, 4), torch.randn(2, 3, 12)), 2),
}
