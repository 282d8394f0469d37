"""A run's whole state in one file, written at once or not at all."""

from __future__ import annotations

import os
from typing import Any

import torch

from ..checkpoints.errors import CheckpointError
from ..checkpoints.reading import read_state_dict
from ..files import replacing
from .loop import Trainer

FORMAT = "dimr-training-state-1"


def save_training_state(path: str | os.PathLike[str], trainer: Trainer) -> None:
    """Replace the file by the run's state now.

    Raises:
        DivergedError: the run has diverged; the file keeps the last good state.
    """
    trainer.check_finite()
    with replacing(path) as temporary:
        torch.save({"format": FORMAT, **trainer.state_dict()}, temporary)


def load_training_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``Trainer.load_state_dict`` takes, on the CPU. Runs no code that the file may hold.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or something else.
    """
    state: dict[str, Any] = read_state_dict(path)
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a training state of the format {FORMAT}")
    return state
