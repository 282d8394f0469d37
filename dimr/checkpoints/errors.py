"""What is wrong with a checkpoint, in one message that names the keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

NAMES_SHOWN = 10


class CheckpointError(ValueError):
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
