"""Published checkpoint file <-> safetensors folder."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..model.config import DiMRConfig
from ..model.network import DiMR
from ..utils import replacing
from .folder import load_model, save_model
from .official import load_official_checkpoint, to_official_state_dict
from .reading import CheckpointError, require_safetensors

SUFFIXES = (".pth", ".pt", ".safetensors")


def convert_to_folder(
    source: str | os.PathLike[str], folder: str | os.PathLike[str], config_or_name: DiMRConfig | str
) -> Path:
    """A published ``.pth`` or ``.safetensors`` file becomes a folder that :func:`load_model` reads."""
    return save_model(load_official_checkpoint(source, config_or_name), folder)


def convert_to_published(folder: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """A folder becomes one file under the published names, ``.pth`` or ``.safetensors`` by ``target``'s suffix.

    There and back changes no tensor, but for the rounding of ``(w - 1) + 1`` to float32 in the gates' weights.
    """
    target = Path(target)
    if target.suffix not in SUFFIXES:
        raise CheckpointError(f"{target} must end in {', '.join(SUFFIXES)}")
    return publish(load_model(folder), target)


def publish(model: DiMR, target: Path) -> Path:
    """:func:`convert_to_published` of a model, to one of ``SUFFIXES``."""
    write = require_safetensors().torch.save_file if target.suffix == ".safetensors" else torch.save
    state = to_official_state_dict(model)
    with replacing(target) as temporary:
        write(state, temporary)
    return target
