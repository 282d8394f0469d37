"""A look at the averaged model while it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..guidance import Guidance
from ..images import SHOWN_CHANNELS, save_image, tile
from ..sampling import sample
from .loop import Trainer
from .recipe import RunSettings
from .tables import RecipeError


class SampleGrids:
    """Grids ``FOLDER/step-00001000.png``, a row to each class, all from the same noise."""

    def __init__(self, folder: Path, trainer: Trainer, settings: RunSettings) -> None:
        self.folder = folder
        self.trainer = trainer
        self.settings = settings
        config = trainer.model.config
        self.decoder: Any = None
        if settings.sample_every and config.in_channels not in SHOWN_CHANNELS:
            if not settings.decoder:
                raise RecipeError("run.sample_every: this model makes latents; set run.decoder, or sample_every = 0")
            from ..autoencoder import load_autoencoder

            self.decoder = load_autoencoder(settings.decoder, trainer.model.device)
        if settings.sample_every and settings.sample_guidance > 0 and not config.unconditional_class:
            raise RecipeError("run.sample_guidance: this model has no unconditional class; set it to 0")

    def after_step(self, step: int) -> None:
        """All processes draw the same, for a sharded model needs them all; the first writes."""
        if not self.settings.sample_every or step % self.settings.sample_every:
            return
        settings, model = self.settings, self.trainer.model
        config = model.config
        classes = min(settings.sample_classes, config.num_classes)
        labels = torch.arange(classes).repeat_interleave(settings.sample_columns)
        generator = torch.Generator().manual_seed(self.trainer.settings.seed)
        shape = (len(labels), config.in_channels, config.input_size, config.input_size)
        noise = torch.randn(shape, generator=generator)
        scale = settings.sample_guidance
        guidance = Guidance("constant", scale) if scale > 0 else None
        with self.trainer.ema.applied():
            images = sample(model, labels, noise, settings.sample_steps, guidance=guidance)
        if not self.trainer.processes.first:
            return
        if self.decoder is not None:
            from ..decoding import decode_latents

            images = decode_latents(self.decoder, images)
        save_image(self.folder / f"step-{step:08d}.png", tile(images, settings.sample_columns))
