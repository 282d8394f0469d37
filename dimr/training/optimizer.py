"""AdamW, which parameters decay, and the learning rate over a run."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from ..branches import PatchEmbedding

FUSED_DEVICES = ("cpu", "cuda")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices and kernels decay; biases, norms, gates, and class and position embeddings do not."""
    kept = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    kept |= {id(m.position) for m in model.modules() if isinstance(m, PatchEmbedding)}

    def decays(parameter: nn.Parameter) -> bool:
        return parameter.dim() > 1 and id(parameter) not in kept

    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if decays(p)], "weight_decay": weight_decay},
        {"params": [p for p in parameters if not decays(p)], "weight_decay": 0.0},
    ]


def build_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW over all parameters: in one kernel per group where the device has it, else an operator at a time."""
    fused = all(p.device.type in FUSED_DEVICES for p in model.parameters())
    groups = parameter_groups(model, weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused, foreach=not fused)


def learning_rate_at(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up over ``warmup`` steps, then half a cosine down to zero at ``steps``. ``step`` counts from 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    groups: Iterable[dict] = optimizer.param_groups
    for group in groups:
        group["lr"] = value
