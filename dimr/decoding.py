"""Latents to images, with an autoencoder of the ``diffusers`` library."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoints import CheckpointError
from .optional import require

KINDS = ("AutoencoderKL", "AutoencoderTiny")


def load_decoder(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> Any:
    """The autoencoder that ``save_pretrained`` wrote to ``folder``. Nothing is downloaded.

    Raises:
        FileNotFoundError: there is no ``config.json``.
        CheckpointError: it describes something else, or the weights cannot be read.
        MissingPackageError: diffusers is not installed.
    """
    description = Path(folder) / "config.json"
    if not description.is_file():
        raise FileNotFoundError(f"no autoencoder at {folder}: there is no {description.name}")
    try:
        kind = json.loads(description.read_text()).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{description} is not an autoencoder's configuration: {error}") from error
    if kind not in KINDS:
        raise CheckpointError(f"{description} describes {kind!r}; wanted {' or '.join(KINDS)}")
    diffusers = require("diffusers", "demo", "decoding latents")
    try:
        decoder = getattr(diffusers, kind).from_pretrained(os.fspath(folder), local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"the autoencoder in {folder} cannot be read: {reason}") from error
    return decoder.to(device).eval()


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
        scaled = latents.to(decoder.device, decoder.dtype) / decoder.config.scaling_factor
        images = [decoder.decode(part).sample.float().cpu() for part in scaled.split(batch_size)]
    return torch.cat(images).clamp(-1, 1)
