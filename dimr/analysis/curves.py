"""Scale, shift and gate of every norm along sampling: a curve over the timesteps, with a dimension to each channel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

import dimr_kernels as dk

from ..ablations.norms import Modulation
from ..branches import Branch
from ..network import DiMR
from ..samplers.dpm_solver import sample_fast
from ..schedule import NoiseSchedule

MODULATIONS = ("norm1.scale", "norm1.shift", "gate1", "norm2.scale", "norm2.shift", "gate2")


@dataclasses.dataclass(frozen=True)
class Curve:
    """``values [T, D]`` float64 of one vector; ``kind`` is "scale", "shift" or "gate", ``layer`` the norm's place."""

    layer: str
    branch: int
    kind: str
    values: Tensor


def sampling_timesteps(steps: int, schedule: NoiseSchedule | None = None) -> list[float]:
    """The timesteps at which ``dimr.sample`` calls the model, first to last."""
    visited: list[float] = []

    def record(x: Tensor, timestep: float) -> Tensor:
        visited.append(timestep)
        return x

    sample_fast(record, torch.zeros(1), schedule or NoiseSchedule(), steps)
    return visited


@torch.no_grad()
def time_curves(model: DiMR, timesteps: Sequence[float]) -> list[Curve]:
    """Every time-dependent vector of the model at these timesteps, branch by branch, from the first layer on.

    Raises:
        ValueError: fewer than two timesteps, or a model whose norms do not depend on the time.
    """
    if len(timesteps) < 2:
        raise ValueError(f"timesteps must be at least two, got {len(timesteps)}")
    t = torch.tensor(timesteps, dtype=torch.float64, device=model.device) / 500 - 1
    curves = [curve for i, branch in enumerate(model.branches) for curve in _of_branch(branch, i, t)]  # type: ignore[arg-type]
    if not curves:
        raise ValueError(f"norm={model.config.norm!r}: this model's norms do not depend on the time")
    return curves


def _of_branch(branch: Branch, index: int, t: Tensor) -> Iterator[Curve]:
    condition = None if branch.time_mlp is None else branch.time_mlp(t)
    for name, module in branch.named_modules():
        layer = f"branches.{index}.{name}"
        if isinstance(module, Modulation) and condition is not None:
            vectors = module(condition, 2)
            for place, values in zip(MODULATIONS, vectors, strict=True):
                norm, _, kind = place.rpartition(".")
                where = layer.removesuffix("modulation") + (norm or f"norm{place[-1]}")
                yield Curve(where, index, kind if norm else "gate", values.double())
        elif isinstance(module, (dk.TDLayerNorm, dk.TDRMSNorm)):
            yield Curve(layer, index, "scale", _mixed(module, t, "p1", "p2", "scale"))
            if module.p3 is not None:
                yield Curve(layer, index, "shift", _mixed(module, t, "p3", "p4", "shift"))


def _mixed(norm: torch.nn.Module, t: Tensor, first: str, second: str, gate: str) -> Tensor:
    """The paper's eq. (5) in float64: ``t [T]`` -> ``[T, D]``."""
    names = (first, second, f"{gate}_gate_weight", f"{gate}_gate_offset")
    p, q, weight, offset = (getattr(norm, name).double() for name in names)
    return q + torch.sigmoid(t[:, None] * weight + offset) * (p - q)
