"""DPM-Solver++, single-step, orders 1 to 3 (Lu et al. 2022, arXiv:2206.00927 and 2211.01095).

The model's noise prediction becomes a prediction of the clean data, ``m = (x - sigma noise) / alpha``. One step goes
from timestep ``s`` to ``t`` and integrates ``m`` over ``lambda``, with one, two or three model calls at ``s`` and at
given timesteps on the way. All coefficients are Python numbers, computed on the host in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..schedule import NoiseSchedule
from . import Denoise


def fast_orders(steps: int) -> list[int]:
    """Orders that spend exactly ``steps`` model calls: third order as far as it goes, lower ones at the end."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    thirds, rest = divmod(steps, 3)
    if rest:
        return [3] * thirds + [rest]
    return [3] * (thirds - 1) + [2, 1]


def sample_fast(denoise: Denoise, x: Tensor, schedule: NoiseSchedule, steps: int) -> Tensor:
    """``x [B, ...]`` at timestep 1000 -> the same at timestep 1, in ``steps`` model calls.

    The calls are uniform in time: a step of order n spans n cells of one uniform grid.
    """
    first, last = schedule.num_steps, 1
    grid = [first + (last - first) * i / steps for i in range(steps + 1)]
    done = 0
    for order in fast_orders(steps):
        x = dpm_solver_step(denoise, x, schedule, grid[done : done + order + 1])
        done += order
    return x


def dpm_solver_step(denoise: Denoise, x: Tensor, schedule: NoiseSchedule, times: Sequence[float]) -> Tensor:
    """One step over ``times``, which start at s, end at t and hold one timestep per model call before t."""
    s, *inner, t = times
    m = _clean(denoise, x, schedule, s)
    end = _first_order(x, m, schedule, s, t)
    if not inner:
        return end
    h = schedule.half_log_snr(t) - schedule.half_log_snr(s)
    r1 = (schedule.half_log_snr(inner[0]) - schedule.half_log_snr(s)) / h
    m1 = _clean(denoise, _first_order(x, m, schedule, s, inner[0]), schedule, inner[0])
    if len(inner) == 1:
        return end - (0.5 / r1 * schedule.alpha(t) * math.expm1(-h)) * (m1 - m)
    r2 = (schedule.half_log_snr(inner[1]) - schedule.half_log_snr(s)) / h
    slope = r2 / r1 * schedule.alpha(inner[1]) * _phi_2(r2 * h)
    m2 = _clean(denoise, _first_order(x, m, schedule, s, inner[1]) + slope * (m1 - m), schedule, inner[1])
    return end + (1 / r2 * schedule.alpha(t) * _phi_2(h)) * (m2 - m)


def _clean(denoise: Denoise, x: Tensor, schedule: NoiseSchedule, s: float) -> Tensor:
    """The prediction ``m`` of the clean data."""
    return (x - schedule.sigma(s) * denoise(x, s)) / schedule.alpha(s)


def _first_order(x: Tensor, m: Tensor, schedule: NoiseSchedule, s: float, t: float) -> Tensor:
    """Exact where ``m`` stays what it is at s."""
    h = schedule.half_log_snr(t) - schedule.half_log_snr(s)
    return (schedule.sigma(t) / schedule.sigma(s)) * x - (schedule.alpha(t) * math.expm1(-h)) * m


def _phi_2(h: float) -> float:
    return math.expm1(-h) / h + 1
