"""Latents to images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .autoencoder import latent_scale


def decode_latents(decoder: Any, latents: Tensor, batch_size: int = 4) -> Tensor:
    """Scaled latents ``[B, C, h, w]`` -> images ``[B, 3, H, W]`` in [-1, 1] on the CPU, ``batch_size`` at a time.

    A decoder's widest maps, at the image's own resolution, take much memory: hence few at a time.
    """
    wanted = decoder.config.latent_channels
    if latents.dim() != 4 or latents.shape[1] != wanted:
        raise ValueError(f"latents must have shape [B, {wanted}, h, w], got {list(latents.shape)}")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    with torch.inference_mode():
        unscaled = latent_scale(decoder).undo(latents.to(decoder.device, decoder.dtype))
        images = [decoder.decode(part).sample.float().cpu() for part in unscaled.split(batch_size)]
    return torch.cat(images).clamp(-1, 1)
