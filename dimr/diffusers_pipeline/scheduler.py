"""Schedulers that fit the models, and a check that a scheduler does."""

from __future__ import annotations

from typing import Any

import torch

from ..diffusion.samplers import multistep_scheduler
from ..diffusion.schedule import NoiseSchedule

TOLERANCE = 1e-4  # schedulers multiply a thousand numbers in float32


def make_scheduler(schedule: NoiseSchedule | None = None) -> Any:
    """Make the scheduler of ``dimr.sample(..., method="dpm-solver-multistep")``: DPM-Solver++ for 10 to 25 steps.

    ``DDIMScheduler.from_config(make_scheduler().config)`` and so on fit the models as well.
    """
    scheduler = multistep_scheduler(schedule or NoiseSchedule())
    # Both settings are for schedulers made from this config and do not change its own steps. DDIM computes the previous
    # timestep correctly with this spacing, which starts at the noisiest step, if the number of steps divides 1000; DDPM
    # does for any. They would also clip the data to [-1, 1], which latents exceed.
    scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing="trailing")
    scheduler.register_to_config(clip_sample=False)
    return scheduler


def check_scheduler(scheduler: Any, schedule: NoiseSchedule) -> None:
    """Check that ``scheduler`` is for noise prediction at the noise levels of ``schedule``.

    Raises:
        ValueError: it is not; the message names the setting.
    """
    name = f"scheduler {type(scheduler).__name__}"
    config = getattr(scheduler, "config", {})
    prediction = config.get("prediction_type", None)
    if prediction != "epsilon":
        raise ValueError(
            f"{name} must have prediction_type 'epsilon', for these models predict noise; got {prediction!r}"
        )
    variance = config.get("variance_type", None)
    if variance in ("learned", "learned_range"):
        raise ValueError(f"{name} must not have variance_type {variance!r}: these models predict no variance")
    found = getattr(scheduler, "alphas_cumprod", None)
    if found is None:
        raise ValueError(f"{name} has no alphas_cumprod: wanted one for noise levels in {schedule.num_steps} steps")
    wanted = torch.tensor([schedule.alpha(n) ** 2 for n in range(1, schedule.num_steps + 1)])
    if found.shape != wanted.shape or not torch.allclose(found.cpu().float(), wanted, rtol=TOLERANCE, atol=TOLERANCE):
        raise ValueError(
            f"{name} has other noise levels than the model was trained with ({schedule}): "
            f"make it with {type(scheduler).__name__}.from_config(pipeline.scheduler.config)"
        )
