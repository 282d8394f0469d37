"""Checks of a pipeline's parts and of its call's arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import DiMRConfig
from ..guidance import Guidance
from ..images import SHOWN_CHANNELS

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_vae(vae: Any, config: DiMRConfig) -> None:
    if vae is not None and vae.config.latent_channels != config.in_channels:
        raise ValueError(
            f"vae must have the model's {config.in_channels} latent channels, got {vae.config.latent_channels}"
        )


def check_output_type(output_type: str, config: DiMRConfig, vae: Any) -> None:
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(map(repr, OUTPUT_TYPES))}; got {output_type!r}")
    if output_type != "latent" and vae is None and config.in_channels not in SHOWN_CHANNELS:
        raise ValueError(
            f"this model makes latents of {config.in_channels} channels: give the pipeline a vae, "
            f"or ask for output_type 'latent'"
        )


def check_latents(latents: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(latents, Tensor):
        raise TypeError(f"latents must be a Tensor, got {type(latents).__name__}")
    if tuple(latents.shape) != shape or not latents.is_floating_point():
        raise ValueError(
            f"latents must be floating-point of shape {list(shape)}, got {latents.dtype} {list(latents.shape)}"
        )


def check_generators(generator: Any, batch: int) -> None:
    generators = generator if isinstance(generator, (list, tuple)) else [generator] * batch
    if not all(one is None or isinstance(one, torch.Generator) for one in generators):
        raise TypeError(f"generator must be a torch.Generator or a list of them, got {generator!r}")
    if len(generators) != batch:
        raise ValueError(f"generator must be one, or a list of one per image ({batch}), got {len(generators)}")


def check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"num_inference_steps must be an integer of at least 1, got {steps!r}")


def check_callback_inputs(asked: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ValueError(
            f"callback_on_step_end_tensor_inputs must be among {', '.join(map(repr, known))}; "
            f"got {', '.join(map(repr, unknown))}"
        )


def make_guidance(scale: float, power: float | None, config: DiMRConfig) -> Guidance | None:
    """None where ``scale`` asks for none."""
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"guidance_scale must be a number, got {scale!r}")
    if not (math.isfinite(scale) and scale >= 1):
        raise ValueError(f"guidance_scale must be a finite number of at least 1, which is no guidance; got {scale}")
    if scale == 1:
        return None
    if not config.unconditional_class:
        raise ValueError("guidance_scale must be 1: this model has no unconditional class, so it cannot be guided")
    return Guidance("constant", scale - 1) if power is None else Guidance("power", scale, power)
