"""Weights to sample or to start from: of a run, raw or averaged, of a model's folder, or of a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..checkpoints.weights import (
    PUBLISHED_AVERAGE,
    CheckpointError,
    read_config,
    read_state_dict,
    weights_file,
)
from ..checkpoints.wrappers import unwrapped
from ..model.config import DiMRConfig
from ..utils import read_json, write_json
from .checkpoint import FORMAT, CheckpointFolder, check_training_state
from .ema import initial_share
from .recipe import WEIGHTS, TrainingSettings

ABOUT = "weights.json"  # in the folder of a run's model
PUBLISHED = {"ema": PUBLISHED_AVERAGE, "raw": "nnet.pth"}  # in a folder STEP.ckpt of the published code
MUCH = 0.1


class SavedWeights(NamedTuple):
    """A set of weights on disk.

    Attributes:
        tensors: by published names or our own.
        config: None where the file does not say it.
        file: the file that the tensors were read from.
        kind: "ema" or "raw"; None where that is unknown.
        step: number of steps of training; None where that is unknown.
        initial_share: share of the average that is the weights which training began with; 0 for raw weights.
    """

    tensors: dict[str, Tensor]
    config: DiMRConfig | None
    file: Path
    kind: str | None = None
    step: int | None = None
    initial_share: float = 0.0

    def describe(self) -> str:
        """Say what the weights are, such as ``the average after 300 steps in run/checkpoints/step-00000300.pt``."""
        kind = {"ema": "the average", "raw": "the raw weights", None: "the weights"}[self.kind]
        return f"{kind}{'' if self.step is None else f' after {self.step} steps'} in {self.file}"

    def warning(self) -> str | None:
        """Say how much of an average is still the weights that training began with, if it is much."""
        if self.initial_share < MUCH:
            return None
        return (
            f"{self.describe()}: {self.initial_share:.1%} of it is still what training began with; "
            f"--weights raw on the run's folder takes the weights of the last step"
        )


def is_run(folder: Path) -> bool:
    """Tell whether it is the folder of a run with checkpoints."""
    return CheckpointFolder(folder / "checkpoints").newest is not None


def read_weights(
    path: str | os.PathLike[str], kind: str | None = None, step: int | None = None, key: str | None = None
) -> SavedWeights:
    """Read the weights at ``path``.

    Args:
        path: the folder of a run; a file of its checkpoints; a model's folder; a folder ``STEP.ckpt`` of the published
            code; or a ``.pth``, ``.pt`` or ``.safetensors`` file or the index of several.
        kind: "ema" (the default) for the average, "raw" for the weights themselves, where there are both.
        step: the checkpoint of a run's folder to read; None for the newest.
        key: the set of weights in a file that holds several.

    Raises:
        FileNotFoundError, CheckpointError: there is nothing that can be read, or no choice as asked for.
    """
    path = Path(path)
    if path.is_dir() and is_run(path):
        folder = CheckpointFolder(path / "checkpoints")
        found = folder.newest if step is None else folder.at(step)
        assert found is not None  # as it is a run
        return _of_state(read_state_dict(found), found, kind)
    if step is not None:
        raise CheckpointError(f"--step: {path} is not the folder of a run, which has checkpoints to choose from")
    if (path / PUBLISHED_AVERAGE).is_file():
        kind = kind or "ema"
        file = path / PUBLISHED[kind]
        return SavedWeights(unwrapped(read_state_dict(file), str(file), key), None, file, kind)
    if path.is_dir():
        return _of_folder(path, kind)
    state = read_state_dict(path)
    if state.get("format") == FORMAT:
        return _of_state(state, path, kind)
    if kind is not None:
        raise CheckpointError(f"--weights: {path} is not of a run; --key names one of several sets of weights in it")
    return SavedWeights(unwrapped(state, str(path), key), None, path)


def _of_state(state: dict[str, Any], file: Path, kind: str | None) -> SavedWeights:
    check_training_state(state, file)
    config, step = DiMRConfig.from_dict(state["config"]), state["step"]
    if kind == "raw":
        return SavedWeights(state["model"], config, file, "raw", step)
    settings, ema = TrainingSettings.from_dict(state["settings"]), state["ema"]
    try:
        share = initial_share(ema, settings.ema_decay, settings.ema_ramp)
        return SavedWeights(dict(ema["averages"]), config, file, "ema", step, share)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: the average is damaged: {type(error).__name__}: {error}") from error


def _of_folder(folder: Path, kind: str | None) -> SavedWeights:
    config, file = read_config(folder), weights_file(folder)
    about = read_about(folder)
    found = about.get("weights")
    if kind not in (None, found):
        holds = "the average only" if found == "ema" else "one set of weights only"
        raise CheckpointError(f"--weights {kind}: {folder} holds {holds}; give the folder of its run")
    return SavedWeights(read_state_dict(file), config, file, found, about.get("step"), about.get("initial_share", 0.0))


def write_about(folder: Path, kind: str, step: int, initial_share: float) -> None:
    """Write beside a run's model which of the run's weights it has."""
    write_json(folder / ABOUT, {"weights": kind, "step": step, "initial_share": initial_share})


def read_about(folder: Path) -> dict[str, Any]:
    """Read what :func:`write_about` wrote; nothing where there is no such file.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not (folder / ABOUT).is_file():
        return {}
    try:
        about = read_json(folder / ABOUT)
        fits = about["weights"] in WEIGHTS and type(about["step"]) is int and 0 <= about["initial_share"] <= 1
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / ABOUT} cannot be read: {type(error).__name__}: {error}") from error
    if not fits:
        raise CheckpointError(f"{folder / ABOUT}: wanted weights, step and initial_share, found {about}")
    return about
