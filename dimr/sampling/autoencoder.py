"""Autoencoders of the ``diffusers`` library: from images to latents and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoints.weights import CheckpointError, shortened
from ..utils import first_line, read_json, require

KINDS = ("AutoencoderKL", "AutoencoderTiny")


class LatentScale(NamedTuple):
    """The scaling of a model's latents, ``(latent - shift) * factor``; Stable Diffusion has 0.18215 and no shift."""

    factor: float
    shift: float = 0.0

    def apply(self, latents: Tensor) -> Tensor:
        return (latents - self.shift) * self.factor

    def undo(self, latents: Tensor) -> Tensor:
        return latents / self.factor + self.shift


def load_autoencoder(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> Any:
    """Load the autoencoder that ``save_pretrained`` wrote to ``folder``. Nothing is downloaded.

    Raises:
        FileNotFoundError: there is no ``config.json``.
        CheckpointError: it describes something else, or the weights cannot be read.
        MissingPackageError: diffusers is not installed.
    """
    description = Path(folder) / "config.json"
    if not description.is_file():
        raise FileNotFoundError(f"no autoencoder at {folder}: there is no {description.name}")
    try:
        kind = read_json(description).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{description} is not an autoencoder's configuration: {error}") from error
    if kind not in KINDS:
        raise CheckpointError(f"{description} describes {kind!r}; wanted {' or '.join(KINDS)}")
    diffusers = require("diffusers", "demo", "an autoencoder")
    try:
        autoencoder, found = getattr(diffusers, kind).from_pretrained(
            os.fspath(folder), local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # diffusers checks little of what it reads
        raise CheckpointError(f"the autoencoder in {folder} cannot be read: {first_line(error)}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):  # diffusers only warns of them
        if keys := [str(key) for key in found[problem]]:
            kind = problem.replace("_", " ")
            raise CheckpointError(f"the autoencoder in {folder} cannot be read: {len(keys)} {kind}: {shortened(keys)}")
    return autoencoder.to(device).eval()


def latent_scale(autoencoder: Any) -> LatentScale:
    """Read the scaling from the autoencoder's configuration."""
    config = autoencoder.config
    return LatentScale(float(config.scaling_factor), float(getattr(config, "shift_factor", None) or 0.0))


def downsampling(autoencoder: Any) -> int:
    """Return the ratio of an image's width to its latent's."""
    return 2 ** (len(autoencoder.config.block_out_channels) - 1)


def encode_moments(autoencoder: Any, images: Tensor) -> Tensor:
    """Encode images ``[B, 3, H, W]`` in [-1, 1] to unscaled latents, float32, on the images' device.

    Returns:
        ``[B, 2C, h, w]``, mean and log variance, from a variational autoencoder; otherwise ``[B, C, h, w]``.
    """
    with torch.inference_mode():
        encoded = autoencoder.encode(images.to(autoencoder.device, autoencoder.dtype))
        if hasattr(encoded, "latents"):
            moments = encoded.latents
        else:
            moments = torch.cat([encoded.latent_dist.mean, encoded.latent_dist.logvar], dim=1)
    return moments.float()


def decode_latents(decoder: Any, latents: Tensor, batch_size: int = 4) -> Tensor:
    """Decode scaled latents ``[B, C, h, w]`` to images ``[B, 3, H, W]`` in [-1, 1] on the CPU.

    ``batch_size`` latents are decoded at a time: the decoder's feature maps at full resolution take much memory.
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
