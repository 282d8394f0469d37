"""Reading a state dict from a file that may be truncated, foreign or hostile."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..utils import UserError, first_line, require

# What is wrong with a checkpoint, in one message that names the keys.


NAMES_SHOWN = 10


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be read or does not fit the model."""


def check_weights(state: Mapping[str, object], source: str) -> None:
    """Raise a :class:`CheckpointError` for a value that is no plain floating-point tensor."""
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{source}: {name} must be a floating-point tensor, got {type(value).__name__}")
        if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
            found = f"a {value.dtype} tensor ({value.layout}, {value.device})"
            raise CheckpointError(f"{source}: {name} must be a floating-point tensor with data, got {found}")


def check_keys(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], source: str = "checkpoint"
) -> None:
    """Compare names and shapes; raise one :class:`CheckpointError` that lists everything that does not fit."""
    misshapen = [
        f"{key} (found {list(found[key])}, wanted {list(shape)})"
        for key, shape in wanted.items()
        if key in found and tuple(found[key]) != tuple(shape)
    ]
    problems = {
        "missing": [key for key in wanted if key not in found],
        "unexpected": [key for key in found if key not in wanted],
        "misshapen": misshapen,
    }
    lines = [f"{len(names)} {kind}: {shortened(names)}" for kind, names in problems.items() if names]
    if lines:
        raise CheckpointError(f"{source} does not fit the model: " + "; ".join(lines))


def shortened(names: Sequence[str]) -> str:
    """The names, the tail of a long list as a count."""
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown}, and {len(names) - NAMES_SHOWN} more"


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
