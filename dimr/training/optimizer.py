"""AdamW, which parameters decay, and the learning rate over a run."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

import dimr_kernels as dk

from ..model.layers import PatchEmbedding

FUSED_DEVICES = ("cpu", "cuda")


def parameter_groups(model: nn.Module, weight_decay: float, decaying: str = "matrices") -> list[dict]:
    """Two groups: the parameters that decay, and those that do not.

    Args:
        decaying: "matrices": matrices and kernels decay; biases, norms, gates, and class and position embeddings do
            not. "all but gates": everything but the gates of time-dependent norms, as the paper's models were trained.
    """
    kept = _gates(model) if decaying == "all but gates" else _all_but_matrices(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if id(p) not in kept], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in kept], "weight_decay": 0.0},
    ]


def _all_but_matrices(model: nn.Module) -> set[int]:
    kept = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    kept |= {id(m.position) for m in model.modules() if isinstance(m, PatchEmbedding)}
    return kept | {id(p) for p in model.parameters() if p.dim() <= 1}


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
    """AdamW over all parameters: in one kernel per group where the device has it, else an operator at a time."""
    fused = all(p.device.type in FUSED_DEVICES for p in model.parameters())
    groups = parameter_groups(model, weight_decay, decaying)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused, foreach=not fused)


def learning_rate_at(step: int, steps: int, peak: float, warmup: int, schedule: str = "cosine") -> float:
    """Linear warm-up over ``warmup`` steps, then ``peak`` for "constant", or half a cosine down to zero at ``steps``.

    ``step`` counts from 0.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    groups: Iterable[dict] = optimizer.param_groups
    for group in groups:
        group["lr"] = value
