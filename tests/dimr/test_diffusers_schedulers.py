"""Any scheduler in a pipeline: the timesteps that a model sees are those its input's noise belongs to."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers

import dimr
from dimr.diffusers_pipeline import DiMRPipeline, make_scheduler
from dimr.diffusion.sample import guided
from dimr.diffusion.samplers import dpm_solver_step
from tests.support.pipelines import pixel_pipeline, seeded
from tests.support.small_models import TINY

pytestmark = pytest.mark.filterwarnings("ignore:__array")  # diffusers' use of NumPy

SCHEDULE = dimr.NoiseSchedule()
LABELS = [0, 3]
DETERMINISTIC = [
    "DDIMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
]
END_AT_STEP_1 = ["DEISMultistepScheduler", "PNDMScheduler"]  # with what noise is left there
RANDOM = ["DDPMScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler"]


def scheduler(name, **changes):
    return getattr(diffusers, name).from_config(make_scheduler().config, **changes)


class Oracle(torch.nn.Module):
    """The best prediction for data that is one image, x0; keeps the noise found in each input."""

    def __init__(self, x0):
        super().__init__()
        self.x0 = x0
        self.architecture = TINY
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self.noises = []
        self.steps = []

    def forward(self, hidden_states, timestep, class_labels, return_dict):
        step = float(timestep) + 1
        noise = (hidden_states - SCHEDULE.alpha(step) * self.x0) / SCHEDULE.sigma(step)
        self.noises.append(noise)
        self.steps.append(step)
        return noise, (noise,)


def with_oracle(scheduler):
    x0 = torch.rand(1, 3, 8, 8, generator=seeded(7)) * 2 - 1
    pipeline = DiMRPipeline(Oracle(x0), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, x0


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_noise_belongs_to_the_timestep(name):
    """The solution for one image keeps the noise it began with: were timesteps off by one, it would drift."""
    pipeline, x0 = with_oracle(scheduler(name, use_lu_lambdas=False))
    found = pipeline(LABELS, generator=seeded(), num_inference_steps=10, output_type="latent").images
    oracle = pipeline.transformer
    assert 990 < oracle.steps[0] <= 1000
    assert oracle.steps[-1] < 110
    for noise in oracle.noises:
        torch.testing.assert_close(noise, oracle.noises[0], rtol=2e-2, atol=2e-2)
    if name in END_AT_STEP_1:
        found = (found - SCHEDULE.sigma(1) * oracle.noises[-1]) / SCHEDULE.alpha(1)
    torch.testing.assert_close(found, x0.expand(2, -1, -1, -1), rtol=0, atol=1e-3)


def test_default_scheduler_reaches_the_image():
    """Its noise levels are uniform in lambda and its timesteps whole, so that noise and timestep fit less well."""
    pipeline, x0 = with_oracle(make_scheduler())
    found = pipeline(LABELS, generator=seeded(), num_inference_steps=10, output_type="latent").images
    assert pipeline.transformer.steps[0] == 1000
    torch.testing.assert_close(found, x0.expand(2, -1, -1, -1), rtol=0, atol=2e-2)


@pytest.mark.skipif(diffusers.__version__.startswith("0.31"), reason="diffusers 0.31 fails with use_beta_sigmas")
@pytest.mark.parametrize("name", ["DEISMultistepScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_first_timestep_that_comes_twice(name):
    """diffusers takes the second of equal timesteps for the first step, and lacks one at the end, if not told."""
    pytest.importorskip("scipy")
    pipeline, x0 = with_oracle(scheduler(name, use_lu_lambdas=False, use_beta_sigmas=True))
    found = pipeline(LABELS, generator=seeded(), num_inference_steps=50, output_type="latent").images
    steps = pipeline.transformer.steps
    assert len(steps) == 50
    assert steps[0] == steps[1]
    torch.testing.assert_close(found, x0.expand(2, -1, -1, -1), rtol=0, atol=0.1 if name in END_AT_STEP_1 else 1e-3)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_numbers_of_steps_that_diffusers_miscounts(name):
    """Rounding errors of ``numpy.arange`` add a timestep of -1, at which DDIM takes the noise level of 999."""
    pipeline, _ = with_oracle(scheduler(name, use_lu_lambdas=False))
    with pytest.raises(ValueError, match=f"{name} makes 62 timesteps of 61 steps, the last -1: take one more or less"):
        pipeline(LABELS, generator=seeded(), num_inference_steps=61, output_type="latent")
    for steps in (60, 62):
        pipeline.transformer.steps.clear()
        pipeline(LABELS, generator=seeded(), num_inference_steps=steps, output_type="latent")
        assert len(pipeline.transformer.steps) == steps


@pytest.mark.parametrize("name", RANDOM)
def test_schedulers_that_add_noise(name):
    pipeline, x0 = with_oracle(scheduler(name))

    def draw(seed):
        return pipeline(LABELS, generator=seeded(seed), num_inference_steps=10, output_type="latent").images

    torch.testing.assert_close(draw(0), x0.expand(2, -1, -1, -1), rtol=0, atol=5e-2)
    first = pipeline.transformer.noises[1]
    spread = torch.stack(pipeline.transformer.noises).std(dim=(1, 2, 3, 4))
    assert ((spread > 0.85) & (spread < 1.15)).all()  # of unit variance whatever the step
    pipeline.transformer.noises.clear()
    draw(0)
    assert torch.equal(pipeline.transformer.noises[1], first)
    draw(1)
    assert not torch.equal(pipeline.transformer.noises[-9], first)


@pytest.mark.parametrize("name", [*DETERMINISTIC, *RANDOM])
def test_swapped_scheduler_draws_what_dimr_sample_does(name):
    pipeline = pixel_pipeline()
    pipeline.scheduler = scheduler(name)
    found = pipeline(LABELS, 1.5, generator=seeded(), num_inference_steps=5, output_type="latent").images
    options = {"guidance": dimr.Guidance("constant", 0.5), "generator": seeded(), "steps": 5}
    wanted = dimr.sample(pipeline.transformer.to_dimr(), LABELS, method=scheduler(name), **options)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("guidance", [None, dimr.Guidance("power", 3.0, 1.5)])
def test_ddim_is_our_first_order_solver(guidance):
    """Step by step, on the trajectory that a callback sees. DDIM's last step goes to the clean prediction."""
    pipeline = pixel_pipeline()
    pipeline.scheduler = scheduler("DDIMScheduler")
    states = [torch.randn(2, 3, 8, 8, generator=seeded())]

    def callback(pipe, i, timestep, tensors):
        states.append(tensors["latents"])
        return tensors

    options = {} if guidance is None else {"guidance_scale": 3.0, "guidance_power": 1.5}
    pipeline(LABELS, num_inference_steps=10, generator=seeded(), callback_on_step_end=callback, **options)
    denoise = guided(pipeline.transformer.to_dimr(), torch.tensor(LABELS), guidance)
    times = [1000.0 - 100 * i for i in range(10)]
    with torch.no_grad():
        for x, after, s, t in zip(states, states[1:], times, times[1:], strict=False):
            torch.testing.assert_close(after, dpm_solver_step(denoise, x, SCHEDULE, [s, t]), rtol=1e-4, atol=1e-4)
        x, s = states[-2], times[-1]
        clean = (x - SCHEDULE.sigma(s) * denoise(x, s)) / SCHEDULE.alpha(s)
    torch.testing.assert_close(states[-1], clean, rtol=1e-4, atol=1e-4)


