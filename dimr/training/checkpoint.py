"""A run's whole state in one file, written at once or not at all."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.weights import CheckpointError, read_state_dict
from ..distributed import Processes
from ..model.config import DiMRConfig
from ..utils import first_line, replacing
from .loop import Trainer
from .recipe import TrainingSettings

FORMAT = "dimr-training-state-1"
PARTS = {
    "step": int, "settings": dict, "config": dict, "device": str, "model": dict, "ema": dict, "optimizer": dict,
    "generator": Tensor, "losses": Tensor, "data": dict,
}  # fmt: skip


def save_training_state(path: str | os.PathLike[str], trainer: Trainer) -> dict[str, Any]:
    """Replace the file by the run's state now. All processes must call it; the first one writes.

    Returns:
        The state.

    Raises:
        DivergedError: the run has diverged; the file keeps the last good state.
        CheckpointError: it cannot be written, say for want of space; the file keeps what it had.
    """
    trainer.check_finite()
    state = trainer.state_dict()
    on_first_process(trainer.processes, lambda: write_state(path, {"format": FORMAT, **state}))
    return state


def on_first_process(processes: Processes, write: Callable[[], object]) -> None:
    """Run ``write`` in the first process; that it failed is a CheckpointError in all."""
    failed = processes.first_does(write, CheckpointError, OSError)
    if failed is not None:
        raise CheckpointError(failed)


def write_state(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """The file is there, whole and on the disk, or as before."""
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch hides the file's own error behind one of its
        raise CheckpointError(f"{path} cannot be written: {_reason(error, Path(path))}") from error


def _reason(error: BaseException, path: Path) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    reason = (cause and cause.strerror) or first_line(cause or error)
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(path.parent).free
        return f"{reason} ({free / 2**20:.0f} MiB are free there)"
    return reason


def load_training_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``Trainer.load_state_dict`` takes, on the CPU. Runs no code that the file may hold.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or something else.
    """
    state: dict[str, Any] = read_state_dict(path)
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a training state of the format {FORMAT}")
    for key, kind in PARTS.items():
        if not isinstance(state.get(key), kind):
            raise CheckpointError(f"{path}: {key} must be a {kind.__name__}, found {type(state.get(key)).__name__}")
    try:
        DiMRConfig.from_dict(state["config"])
        TrainingSettings.from_dict(state["settings"])
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return state


# A run's last few states.


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
