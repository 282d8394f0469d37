"""Samplers: DPM-Solver++, and the schedulers of the ``diffusers`` library, which is optional."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..utils import require
from .schedule import NoiseSchedule

Denoise = Callable[[Tensor, float], Tensor]  # denoise(x, timestep) -> the (guided) noise prediction


# DPM-Solver++, single-step, orders 1 to 3 (Lu et al. 2022, arXiv:2206.00927 and 2211.01095).
#
# The model's noise prediction becomes a prediction of the clean data, ``m = (x - sigma noise) / alpha``. One step goes
# from timestep ``s`` to ``t`` and integrates ``m`` over ``lambda``, with one, two or three model calls at ``s`` and at
# given timesteps on the way. All coefficients are Python numbers, computed on the host in double precision.


def fast_orders(steps: int) -> list[int]:
    """Choose orders that add up to ``steps`` model calls: as many third-order steps as fit, lower orders at the end."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    thirds, rest = divmod(steps, 3)
    if rest:
        return [3] * thirds + [rest]
    return [3] * (thirds - 1) + [2, 1]


def sample_fast(denoise: Denoise, x: Tensor, schedule: NoiseSchedule, steps: int) -> Tensor:
    """Integrate ``x [B, ...]`` from timestep 1000 to timestep 1 in ``steps`` model calls.

    The calls are uniform in time: a step of order n spans n cells of a uniform grid.
    """
    first, last = schedule.num_steps, 1
    grid = [first + (last - first) * i / steps for i in range(steps + 1)]
    done = 0
    for order in fast_orders(steps):
        x = dpm_solver_step(denoise, x, schedule, grid[done : done + order + 1])
        done += order
    return x


def dpm_solver_step(denoise: Denoise, x: Tensor, schedule: NoiseSchedule, times: Sequence[float]) -> Tensor:
    """Take one step over ``times``, which start at s, end at t and have one timestep per model call before t."""
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
    """Predict the clean data ``m``."""
    return (x - schedule.sigma(s) * denoise(x, s)) / schedule.alpha(s)


def _first_order(x: Tensor, m: Tensor, schedule: NoiseSchedule, s: float, t: float) -> Tensor:
    """Step from s to t, exactly if ``m`` is constant in between."""
    h = schedule.half_log_snr(t) - schedule.half_log_snr(s)
    return (schedule.sigma(t) / schedule.sigma(s)) * x - (schedule.alpha(t) * math.expm1(-h)) * m


def _phi_2(h: float) -> float:
    return math.expm1(-h) / h + 1


# Schedulers of diffusers


def multistep_scheduler(schedule: NoiseSchedule) -> Any:
    """Make diffusers' DPM-Solver++ of second order, with one model call per step, for 10 to 25 steps.

    The steps are uniform in lambda. Uniform in time, each of the last few would halve the noise several times:
    on Gaussian data, 10 steps then err by 35%, against 1% uniform in lambda.
    """
    diffusers = require("diffusers", "demo", "method 'dpm-solver-multistep'")
    return diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=schedule.num_steps,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        algorithm_type="dpmsolver++",
        solver_order=2,
        use_lu_lambdas=True,
    )


def sample_with_scheduler(
    denoise: Denoise, x: Tensor, scheduler: Any, steps: int, generator: torch.Generator | None = None
) -> Tensor:
    """Run a diffusers scheduler for noise prediction: ``x [B, ...]`` of unit variance -> clean ``[B, ...]``.

    ``generator`` is for schedulers that add noise in their steps.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    timesteps = set_timesteps(scheduler, steps)
    x = x * scheduler.init_noise_sigma
    options = step_options(scheduler, generator=generator)
    for step in timesteps:
        x = scheduler_step(denoise, x, scheduler, step, options)
    return x


def set_timesteps(scheduler: Any, steps: int) -> Tensor:
    """Set a scheduler to the start of ``steps`` steps, and return its timesteps.

    They are on the CPU, where reading one does not synchronise.

    Raises:
        ValueError: the scheduler cannot take that many steps.
    """
    scheduler.set_timesteps(steps, device="cpu")
    timesteps: Tensor = scheduler.timesteps
    if timesteps[-1] < 0:  # so does diffusers' "trailing" spacing for 61 steps, by rounding
        raise ValueError(
            f"{type(scheduler).__name__} makes {len(timesteps)} timesteps of {steps} steps, the last "
            f"{float(timesteps[-1]):g}: take one more or less"
        )
    if hasattr(scheduler, "set_begin_index"):
        # Otherwise it looks the first timestep up, and takes the second level of noise where two have one timestep.
        scheduler.set_begin_index(0)
    return timesteps


def scheduler_step(denoise: Denoise, x: Tensor, scheduler: Any, step: Tensor, options: dict[str, Any]) -> Tensor:
    """Go from ``step``, one of the scheduler's timesteps, to the next: ``x [B, ...]`` -> ``[B, ...]``.

    diffusers counts timesteps from 0, the models here from 1.
    """
    noise = denoise(scheduler.scale_model_input(x, step), float(step) + 1)
    return scheduler.step(noise, step, x, **options).prev_sample


def step_options(scheduler: Any, **options: Any) -> dict[str, Any]:
    """Select the options that are not None and that this scheduler's ``step`` accepts."""
    taken = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in options.items() if value is not None and name in taken}