def test_eta_is_for_those_that_take_it():
    pipeline = pixel_pipeline()

    def draw(eta):
        return pipeline(0, generator=seeded(), num_inference_steps=3, eta=eta, output_type="latent").images

    assert torch.equal(draw(None), draw(1.0))
    pipeline.scheduler = scheduler("DDIMScheduler")
    assert torch.equal(draw(None), draw(0.0))
    assert not torch.equal(draw(None), draw(1.0))


def test_noise_levels_are_the_models():
    for steps in (1, 2, 500, 999, 1000):
        found = make_scheduler().alphas_cumprod[steps - 1].item()
        assert found == pytest.approx(SCHEDULE.alpha(steps) ** 2, rel=1e-4)


def test_another_noise_schedule(tmp_path):
    schedule = dimr.NoiseSchedule(0.0001, 0.02)
    transformer = pixel_pipeline().transformer
    with pytest.raises(ValueError, match="other noise levels"):
        DiMRPipeline(transformer, make_scheduler(schedule))
    pipeline = DiMRPipeline(transformer, make_scheduler(schedule), beta_start=0.0001, beta_end=0.02)
    pipeline.save_pretrained(tmp_path)
    again = DiMRPipeline.from_pretrained(tmp_path)
    assert again.schedule == schedule
    wanted = dimr.sample(
        transformer.to_dimr(), LABELS, steps=3, method="dpm-solver-multistep", generator=seeded(), schedule=schedule
    )
    found = again(LABELS, num_inference_steps=3, generator=seeded(), output_type="latent").images
    assert torch.equal(found, wanted)
