"""AdamW with its parameter groups, Muon for the matrices, and the learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import dimr_kernels as dk
from dimr_kernels.checks import is_plain_tensor

from ..model.layers import PatchEmbedding, PatchHead

FUSED_DEVICES = ("cpu", "cuda")


def parameter_groups(
    model: nn.Module, weight_decay: float, decaying: str = "matrices", optimizer: str = "adamw"
) -> list[dict]:
    """Split the parameters into two groups, with and without weight decay; for Muon, after a group of matrices.

    Args:
        decaying: "matrices": matrices and kernels decay; biases, norms, gates, and class and position embeddings do
            not. "all but gates": everything but the gates of time-dependent norms, as the paper's models were trained.
    """
    undecayed = _gates(model) if decaying == "all but gates" else _all_but_matrices(model)
    hidden = _hidden_matrices(model) if optimizer == "muon" else set()
    parameters = [p for p in model.parameters() if p.requires_grad]
    rest = [p for p in parameters if id(p) not in hidden]
    groups = [
        {"params": [p for p in rest if id(p) not in undecayed], "weight_decay": weight_decay},
        {"params": [p for p in rest if id(p) in undecayed], "weight_decay": 0.0},
    ]
    if optimizer == "muon":
        groups.insert(0, {"params": [p for p in parameters if id(p) in hidden], "weight_decay": weight_decay})
    return groups


def _hidden_matrices(model: nn.Module) -> set[int]:
    """Find the weights of linear layers, but for those that embed patches or predict pixels."""
    outer = {id(m.proj) for m in model.modules() if isinstance(m, (PatchEmbedding, PatchHead))}
    return {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in outer}


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
    optimizer: str = "adamw",
) -> torch.optim.Optimizer:
    """Build AdamW over all parameters, fused where the device supports it, or Muon for the matrices and AdamW besides.

    Raises:
        ValueError: Muon for sharded parameters, whose updates need whole matrices.
    """
    fused = all(p.device.type in FUSED_DEVICES for p in model.parameters())
    groups = parameter_groups(model, weight_decay, decaying, optimizer)
    options: dict[str, Any] = {"lr": learning_rate, "betas": betas, "fused": fused, "foreach": not fused}
    if optimizer == "adamw":
        return torch.optim.AdamW(groups, **options)
    if not all(is_plain_tensor(p) for p in model.parameters()):
        raise ValueError("optimizer 'muon' needs whole matrices on each process: train with run.strategy = 'ddp'")
    # With this rule for the learning rate, an update is as large as AdamW's, and its learning rates serve.
    muon = torch.optim.Muon(groups[:1], lr=learning_rate, adjust_lr_fn="match_rms_adamw")
    return MuonAndAdamW(muon, torch.optim.AdamW(groups[1:], **options))


class MuonAndAdamW(torch.optim.Optimizer):
    """Two optimizers of different parameters as one, with the groups and the state of both."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self._parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the parts work on this optimizer's groups and state."""
        start = 0
        for part in self._parts:
            end = start + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[start:end], self.state
            start = end

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise TypeError("MuonAndAdamW.step takes no closure")
        for part in self._parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()


def without_foreign_moments(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], parameters: Sequence[Tensor]
) -> dict[str, Any]:
    """Drop from a saved state what AdamW kept of parameters that are Muon's now, and the other way round.

    Args:
        parameters: the parameters in the state's order.
    """
    by_muon = {id(p) for group in optimizer.param_groups if "ns_steps" in group for p in group["params"]}
    kept = {
        i: kinds
        for i, kinds in state["state"].items()
        if ("momentum_buffer" in kinds) == (id(parameters[i]) in by_muon)
    }
    return {**state, "state": kept}


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
