"""Errors of the pipeline name the argument or part that does not fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers

from dimr.diffusers_pipeline import DiMRPipeline
from tests.support.autoencoders import tiny_autoencoder
from tests.support.pipelines import LATENTS, NAMES, latent_pipeline, pixel_pipeline, seeded
from tests.support.small_models import TINY

pytestmark = pytest.mark.filterwarnings("ignore:__array")  # diffusers' use of NumPy

NOISE = torch.zeros(2, 3, 8, 8)


@pytest.fixture(scope="module")
def pipeline():
    return pixel_pipeline(id2label=NAMES)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"class_labels": [0, 6]}, ValueError, r"class_labels must be in \[0, 5\], got 6"),
        ({"class_labels": [-1]}, ValueError, r"class_labels must be in \[0, 5\], got -1"),
        ({"class_labels": []}, ValueError, "class_labels must have at least one entry"),
        ({"class_labels": [0.5]}, TypeError, "class_labels must be ids or names, got 0.5"),
        ({"class_labels": None}, TypeError, "class_labels must be ids or names, got None"),
        ({"class_labels": 1.5}, TypeError, "class_labels must be ids or names, got 1.5"),
        ({"class_labels": [True]}, TypeError, "class_labels must be ids or names, got True"),
        ({"class_labels": torch.zeros(2)}, TypeError, r"class_labels must be integers of shape \[B\]"),
        ({"class_labels": torch.zeros(2, 2).long()}, TypeError, r"class_labels must be integers of shape \[B\]"),
        ({"class_labels": "bees"}, ValueError, "no class is named 'bees'; similar: 'bee'"),
        ({"class_labels": "7"}, ValueError, "this model has classes 0 to 4, got 7"),
        ({"guidance_scale": 0.5}, ValueError, "guidance_scale must be a finite number of at least 1"),
        ({"guidance_scale": float("nan")}, ValueError, "guidance_scale must be a finite number of at least 1"),
        ({"guidance_scale": "2"}, TypeError, "guidance_scale must be a number, got '2'"),
        ({"guidance_scale": 2.0, "guidance_power": -1.0}, ValueError, "power must be a finite number above 0"),
        ({"generator": [seeded()]}, ValueError, r"generator must be one, or a list of one per image \(2\), got 1"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator"),
        ({"latents": NOISE[:1]}, ValueError, r"latents must be floating-point of shape \[2, 3, 8, 8\], got .*\[1, 3"),
        ({"latents": NOISE.long()}, ValueError, "latents must be floating-point of shape .*, got torch.int64"),
        ({"latents": [1]}, TypeError, "latents must be a Tensor, got list"),
        ({"output_type": "jpg"}, ValueError, "output_type must be one of 'pil', 'np', 'pt', 'latent'; got 'jpg'"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, ValueError, "must be among 'latents'; got 'noise'"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps must be an integer of at least 1, got 0"),
        ({"num_inference_steps": 2.5}, ValueError, "num_inference_steps must be an integer of at least 1, got 2.5"),
    ],
)
def test_bad_arguments(pipeline, arguments, error, message):
    with pytest.raises(error, match=message):
        pipeline(**{"class_labels": [0, 1], "num_inference_steps": 2, **arguments})


def test_names_that_nothing_tells():
    with pytest.raises(ValueError, match=r"this pipeline knows no names \(id2label\), give ids; got 'bee'"):
        pixel_pipeline()(["bee"])


@pytest.mark.parametrize(
    "names", [{0: "ant"}, {**NAMES, 5: "fly"}, {i + 1: name for i, name in NAMES.items()}, {**NAMES, 3: 7}]
)
def test_names_of_other_classes(names):
    with pytest.raises(ValueError, match="id2label must name each of the classes 0 to 4"):
        pixel_pipeline(id2label=names)


def test_guidance_needs_an_unconditional_class():
    pipeline = pixel_pipeline(dataclasses.replace(TINY, unconditional_class=False))
    assert pipeline(0, num_inference_steps=1, output_type="pt").images.isfinite().all()
    with pytest.raises(ValueError, match="guidance_scale must be 1: this model has no unconditional class"):
        pipeline(0, guidance_scale=2.0)


class Nothing:
    """A part that is no scheduler at all."""


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: diffusers.DDIMScheduler(**BETAS, prediction_type="v_prediction"), "must have prediction_type 'epsil"),
        (lambda: diffusers.DDIMScheduler(**BETAS, prediction_type="sample"), "got 'sample'"),
        (lambda: diffusers.FlowMatchEulerDiscreteScheduler(), "must have prediction_type 'epsilon'.*got None"),
        (lambda: diffusers.EDMEulerScheduler(), "EDMEulerScheduler has no alphas_cumprod"),
        (lambda: diffusers.DDPMScheduler(**BETAS, variance_type="learned_range"), "must not have variance_type 'lea"),
        (lambda: diffusers.DDIMScheduler(), r"other noise levels.*DDIMScheduler\.from_config\(pipeline\.scheduler"),
        (lambda: diffusers.DDIMScheduler(500, **BETAS), "other noise levels"),
        (lambda: diffusers.DDIMScheduler(**{**BETAS, "beta_end": 0.0121}), "other noise levels"),
        (lambda: diffusers.DDIMScheduler(**BETAS, rescale_betas_zero_snr=True), "other noise levels"),
        (lambda: Nothing(), "scheduler Nothing must have prediction_type 'epsilon'"),
    ],
)
def test_schedulers_of_another_kind(make, message):
    pipeline = pixel_pipeline()
    pipeline.scheduler = make()
    with pytest.raises(ValueError, match=message):
        pipeline(0)
    if isinstance(pipeline.scheduler, diffusers.SchedulerMixin):
        with pytest.raises(ValueError, match=message):
            DiMRPipeline(pipeline.transformer, pipeline.scheduler)


def test_autoencoder_of_other_latents():
    with pytest.raises(ValueError, match="vae must have the model's 3 latent channels, got 4"):
        pixel_pipeline(vae=tiny_autoencoder("AutoencoderKL"))
    pipeline = latent_pipeline()
    pipeline.vae = tiny_autoencoder("AutoencoderTiny", latent_channels=3)
    with pytest.raises(ValueError, match="vae must have the model's 4 latent channels, got 3"):
        pipeline(0)


def test_latents_without_an_autoencoder():
    pipeline = pixel_pipeline(LATENTS)
    assert pipeline(0, num_inference_steps=1, output_type="latent").images.shape == (1, 4, 8, 8)
    with pytest.raises(ValueError, match="makes latents of 4 channels: give the pipeline a vae"):
        pipeline(0)
