"""A pipeline with a published autoencoder on photographs: what it decodes looks like what was encoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("PIL")

from PIL import Image

import dimr
from dimr.diffusers_pipeline import DiMRPipeline, make_scheduler
from dimr.sampling.autoencoder import encode_moments, latent_scale, load_autoencoder
from tests.support.pipelines import seeded

DATA = Path(__file__).parents[3] / "shared" / "data"
COUNT = 4
CONFIG = dimr.DiMRConfig(in_channels=4, input_size=32, dims=(16, 8), layers=(1, 1), num_heads=2, num_classes=COUNT)
needs_photographs = pytest.mark.skipif(
    not (DATA / "photos256").is_dir() or not (DATA / "taesd").is_dir(),
    reason=f"{DATA} has no photographs and autoencoder (photos256, taesd)",
)
pytestmark = [needs_photographs, pytest.mark.slow]


class Remembering(torch.nn.Module):
    """In a model's place: predicts the noise in ``alpha x0 + sigma noise``, x0 being the image of the class."""

    architecture = CONFIG
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, latents):
        super().__init__()
        self.latents = latents
        self.noises = []

    def forward(self, hidden_states, timestep, class_labels, return_dict):
        schedule, step = dimr.NoiseSchedule(), float(timestep) + 1
        noise = (hidden_states - schedule.alpha(step) * self.latents[class_labels]) / schedule.sigma(step)
        self.noises.append(noise)
        return noise, (noise,)


@pytest.fixture(scope="module")
def autoencoder():
    return load_autoencoder(DATA / "taesd")


@pytest.fixture(scope="module")
def photographs():
    """``[COUNT, 3, 256, 256]`` in [0, 1]."""
    paths = sorted((DATA / "photos256").glob("*.jpg"))[:COUNT]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255


@pytest.fixture(scope="module")
def latents(autoencoder, photographs):
    return latent_scale(autoencoder).apply(encode_moments(autoencoder, 2 * photographs - 1))


def psnr(found, wanted):
    return -10 * torch.log10((found - wanted).square().mean(dim=(1, 2, 3))).mean().item()


def test_photographs_come_out_of_noise(autoencoder, photographs, latents):
    assert latents.shape == (COUNT, 4, 32, 32)
    pipeline = DiMRPipeline(Remembering(latents), make_scheduler(), vae=autoencoder)
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(range(COUNT), num_inference_steps=10, generator=seeded(), output_type="pt").images
    assert found.shape == photographs.shape
    assert 22 < psnr(found, photographs) < 26  # the autoencoder's own, about 23.9 dB over all of them
    assert psnr(found.roll(1, 0), photographs) < 15
    pictures = pipeline(range(COUNT), num_inference_steps=10, generator=seeded()).images
    assert pictures[0].size == (256, 256)
    again = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(again, found, rtol=0, atol=0.51 / 255)


def test_a_little_noise_is_taken_out_again(autoencoder, photographs, latents):
    """The scheduler's own noising and the pipeline's timesteps are of one scale: from its fifth of ten steps on."""
    pipeline = DiMRPipeline(Remembering(latents), make_scheduler(), vae=autoencoder)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(latents.shape, generator=seeded())
    noised = []

    def from_photographs(pipe, i, timestep, tensors):
        if i != 4:
            return tensors
        following = pipe.scheduler.timesteps[i + 1 : i + 2]
        noised.append(pipe.scheduler.add_noise(latents, noise, following))
        return {"latents": noised[0]}

    options = {"num_inference_steps": 10, "generator": seeded(), "callback_on_step_end": from_photographs}
    found = pipeline(range(COUNT), output_type="latent", **options).images
    assert (noised[0] - latents).square().mean() > 0.05
    torch.testing.assert_close(pipeline.transformer.noises[5], noise, rtol=0, atol=0.02)
    torch.testing.assert_close(found, latents, rtol=0, atol=0.02)


def test_pipeline_with_it_is_saved_and_loaded(autoencoder, tmp_path):
    torch.manual_seed(0)
    dimr.save_model(dimr.DiMR(CONFIG), tmp_path / "model")
    pipeline = DiMRPipeline.from_checkpoint(tmp_path / "model", vae=DATA / "taesd")
    pipeline.save_pretrained(tmp_path / "pipeline")
    again = DiMRPipeline.from_pretrained(tmp_path / "pipeline")
    torch.testing.assert_close(again.vae.state_dict(), autoencoder.state_dict(), rtol=0, atol=0)
    options = {"num_inference_steps": 2, "output_type": "pt"}
    wanted = pipeline([0, 3], generator=seeded(), **options).images
    assert wanted.shape == (2, 3, 256, 256)
    assert torch.equal(again([0, 3], generator=seeded(), **options).images, wanted)
