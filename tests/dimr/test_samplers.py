"""The solvers on a problem whose answer is known: Gaussian data, for which the best noise prediction is linear."""

from __future__ import annotations

import math

import pytest
import torch

from dimr import NoiseSchedule
from dimr.diffusion.samplers import (
    dpm_solver_step,
    fast_orders,
    multistep_scheduler,
    sample_fast,
    sample_with_scheduler,
)

SCHEDULE = NoiseSchedule()
SPREAD = 0.3


def spread_at(timestep):
    return math.sqrt((SCHEDULE.alpha(timestep) * SPREAD) ** 2 + SCHEDULE.sigma(timestep) ** 2)


def denoise(x, timestep):
    return SCHEDULE.sigma(timestep) / spread_at(timestep) ** 2 * x


def solved(x, s, t):
    """The probability-flow equation's solution keeps every sample at the same number of standard deviations."""
    return x * spread_at(t) / spread_at(s)


@pytest.mark.parametrize("steps", range(1, 14))
def test_orders_spend_every_call(steps):
    orders = fast_orders(steps)
    assert sum(orders) == steps
    assert set(orders) <= {1, 2, 3}
    assert sorted(orders, reverse=True) == orders
    calls = []
    sample_fast(lambda x, t: (calls.append(t), denoise(x, t))[1], torch.ones(1, dtype=torch.float64), SCHEDULE, steps)
    assert len(calls) == steps
    assert calls[0] == 1000


@pytest.mark.parametrize("order", [1, 2, 3])
def test_local_error_falls_with_the_order(order):
    """A step's error falls at least as its length to the order plus one; between whole steps the schedule is smooth."""

    def error(length):
        x = torch.ones(1, dtype=torch.float64)
        s = 500.0
        times = [s - length * i / order for i in range(order + 1)]
        return (dpm_solver_step(denoise, x, SCHEDULE, times) - solved(x, s, s - length)).abs().item()

    rate = math.log2(error(200.0) / error(100.0))
    assert order + 0.6 < rate


def test_converges_to_the_solution():
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    wanted = solved(x, 1000, 1)
    errors = [(sample_fast(denoise, x, SCHEDULE, steps) - wanted).abs().max().item() for steps in (15, 60, 240)]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert errors[2] < 0.02 * wanted.abs().max()


def test_diffusers_multistep_is_close_in_few_steps():
    pytest.importorskip("diffusers")
    x = torch.linspace(-2, 2, 5).reshape(1, 5)
    for steps, tolerance in ((10, 0.03), (20, 0.01)):
        found = sample_with_scheduler(denoise, x, multistep_scheduler(SCHEDULE), steps)
        torch.testing.assert_close(found, x * SPREAD / spread_at(1000), rtol=tolerance, atol=1e-4)


def test_a_scheduler_that_adds_noise_takes_the_generator():
    schedulers = pytest.importorskip("diffusers")
    make = lambda: schedulers.DDPMScheduler(  # noqa: E731
        1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    x = torch.ones(2, 4)
    runs = [sample_with_scheduler(denoise, x, make(), 5, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_no_steps():
    for call in (
        lambda: fast_orders(0),
        lambda: sample_with_scheduler(denoise, torch.ones(1), None, 0),
    ):
        with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
            call()
