"""AdamW with its parameter groups, and the learning rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

import dimr_kernels as dk

from ..model.layers import PatchEmbedding

FUSED_DEVICES = ("cpu", "cuda")


def parameter_groups(model: nn.Module, weight_decay: float, decaying: str = "matrices") -> list[dict]:
    """Split the parameters into two groups, with and without weight decay.

    Args:
        decaying: "matrices": matrices and kernels decay; biases, norms, gates, and class and position embeddings do
            not. "all but gates": everything but the gates of time-dependent norms, as the paper's models were trained.
    """
    undecayed = _gates(model) if decaying == "all but gates" else _all_but_matrices(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if id(p) not in undecayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in undecayed], "weight_decay": 0.0},
    ]


def _all_but_matrices(model: nn.Module) -> set[int]:
    undecayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    undecayed |= {id(m.position) for m in model.modules() if isinstance(m, PatchEmbedding)}
    return undecayed | {id(p) for p in model.parameters() if p.dim() <= 1}


def _gates(model: nn.Module) -> set[int]:
    norms = (m for m in model.modules() if isinstance(m, (dk.TDLayerNorm, dk.TDRMSNorm)))
    return {id(p) for norm in norms for name, p in norm.named_parameters(recurse=False) if "_gate_" in name}


def build_optimizer(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    decaying: str = "matrices",
) -> torch.optim.AdamW:
    """Build AdamW over all parameters, fused where the device supports it."""
    fused = all(p.device.type in FUSED_DEVICES for p in model.parameters())
    groups = parameter_groups(model, weight_decay, decaying)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused, foreach=not fused)


def learning_rate_at(step: int, steps: int, peak: float, warmup: int, schedule: str = "cosine") -> float:
    """Compute the learning rate of step ``step``, counted from 0.

    It rises linearly for ``warmup`` steps, then stays at ``peak`` for "constant", or falls for "cosine" along half a
    cosine to zero at ``steps``.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value
