"""Training states: the whole state of a run in one file, and the folder that keeps the last few of them."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.weights import CheckpointError, read_state_dict
from ..model.config import DiMRConfig
from ..utils import first_line, replacing
from .loop import Trainer
from .recipe import TrainingSettings

FORMAT = "dimr-training-state-1"
PARTS = {
    "step": int, "settings": dict, "config": dict, "device": str, "model": dict, "ema": dict, "optimizer": dict,
    "generator": Tensor, "losses": Tensor, "data": dict,
}  # fmt: skip
SET_ASIDE = "diverged-"
NAME = re.compile(r"step-(\d{8,})\.pt")

logger = logging.getLogger(__name__)


def save_training_state(path: str | os.PathLike[str], trainer: Trainer) -> dict[str, Any]:
    """Replace the file by the run's present state. All ranks must call it; rank 0 writes.

    Returns:
        The state.

    Raises:
        DivergedError: the run has diverged; the file keeps the last good state.
        CheckpointError: the file cannot be written, for example because the disk is full; it keeps its old content.
    """
    trainer.check_finite()
    state = trainer.state_dict()
    trainer.processes.run_on_main(lambda: _write(Path(path), {"format": FORMAT, **state}), CheckpointError)
    return state


def _write(path: Path, state: dict[str, Any]) -> None:
    """Write the file and flush it to the disk. After an error the old file is unchanged."""
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch wraps the file's own error in a RuntimeError
        raise CheckpointError(f"{path} cannot be written: {_write_failure(error, path)}") from error


def _write_failure(error: BaseException, path: Path) -> str:
    """Describe the operating system's error behind ``error``, and the free space."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    reason = (cause and cause.strerror) or first_line(cause or error)
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(path.parent).free
        return f"{reason} ({free / 2**20:.0f} MiB are free there)"
    return reason


def load_training_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a state for ``Trainer.load_state_dict``, on the CPU. Code in the file is not run.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged or is no training state.
    """
    state: dict[str, Any] = read_state_dict(path)
    check_training_state(state, path)
    return state


def check_training_state(state: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Raise a CheckpointError if the content of the file ``path`` is not a training state."""
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


class CheckpointFolder:
    """A run's newest ``keep`` states, in files named ``step-00001000.pt``. Only complete files get such a name.

    While the run lasts, at least two are kept: that the newest can be trained on shows at the step after it.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = Path(folder)
        self.keep = keep

    def by_step(self) -> dict[int, Path]:
        """List the files by their number of steps, oldest first."""
        if not self.folder.is_dir():
            return {}
        steps = {int(match[1]): path for path in self.folder.iterdir() if (match := NAME.fullmatch(path.name))}
        return dict(sorted(steps.items()))

    def paths(self) -> list[Path]:
        """List the files, oldest first."""
        return list(self.by_step().values())

    @property
    def newest(self) -> Path | None:
        return next(reversed(self.paths()), None)

    def at(self, step: int) -> Path:
        """Return the file of a number of steps.

        Raises:
            CheckpointError: there is none; the message lists those that are there.
        """
        there = self.by_step()
        if step not in there:
            steps = ", ".join(map(str, there)) or "none"
            raise CheckpointError(f"{self.folder} has no checkpoint of step {step}; there are: {steps}")
        return there[step]

    def save(self, trainer: Trainer) -> dict[str, Any]:
        """Write the state, then delete the oldest ones. All ranks must call it.

        Returns:
            The state.

        Raises:
            DivergedError, CheckpointError: nothing was written, and nothing was deleted.
        """
        state = save_training_state(self.folder / f"step-{trainer.step:08d}.pt", trainer)
        if trainer.processes.is_main:
            self.prune(max(self.keep, 2))
        return state

    def prune(self, keep: int) -> None:
        """Delete all but the newest states."""
        for path in self.paths()[:-keep]:
            path.unlink(missing_ok=True)

    def load(self, step: int | None = None) -> dict[str, Any] | None:
        """Read the state of a step or, if None, the newest that is not damaged; None if the folder has no states.

        Raises:
            CheckpointError: there is none of that step, or it is damaged, or all of them are.
        """
        if step is not None:
            return load_training_state(self.at(step))
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

    def remove_partial_files(self) -> None:
        """Delete the files that interrupted writes left."""
        for path in self.folder.glob(".step-*.partial.pt"):
            path.unlink(missing_ok=True)

    def set_aside(self, step: int) -> None:
        """Rename the state of ``step``, if there is one, so that it is not gone on from. One before it is deleted."""
        path = self.by_step().get(step)
        if path is None:
            return
        self._delete_set_aside()
        renamed = path.rename(path.with_name(f"{SET_ASIDE}{step:08d}.pt"))
        logger.warning("the gradients of the step after %s are not finite: it is now %s", path, renamed.name)

    def _delete_set_aside(self) -> None:
        for path in self.folder.glob(f"{SET_ASIDE}*.pt"):
            path.unlink()

    def clear(self, after: int = -1) -> list[int]:
        """Delete the states of more than ``after`` steps and one set aside, and return their numbers of steps."""
        self._delete_set_aside()
        later = {step: path for step, path in self.by_step().items() if step > after}
        for path in later.values():
            path.unlink()
        return list(later)
