from __future__ import annotations

import itertools
import math

import pytest
import torch

from dimr import NoiseSchedule

SCHEDULE = NoiseSchedule()


def alphas_bar():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


@pytest.mark.parametrize("step", [1, 2, 500, 999, 1000])
def test_whole_steps(step):
    alpha_bar = alphas_bar()[step - 1].item()
    assert SCHEDULE.alpha(step) == pytest.approx(math.sqrt(alpha_bar), rel=1e-10)
    assert SCHEDULE.sigma(step) == pytest.approx(math.sqrt(1 - alpha_bar), rel=1e-9)
    assert SCHEDULE.half_log_snr(step) == pytest.approx(0.5 * math.log(alpha_bar / (1 - alpha_bar)), rel=1e-9)


def test_between_steps():
    middle = (SCHEDULE.log_alpha(7) + 3 * SCHEDULE.log_alpha(8)) / 4
    assert SCHEDULE.log_alpha(7.75) == pytest.approx(middle, rel=1e-12)
    assert SCHEDULE.log_alpha(999.5) == pytest.approx((SCHEDULE.log_alpha(999) + SCHEDULE.log_alpha(1000)) / 2)
    lambdas = [SCHEDULE.half_log_snr(1 + 999 * i / 400) for i in range(401)]
    assert all(a > b for a, b in itertools.pairwise(lambdas))


def test_matches_diffusers():
    schedulers = pytest.importorskip("diffusers")
    theirs = schedulers.DDPMScheduler(1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    x0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    step = torch.tensor([1, 640])
    torch.testing.assert_close(SCHEDULE.add_noise(x0, noise, step), theirs.add_noise(x0, noise, step - 1))


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 2, 4, 4)])
def test_noised_keeps_unit_variance(shape):
    step = torch.tensor([1, 300, 1000])
    ones, zeros = torch.ones(shape), torch.zeros(shape)
    signal, noise = SCHEDULE.add_noise(ones, zeros, step), SCHEDULE.add_noise(zeros, ones, step)
    torch.testing.assert_close(signal.square() + noise.square(), ones)


def test_keeps_dtype_and_gradient():
    x0 = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        SCHEDULE.add_noise(x0, x0, torch.tensor([1, 2]))  # fills the tables in inference mode first
    out = SCHEDULE.add_noise(x0, torch.zeros_like(x0), torch.tensor([5, 9], dtype=torch.int32))
    assert out.dtype == torch.float64
    out.sum().backward()
    torch.testing.assert_close(x0.grad[:, 0], torch.tensor([SCHEDULE.alpha(5), SCHEDULE.alpha(9)]).double())


IMAGES = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IMAGES, torch.zeros(2, 4), torch.tensor([1, 2])), r"noise must have x0's shape \[2, 3\], got \[2, 4\]"),
        ((IMAGES, IMAGES, torch.tensor([1])), r"step must be integers of shape \[2\], got torch.int64 \[1\]"),
        ((IMAGES, IMAGES, torch.tensor([1.0, 2.0])), "step must be integers .* got torch.float32"),
        ((IMAGES, IMAGES, torch.tensor([0, 2])), r"step must be in \[1, 1000\], got \[0, 2\]"),
        ((IMAGES, IMAGES, torch.tensor([5, 1001])), r"step must be in \[1, 1000\]"),
        ((IMAGES, IMAGES, torch.tensor([5, 10], device="meta")), "step is on meta, x0 is on cpu"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SCHEDULE.add_noise(*arguments)


@pytest.mark.parametrize("timestep", [0, 0.5, 1001, math.nan])
def test_timestep_out_of_range(timestep):
    with pytest.raises(ValueError, match=r"timestep must be in \[1, 1000\]"):
        SCHEDULE.alpha(timestep)


def test_bad_betas():
    with pytest.raises(ValueError, match="0 < beta_start <= beta_end < 1"):
        NoiseSchedule(0.02, 0.01)
