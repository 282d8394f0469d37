"""Curves of every norm's scale, shift and gate over the timesteps of sampling, and their principal components.

A curve has one dimension per channel. Its principal components show in how many directions it moves.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import dimr_kernels as dk

from ..diffusion.samplers import sample_fast
from ..diffusion.schedule import NoiseSchedule
from ..model.layers import Branch, Modulation
from ..model.network import DiMR
from ..utils import replacing, require

MODULATIONS = ("norm1.scale", "norm1.shift", "gate1", "norm2.scale", "norm2.shift", "gate2")


COMPONENTS = 4


@dataclasses.dataclass(frozen=True)
class Curve:
    """One time-dependent vector of a norm at a sequence of timesteps."""

    layer: str  # the norm's name in the model
    branch: int
    kind: str  # "scale", "shift" or "gate"
    values: Tensor  # [T, D] float64


def sampling_timesteps(steps: int, schedule: NoiseSchedule | None = None) -> list[float]:
    """List the timesteps at which ``dimr.sample`` calls the model, in order."""
    visited: list[float] = []

    def record(x: Tensor, timestep: float) -> Tensor:
        visited.append(timestep)
        return x

    sample_fast(record, torch.zeros(1), schedule or NoiseSchedule(), steps)
    return visited


@torch.no_grad()
def time_curves(model: DiMR, timesteps: Sequence[float]) -> list[Curve]:
    """Evaluate every time-dependent vector of the model at these timesteps, by branch and layer.

    Raises:
        ValueError: there are fewer than two timesteps, or the model's norms do not depend on the time.
    """
    if len(timesteps) < 2:
        raise ValueError(f"timesteps must be at least two, got {len(timesteps)}")
    t = torch.tensor(timesteps, dtype=torch.float64, device=model.device) / 500 - 1
    curves = [curve for i, branch in enumerate(model.branches) for curve in _branch_curves(branch, i, t)]  # type: ignore[arg-type]
    if not curves:
        raise ValueError(f"norm={model.config.norm!r}: this model's norms do not depend on the time")
    return curves


def _branch_curves(branch: Branch, index: int, t: Tensor) -> Iterator[Curve]:
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
            yield Curve(layer, index, "scale", _interpolate(module, t, "p1", "p2", "scale"))
            if module.p3 is not None:
                yield Curve(layer, index, "shift", _interpolate(module, t, "p3", "p4", "shift"))


def _interpolate(norm: torch.nn.Module, t: Tensor, first: str, second: str, gate: str) -> Tensor:
    """Compute the paper's eq. (5) in float64: ``t [T]`` -> ``[T, D]``."""
    names = (first, second, f"{gate}_gate_weight", f"{gate}_gate_offset")
    p, q, weight, offset = (getattr(norm, name).double() for name in names)
    return q + torch.sigmoid(t[:, None] * weight + offset) * (p - q)


# Principal components.


@dataclasses.dataclass(frozen=True)
class Explained:
    """One curve's principal components.

    Attributes:
        variance: variance over the timesteps, summed over the channels.
        ratios: share of the variance that each of the first components explains; None if the curve is constant.
    """

    curve: Curve
    variance: float
    ratios: tuple[float, ...] | None


def explained_variance(values: Tensor, components: int = COMPONENTS) -> tuple[float, tuple[float, ...] | None]:
    """Compute the variance of the rows of ``values [T, D]``, and the shares that its principal components explain.

    There are ``components`` shares, zeros beyond the rank; None if all rows are equal up to rounding.
    """
    if values.dim() != 2 or len(values) < 2 or components < 1:
        raise ValueError(f"wanted values [T, D] with T of at least 2, and a component; got {list(values.shape)}")
    values = values.detach().double().cpu()
    squares = torch.linalg.svdvals(values - values.mean(dim=0)).square()
    total = squares.sum()
    rounding = torch.finfo(torch.float64).eps * values.abs().max() * len(values)
    if total <= values.numel() * rounding**2:
        return 0.0, None
    shares = (squares / total).tolist()[:components]
    return (total / len(values)).item(), tuple(shares) + (0.0,) * (components - len(shares))


def explain(curves: Sequence[Curve], components: int = COMPONENTS) -> list[Explained]:
    """Apply :func:`explained_variance` to every curve."""
    return [Explained(curve, *explained_variance(curve.values, components)) for curve in curves]


def as_json(found: Sequence[Explained]) -> dict[str, Any]:
    """Convert to plain values: every layer, and per kind the mean cumulative shares of the first components."""
    layers = [
        {
            "layer": e.curve.layer,
            "branch": e.curve.branch,
            "kind": e.curve.kind,
            "channels": e.curve.values.shape[1],
            "variance": e.variance,
            "explained": None if e.ratios is None else list(e.ratios),
        }
        for e in found
    ]
    return {"summary": {kind: _summary(found, kind) for kind in kinds(found)}, "layers": layers}


def kinds(found: Sequence[Explained]) -> list[str]:
    """List the kinds of the curves, in order of first appearance."""
    return list(dict.fromkeys(e.curve.kind for e in found))


def _summary(found: Sequence[Explained], kind: str) -> dict[str, Any]:
    curves = [e for e in found if e.curve.kind == kind]
    moving = [e.ratios for e in curves if e.ratios is not None]
    means = torch.tensor(moving, dtype=torch.float64).cumsum(dim=1).mean(dim=0).tolist() if moving else None
    return {"layers": len(curves), "constant": len(curves) - len(moving), "mean_cumulative": means}


def save_explained_variance(path: str | os.PathLike[str], found: Sequence[Explained], title: str) -> None:
    """Plot one panel per kind with one stacked bar per layer: the shares of its first principal components.

    Constant layers have no bar. Vertical lines separate the branches.
    """
    figure_module = require("matplotlib.figure", "demo", "the plot of explained variance")
    rows = kinds(found)
    figure = figure_module.Figure(figsize=(10, 1 + 2.2 * len(rows)), layout="constrained")
    for axes, kind in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
        curves = [e for e in found if e.curve.kind == kind]
        ratios = [e.ratios or () for e in curves]
        bottoms = [0.0] * len(curves)
        for i in range(max(map(len, ratios))):
            heights = [r[i] if r else 0.0 for r in ratios]
            axes.bar(range(len(curves)), heights, width=0.9, bottom=bottoms, label=f"component {i + 1}")
            bottoms = [b + h for b, h in zip(bottoms, heights, strict=True)]
        for i in range(1, len(curves)):
            if curves[i].curve.branch != curves[i - 1].curve.branch:
                axes.axvline(i - 0.5, color="black", linewidth=0.8)
        axes.set(ylim=(0, 1), xlim=(-0.5, len(curves) - 0.5), ylabel=f"{kind}: variance explained")
    axes.set_xlabel("layer, lowest resolution first")
    if any(e.ratios for e in found):
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=8)
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
