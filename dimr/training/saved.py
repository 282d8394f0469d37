"""Weights to sample or to start from: of a run, raw or averaged, of a model's folder, or of a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..checkpoints.weights import PUBLISHED, CheckpointError, SavedWeights, read_model_folder, read_state_dict
from ..checkpoints.wrappers import unwrapped
from ..model.config import DiMRConfig
from .checkpoint import FORMAT, CheckpointFolder, check_training_state
from .ema import initial_share
from .recipe import TrainingSettings


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
    if (path / PUBLISHED["ema"]).is_file():
        kind = kind or "ema"
        file = path / PUBLISHED[kind]
        return SavedWeights(unwrapped(read_state_dict(file), str(file), key), None, file, kind)
    if path.is_dir():
        return read_model_folder(path, kind)
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
