"""diffusers' autoencoders, small enough to run in milliseconds."""

from __future__ import annotations

from typing import Any

import torch

SIZE = 16  # width of their images


def tiny_autoencoder(kind: str, latent_channels: int = 4) -> Any:
    """Make an ``AutoencoderKL`` or ``AutoencoderTiny`` that halves the images' size."""
    import diffusers

    torch.manual_seed(0)
    if kind == "AutoencoderTiny":
        return diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), latent_channels=latent_channels,
        )  # fmt: skip
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=latent_channels, sample_size=SIZE,
    )  # fmt: skip
