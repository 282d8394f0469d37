"""Models that run in milliseconds, without weights at special values."""

from __future__ import annotations

import torch
from torch import Tensor

import dimr

TINY = dimr.DiMRConfig(
    in_channels=3, input_size=8, dims=(16, 12, 8), layers=(3, 2, 2), num_heads=2, num_classes=5, kernel_size=3
)


def perturbed_model(config: dimr.DiMRConfig = TINY, seed: int = 0) -> dimr.DiMR:
    """Make a model with noise on every parameter, so that no output, gate or gradient is zero by construction."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = dimr.DiMR(config)
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def inputs(config: dimr.DiMRConfig = TINY, batch: int = 2, seed: int = 1) -> dict[str, Tensor]:
    """Make ``x [B, C, S, S]``, ``timestep [B]`` and ``class_labels [B]``."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, config.in_channels, config.input_size, config.input_size)
    return {
        "x": torch.randn(shape, generator=generator),
        "timestep": 1000 * (1 - torch.rand(batch, generator=generator)),
        "class_labels": torch.randint(0, config.num_embeddings, (batch,), generator=generator),
    }
