"""Principal components of curves: how many directions a scale or shift moves in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .curves import Curve

COMPONENTS = 4


@dataclasses.dataclass(frozen=True)
class Explained:
    """One curve's components.

    Attributes:
        variance: summed over channels, of the timesteps' values about their mean.
        ratios: the first components' shares of it, largest first; None where the curve does not move.
    """

    curve: Curve
    variance: float
    ratios: tuple[float, ...] | None


def explained_variance(values: Tensor, components: int = COMPONENTS) -> tuple[float, tuple[float, ...] | None]:
    """Variance of the rows of ``values [T, D]`` about their mean, and the shares of its principal components.

    The shares are ``components`` many (zeros beyond the rank), and None where all rows are equal to rounding.
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
    return [Explained(curve, *explained_variance(curve.values, components)) for curve in curves]


def as_json(found: Sequence[Explained]) -> dict[str, Any]:
    """Plain values: every layer, and for each kind the mean share of the first component, the first two, and so on."""
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
    """Of the curves, in the order in which they come first."""
    return list(dict.fromkeys(e.curve.kind for e in found))


def _summary(found: Sequence[Explained], kind: str) -> dict[str, Any]:
    curves = [e for e in found if e.curve.kind == kind]
    moving = [e.ratios for e in curves if e.ratios is not None]
    means = torch.tensor(moving, dtype=torch.float64).cumsum(dim=1).mean(dim=0).tolist() if moving else None
    return {"layers": len(curves), "constant": len(curves) - len(moving), "mean_cumulative": means}
