"""A model as a folder: ``model.safetensors`` and ``config.json``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..model.config import DiMRConfig
from ..model.network import DiMR, without_weights
from ..utils import first_line, read_json, replacing, write_json
from .reading import CheckpointError, check_keys, check_weights, read_state_dict, require_safetensors

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def save_model(model: DiMR, folder: str | os.PathLike[str]) -> Path:
    """Write the model's weights, in their own dtypes, and its configuration. Existing files are replaced whole.

    Example:
        >>> import tempfile, dimr
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = dimr.save_model(dimr.create_model("dimr-tiny-3r"), folder)
        ...     dimr.load_model(folder).config.dims
        (96, 48, 24)
    """
    return write_model(model.state_dict(), model.config, folder)


def write_model(weights: Mapping[str, Tensor], config: DiMRConfig, folder: str | os.PathLike[str]) -> Path:
    """:func:`save_model` of weights by name."""
    safetensors = require_safetensors()
    folder = Path(folder)
    tensors = {name: value.detach().contiguous() for name, value in weights.items()}
    try:
        with replacing(folder / WEIGHTS) as temporary:
            safetensors.torch.save_file(tensors, temporary)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be written: {error}") from error
    write_json(folder / CONFIG, config.to_dict())
    return folder


def load_model(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> DiMR:
    """The model that :func:`save_model` wrote, in evaluation mode.

    Raises:
        FileNotFoundError: the folder or one of its two files is missing.
        CheckpointError: a file is damaged, or weights and configuration do not fit each other.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    weights = read_state_dict(folder / WEIGHTS)
    model = _empty_model(config, folder / CONFIG)
    check_weights(weights, str(folder / WEIGHTS))
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    check_keys({name: tuple(v.shape) for name, v in weights.items()}, wanted, str(folder / WEIGHTS))
    model.load_state_dict(weights, assign=True)
    return model.to(device).eval()


def _empty_model(config: DiMRConfig, path: Path) -> DiMR:
    try:
        return without_weights(config)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:  # sizes whose product is no 64-bit number
        raise CheckpointError(f"{path} describes a model that no memory can hold: {first_line(error)}") from error


def _hint(folder: Path) -> str:
    """Where a run's output keeps its model, if that is what was named."""
    found = [folder / name for name in ("model", "checkpoint") if (folder / name / CONFIG).is_file()]
    return f"; did you mean {found[0]}?" if found else ""


def _read_config(path: Path) -> DiMRConfig:
    if not path.is_file():
        raise FileNotFoundError(f"no configuration at {path}{_hint(path.parent)}")
    try:
        values = read_json(path)
        if not isinstance(values, dict):
            raise TypeError(f"wanted an object, got {type(values).__name__}")
        return DiMRConfig.from_dict(values)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not a DiMR configuration: {error}") from error
