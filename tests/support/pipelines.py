"""Pipelines of small models."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

import dimr

from .autoencoders import tiny_autoencoder
from .small_models import TINY, perturbed_model

LATENTS = dataclasses.replace(TINY, in_channels=4)
NAMES = {0: "ant", 1: "bee", 2: "Cat", 3: "dog, domestic", 4: "eel"}


def pixel_pipeline(config: dimr.DiMRConfig = TINY, **options: Any) -> Any:
    """Make a pipeline of a model of pixels, without progress bar."""
    from dimr.diffusers_pipeline import DiMRPipeline, DiMRTransformer2DModel, make_scheduler

    transformer = DiMRTransformer2DModel.from_dimr(perturbed_model(config).eval())
    pipeline = DiMRPipeline(transformer, make_scheduler(), **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latent_pipeline(kind: str = "AutoencoderKL", **options: Any) -> Any:
    """Make a pipeline of a model of latents with an autoencoder; its images are 16 pixels wide."""
    return pixel_pipeline(LATENTS, vae=tiny_autoencoder(kind).eval(), **options)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
