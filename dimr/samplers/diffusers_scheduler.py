"""Sampling with the schedulers of the ``diffusers`` library, which is optional."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ..optional import require
from ..schedule import NoiseSchedule
from . import Denoise


def multistep_scheduler(schedule: NoiseSchedule) -> Any:
    """diffusers' DPM-Solver++ of second order, one model call per step, for 10 to 25 steps.

    The steps are uniform in lambda. Uniform in time, the last few would each halve the noise several times over: on
    Gaussian data 10 steps are then off by 35%, uniform in lambda by 1%.
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
    """Run a diffusers scheduler made for noise prediction: ``x [B, ...]`` of unit variance -> clean ``[B, ...]``.

    diffusers counts its training steps from 0, the models here from 1. ``generator`` serves the schedulers that add
    noise of their own.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    scheduler.set_timesteps(steps, device="cpu")  # on the host, where reading a timestep waits for nothing
    x = x * scheduler.init_noise_sigma
    options = step_options(scheduler, generator=generator)
    for step in scheduler.timesteps:
        x = scheduler_step(denoise, x, scheduler, step, options)
    return x


def scheduler_step(denoise: Denoise, x: Tensor, scheduler: Any, step: Tensor, options: dict[str, Any]) -> Tensor:
    """From ``step``, one of the scheduler's timesteps, to the next: ``x [B, ...]`` -> ``[B, ...]``."""
    noise = denoise(scheduler.scale_model_input(x, step), float(step) + 1)
    return scheduler.step(noise, step, x, **options).prev_sample


def step_options(scheduler: Any, **options: Any) -> dict[str, Any]:
    """Those of ``options`` that are not None and that this scheduler's steps take."""
    taken = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in options.items() if value is not None and name in taken}
