"""Published checkpoint file <-> safetensors folder."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..config import DiMRConfig
from .errors import CheckpointError
from .folder import load_model, save_model, write_atomically
from .official import load_official_checkpoint, to_official_state_dict


def convert_to_folder(
    source: str | os.PathLike[str], folder: str | os.PathLike[str], config_or_name: DiMRConfig | str
) -> Path:
    """A published ``.pth`` or ``.safetensors`` file becomes a folder that :func:`load_model` reads."""
    return save_model(load_official_checkpoint(source, config_or_name), folder)


def convert_to_published(folder: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """A folder becomes one file under the published names, ``.pth`` or ``.safetensors`` by ``target``'s suffix.

    There and back changes no tensor, but for the rounding of ``(w - 1) + 1`` to float32 in the gates' weights.
    """
    from safetensors.torch import save_file

    target = Path(target)
    writers = {".pth": torch.save, ".pt": torch.save, ".safetensors": save_file}
    if target.suffix not in writers:
        raise CheckpointError(f"{target} must end in {', '.join(writers)}")
    state = to_official_state_dict(load_model(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, lambda path: writers[target.suffix](state, path))
    return target
