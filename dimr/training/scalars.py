"""Scalars of a run, for whatever shows them."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from ..optional import require
from .loop import Trainer

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
