"""Scalars of a run, for whatever shows them."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch

from ..diffusion.guidance import Guidance
from ..diffusion.sample import sample
from ..images import SHOWN_CHANNELS, save_image, tile
from ..utils import require
from .loop import Trainer
from .recipe import RecipeError, RunSettings

logger = logging.getLogger(__name__)


class ScalarLog:
    """Writes the first process's scalars every ``every`` steps; does nothing in the others.

    Args:
        tensorboard: for TensorBoard, in ``folder``, where it is installed.
        wandb: to Weights & Biases, under the run's settings ``described``.

    Raises:
        MissingPackageError: wandb is asked for and not installed.
    """

    def __init__(
        self, folder: Path, trainer: Trainer, every: int, tensorboard: bool, wandb: bool, described: dict[str, Any]
    ) -> None:
        self.trainer = trainer
        self.every = every
        first = trainer.processes.first
        self._tensorboard = _writer(folder, trainer.step) if tensorboard and first else None
        self._wandb = None
        if wandb and first:
            module = require("wandb", None, "run.wandb = true")
            self._wandb = module.init(dir=str(folder.parent), config=described, resume="allow")
        self._began, self._counted = time.perf_counter(), trainer.step

    @property
    def active(self) -> bool:
        return self._tensorboard is not None or self._wandb is not None

    def after_step(self, step: int) -> None:
        if not self.active or step % self.every:
            return
        values = self._values(step)
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def _values(self, step: int) -> dict[str, float]:
        """Waits for the device."""
        trainer = self.trainer
        losses = trainer.losses[max(0, step - self.every) : step].mean(dim=0).tolist()
        values = {
            f"loss/{size}x{size}": loss
            for size, loss in zip(trainer.model.config.prediction_sizes, losses, strict=True)
        }
        values["gradient norm"] = trainer.gradient_norm.item()
        values["learning rate"] = trainer.learning_rate
        now = time.perf_counter()
        done = (step - self._counted) * trainer.settings.batch_size
        values["images per second"] = done / (now - self._began)
        self._began, self._counted = now, step
        return values

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _writer(folder: Path, step: int) -> Any:
    """Of TensorBoard; what it has of later steps, from a run that was cut off, no longer counts."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("TensorBoard is not installed; no scalars are written for it")
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


# A look at the averaged model while it is trained.


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
            from ..sampling.autoencoder import load_autoencoder

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
            from ..sampling.autoencoder import decode_latents

            images = decode_latents(self.decoder, images)
        save_image(self.folder / f"step-{step:08d}.png", tile(images, settings.sample_columns))
