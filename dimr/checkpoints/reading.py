"""Reading a state dict from a file that may be truncated, foreign or hostile."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..messages import first_line
from ..optional import require
from .errors import CheckpointError


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file or of anything ``torch.save`` wrote, on the CPU.

    Nothing in the file is executed (``weights_only=True``).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state dict of named tensors")
    return dict(state)


def require_safetensors() -> ModuleType:
    """The package with its ``torch`` module."""
    require("safetensors.torch", "demo", "a .safetensors checkpoint")
    return require("safetensors", "demo", "a .safetensors checkpoint")


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    safetensors = require_safetensors()
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # its own, and others where the header's values are not what they should be
        raise CheckpointError(f"{path} is not a whole safetensors file: {first_line(error)}") from error


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage surfaces anywhere in the unpickler
        foreign = re.search(r"GLOBAL (\S+)", str(error))  # torch advises to load it without restraint
        advice = "Weights only" in str(error)
        reason = "it is something else" if advice else f"{type(error).__name__}: {first_line(error)}"
        if foreign:
            reason = f"it holds {foreign[1]}"
        raise CheckpointError(f"{path} is not a whole file of tensors written by torch.save: {reason}") from error
