"""Least-squares fit of TD-LN's form, ``q + sigmoid(w t + o) (p - q)`` (DiMR eq. (5)), to values over timesteps.

Given its gate the form is linear: ``p`` and ``q`` have a closed solution, and what remains is a search over two numbers
a gate, slope and centre. A grid finds the best basin, and Gauss-Newton steps on the projected residual (Golub and
Pereyra 1973 in Kaufman's simplification) with Levenberg's damping end in its bottom. Everything is float64, batched
over gates, and has no random start.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from .. import checks

# A gate that moves less than this over the timesteps is as good as a straight line, and needs ends p and q that far
# beyond the values they fit; they would not survive float32.
LEAST_SPREAD = 0.005

SLOPES, CENTRES = 24, 41  # of the grid
STEPS = 40
STEEPEST = 16.0  # slope times the distance of neighbouring timesteps: beyond, the gate is a step to all of them


@dataclasses.dataclass(frozen=True)
class Gated:
    """``q + sigmoid(weight t + offset) (p - q)``; all float64, ``p, q [D]``, ``weight, offset [D]`` or ``[1]``."""

    p: Tensor
    q: Tensor
    weight: Tensor
    offset: Tensor

    def __call__(self, t: Tensor) -> Tensor:
        """``t [T]`` -> ``[T, D]``."""
        return self.q + torch.sigmoid(t[:, None] * self.weight + self.offset) * (self.p - self.q)


def fit_gated(t: Tensor, values: Tensor, gate: str = "channel") -> Gated:
    """Fit the form to the columns of ``values`` by least squares.

    Args:
        t: ``[T]``, at least four different numbers.
        values: ``[T, D]``.
        gate: "channel" finds a gate for each column, "scalar" one for all.

    Returns:
        The fit. Where the values do not move, both ends are their mean and the gate is TD-LN's first one (1, 0).

    Raises:
        ValueError: shapes do not fit, a value is not finite, fewer than four timesteps.
    """
    t, values = t.detach().double(), values.detach().double()
    _check(t, values, gate)
    grouped = values.T[:, :, None] if gate == "channel" else values[None]  # [G, T, K]: K columns share a gate
    mean = grouped.mean(dim=1, keepdim=True)
    moving = grouped - mean
    rounding = torch.finfo(torch.float64).eps * grouped.abs().amax(dim=(1, 2)) * len(t)
    still = moving.abs().amax(dim=(1, 2)) <= rounding  # [G]
    weight, offset = (
        torch.where(still, first, found) for first, found in zip((1.0, 0.0), _gates(t, moving), strict=True)
    )
    return _ends(t, mean, torch.where(still[:, None, None], 0.0, moving), weight, offset)


def _check(t: Tensor, values: Tensor, gate: str) -> None:
    checks.check_choice("fit_gated", "gate", gate, ("channel", "scalar"))
    if t.dim() != 1 or values.dim() != 2 or len(values) != len(t) or values.shape[1] == 0:
        raise ValueError(f"fit_gated: wanted t [T] and values [T, D], got {list(t.shape)} and {list(values.shape)}")
    if not (t.isfinite().all() and values.isfinite().all()):
        raise ValueError("fit_gated: t and values must be finite")
    if len(t.unique()) < 4:  # as many as there are parameters to a column
        raise ValueError(f"fit_gated: wanted at least four different timesteps, got {len(t.unique())}")


def _ends(t: Tensor, mean: Tensor, moving: Tensor, weight: Tensor, offset: Tensor) -> Gated:
    """Solve for ``p`` and ``q`` of these gates ``[G]``, given ``mean + moving``, ``[G, T, K]``."""
    s = torch.sigmoid(weight[:, None] * t + offset[:, None])  # [G, T]
    z, middle = _centred(s)
    rise = _slopes(z, moving)  # [G, K], of p - q
    q = mean[:, 0] - middle * rise
    return Gated((q + rise).flatten(), q.flatten(), weight, offset)


def _centred(s: Tensor) -> tuple[Tensor, Tensor]:
    """Split ``[G, T]`` into what is left without its mean over T, and the mean ``[G, 1]``."""
    mean = s.mean(dim=1, keepdim=True)
    return s - mean, mean


def _slopes(z: Tensor, moving: Tensor) -> Tensor:
    """Regress ``moving [G, T, K]`` on ``z [G, T]``: ``[G, K]``."""
    return torch.einsum("gt,gtk->gk", z, moving) / z.square().sum(dim=1, keepdim=True)


def _gates(t: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
    """Find the weight and the offset ``[G]`` whose sigmoid explains most of ``moving [G, T, K]``."""
    low, width = t.min(), t.max() - t.min()
    u = 2 * (t - low) / width - 1  # the search sees times in [-1, 1]
    slope, centre = _refined(u, moving, *_best_of_grid(u, moving))
    scale = 2 / width
    weight = slope * scale
    return weight, -slope * centre - weight * low - slope


def _steepest(u: Tensor) -> float:
    distances = u.unique().diff()
    return STEEPEST / distances.min().item()


def _sigmoids(u: Tensor, log_slope: Tensor, centre: Tensor) -> Tensor:
    return torch.sigmoid(log_slope.exp()[:, None] * (u - centre[:, None]))  # [G, T]


def _spread(z: Tensor) -> Tensor:
    return z.square().mean(dim=1).sqrt()


def _best_of_grid(u: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
    """Find the grid point that explains most: logarithm of the slope, and centre, ``[G]`` each."""
    slopes = torch.linspace(math.log(0.1), math.log(_steepest(u)), SLOPES, dtype=u.dtype, device=u.device)
    centres = torch.linspace(-2.5, 2.5, CENTRES, dtype=u.dtype, device=u.device)
    pairs = torch.cartesian_prod(slopes, centres)  # [N, 2]
    z, _ = _centred(_sigmoids(u, pairs[:, 0], pairs[:, 1]))
    usable = _spread(z) >= LEAST_SPREAD
    pairs, z = pairs[usable], z[usable]
    z = z / z.norm(dim=1, keepdim=True)
    columns = moving.permute(1, 0, 2).reshape(len(u), -1)  # [T, G * K]
    explained = (z @ columns).square().view(len(z), moving.shape[0], -1).sum(dim=2)  # [N, G]
    best = pairs[explained.argmax(dim=0)]
    return best[:, 0], best[:, 1]


def _refined(u: Tensor, moving: Tensor, log_slope: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Take damped Gauss-Newton steps to slope and centre ``[G]``, none to a flat gate or a worse fit."""
    gate = torch.stack((log_slope, centre), dim=1)  # [G, 2]
    limit = torch.tensor((math.log(_steepest(u)), math.inf), dtype=u.dtype, device=u.device)
    damping = torch.full_like(log_slope, 1e-3)
    explained = _explained(u, moving, gate)
    for _ in range(STEPS):
        normal, gradient = _normal_equations(u, moving, gate)
        diagonal = torch.diag_embed(normal.diagonal(dim1=1, dim2=2))
        system = normal + damping[:, None, None] * diagonal
        # Tiny but never singular: a gate that does not move the fit stays where it is.
        floor = torch.finfo(u.dtype).tiny + 1e-12 * diagonal.amax(dim=(1, 2), keepdim=True)
        step = torch.linalg.solve(system + floor * torch.eye(2, dtype=u.dtype, device=u.device), gradient)
        proposed = torch.minimum(gate + step.clamp(-1, 1), limit)
        reached = _explained(u, moving, proposed)
        better = reached > explained
        gate = torch.where(better[:, None], proposed, gate)
        explained = torch.where(better, reached, explained)
        damping = torch.where(better, damping / 5, damping * 4).clamp(1e-12, 1e12)
    return gate[:, 0].exp(), gate[:, 1]


