"""Monitoring of a run: scalars for TensorBoard and Weights & Biases, and grids of samples."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

import torch

from ..diffusion.sample import Guidance, sample
from ..images import SHOWN_CHANNELS, save_image, tile
from ..utils import require
from .loop import Trainer
from .recipe import RecipeError, RunSettings

logger = logging.getLogger(__name__)


class ScalarLog:
    """Writer of scalars every ``settings.log_every`` steps, on rank 0 only.

    Args:
        folder: folder of TensorBoard's files.
        recipe: configuration of the run for Weights & Biases.

    Raises:
        MissingPackageError: the settings ask for wandb, which is not installed.
    """

    def __init__(self, folder: Path, trainer: Trainer, settings: RunSettings, recipe: dict[str, Any]) -> None:
        self.trainer = trainer
        self.every = settings.log_every
        self._tensorboard = self._wandb = None
        if settings.tensorboard and trainer.processes.is_main:
            self._tensorboard = _tensorboard_writer(folder, trainer.step)
        if settings.wandb and trainer.processes.is_main:
            wandb: Any = require("wandb", None, "run.wandb = true")
            self._wandb = wandb.init(dir=str(folder.parent), config=recipe, resume="allow")
        self._last_time, self._last_step = time.perf_counter(), trainer.step

    def after_step(self, step: int) -> None:
        if (self._tensorboard is None and self._wandb is None) or step % self.every:
            return
        values = self._values(step)
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def _values(self, step: int) -> dict[str, float]:
        """Compute the scalars since the last time. Waits for the device."""
        trainer = self.trainer
        losses = trainer.losses[max(0, step - self.every) : step].mean(dim=0).tolist()
        values = {
            f"loss/{size}x{size}": loss
            for size, loss in zip(trainer.model.config.prediction_sizes, losses, strict=True)
        }
        values["gradient norm"] = trainer.gradient_norm.item()
        values["learning rate"] = trainer.learning_rate
        now = time.perf_counter()
        images = (step - self._last_step) * trainer.settings.batch_size
        values["images per second"] = images / (now - self._last_time)
        self._last_time, self._last_step = now, step
        return values

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _tensorboard_writer(folder: Path, step: int) -> Any:
    """Open TensorBoard's writer, and discard what an interrupted run wrote for later steps."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("TensorBoard is not installed; no scalars are written for it")
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


class SampleGrids:
    """Grids of samples from the averaged model or the model itself, ``FOLDER/step-00001000.png``, one row per class.

    Every grid starts from the same noise.

    Raises:
        RecipeError: the settings do not fit the model.
    """

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
        """Draw on all ranks, because a sharded model needs them all, and write on rank 0."""
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
        with self.trainer.ema.applied() if settings.sample_weights == "ema" else contextlib.nullcontext():
            images = sample(model, labels, noise, settings.sample_steps, guidance=guidance)
        if not self.trainer.processes.is_main:
            return
        if self.decoder is not None:
            from ..sampling.autoencoder import decode_latents

            images = decode_latents(self.decoder, images)
        save_image(self.folder / f"step-{step:08d}.png", tile(images, settings.sample_columns))
