"""A run's last few states."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from ..checkpoints.errors import CheckpointError
from .checkpoint import load_training_state, save_training_state
from .loop import Trainer

logger = logging.getLogger(__name__)

NAME = re.compile(r"step-(\d{8,})\.pt")


class CheckpointFolder:
    """States under the names ``step-00001000.pt``, which only whole files get. The newest ``keep`` stay."""

    def __init__(self, folder: str | os.PathLike[str], keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = Path(folder)
        self.keep = keep

    def paths(self) -> list[Path]:
        """Oldest first."""
        if not self.folder.is_dir():
            return []
        steps = {int(match[1]): path for path in self.folder.iterdir() if (match := NAME.fullmatch(path.name))}
        return [steps[step] for step in sorted(steps)]

    @property
    def newest(self) -> Path | None:
        return next(reversed(self.paths()), None)

    def save(self, trainer: Trainer) -> dict[str, Any]:
        """Write the state, then let go of the oldest. All processes must call it.

        Returns:
            The state.

        Raises:
            DivergedError, CheckpointError: nothing was written, and all that was there still is.
        """
        state = save_training_state(self.folder / f"step-{trainer.step:08d}.pt", trainer)
        if trainer.processes.first:
            for path in self.paths()[: -self.keep]:
                path.unlink(missing_ok=True)
        return state

    def load(self) -> dict[str, Any] | None:
        """The newest state, or an older one if that is damaged; None if there is none.

        Raises:
            CheckpointError: all are damaged.
        """
        damage: CheckpointError | None = None
        for path in reversed(self.paths()):
            try:
                return load_training_state(path)
            except CheckpointError as error:
                logger.warning("%s; trying the one before", error)
                damage = damage or error
        if damage is not None:
            raise damage
        return None

    def remove_leftovers(self) -> None:
        """Delete what interrupted writes left."""
        for path in self.folder.glob(".step-*.partial.pt"):
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        for path in self.paths():
            path.unlink()