def _explained(u: Tensor, moving: Tensor, gate: Tensor) -> Tensor:
    """Compute the sum of squares ``[G]`` that the gate explains; -1 where it is too flat to be used."""
    z, _ = _centred(_sigmoids(u, gate[:, 0], gate[:, 1]))
    products = torch.einsum("gt,gtk->gk", z, moving).square().sum(dim=1)
    flat = _spread(z) < LEAST_SPREAD
    return torch.where(flat, -1.0, products / z.square().sum(dim=1).clamp_min(torch.finfo(u.dtype).tiny))


def _normal_equations(u: Tensor, moving: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Compute ``J^T J [G, 2, 2]`` and ``J^T residual [G, 2]`` of the residual after solving for ``p`` and ``q``."""
    s = _sigmoids(u, gate[:, 0], gate[:, 1])
    z, _ = _centred(s)
    rise = _slopes(z, moving)  # [G, K]
    slope = gate[:, :1].exp()
    steepness = s * (1 - s)
    by_log_slope = steepness * slope * (u - gate[:, 1:])
    by_centre = -steepness * slope
    moved = torch.stack((by_log_slope, by_centre), dim=1)  # [G, 2, T]
    moved = moved - moved.mean(dim=2, keepdim=True)
    along = torch.einsum("gjt,gt->gj", moved, z) / z.square().sum(dim=1, keepdim=True)
    moved = moved - along[:, :, None] * z[:, None]  # what the ends p and q cannot follow
    normal = moved @ moved.mT * rise.square().sum(dim=1)[:, None, None]
    target = torch.einsum("gtk,gk->gt", moving, rise)
    return normal, torch.einsum("gjt,gt->gj", moved, target)
