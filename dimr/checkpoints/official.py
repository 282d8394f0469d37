"""Loading a published checkpoint, and giving a model's weights back under the published names."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from ..config import DiMRConfig
from ..network import DiMR, without_weights
from ..variants import model_config
from .errors import check_keys, check_weights
from .names import Entry, entries
from .reading import read_state_dict


def load_official_checkpoint(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Tensor], config_or_name: DiMRConfig | str
) -> DiMR:
    """A model with published weights.

    Args:
        path_or_state_dict: a ``.pth`` file (read with ``weights_only=True``), a ``.safetensors`` file, or the state
            dict itself, under the published names.
        config_or_name: the model's configuration, or a name from :func:`dimr.list_models`.

    Returns:
        The model on the CPU, in float32, in evaluation mode.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: an unreadable file, or keys that are missing, unexpected or misshapen, by name.
    """
    config = model_config(config_or_name) if isinstance(config_or_name, str) else config_or_name
    if isinstance(path_or_state_dict, Mapping):
        state, source = path_or_state_dict, "state dict"
    else:
        state, source = read_state_dict(path_or_state_dict), os.fspath(path_or_state_dict)
    weights = from_official_state_dict(state, config, source)
    model = without_weights(config)
    model.load_state_dict(weights, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_()
    return model.eval()


def official_shapes(config: DiMRConfig) -> dict[str, tuple[int, ...]]:
    """Published name -> shape, for this model."""
    return {name: entry.published_shape for entry in entries(config) for name in entry.published}


def from_official_state_dict(
    state: Mapping[str, Tensor], config: DiMRConfig, source: str = "state dict"
) -> dict[str, Tensor]:
    """Published names to this package's, float32 and freshly allocated."""
    check_weights(state, source)
    check_keys({name: tuple(v.shape) for name, v in state.items()}, official_shapes(config), source)
    return {entry.ours: _to_ours(entry, state) for entry in entries(config)}


def to_official_state_dict(model: DiMR) -> dict[str, Tensor]:
    """The model's weights under the published names, float32, on the CPU."""
    state = model.state_dict()
    published: dict[str, Tensor] = {}
    for entry in entries(model.config):
        value = state[entry.ours].detach().to("cpu", torch.float32)
        parts = (value - entry.offset if entry.offset else value).chunk(len(entry.published))
        for name, part in zip(entry.published, parts, strict=True):
            published[name] = part.reshape(entry.published_shape).clone()
    return published


def _to_ours(entry: Entry, state: Mapping[str, Tensor]) -> Tensor:
    value = torch.cat([state[name].to("cpu", torch.float32) for name in entry.published])
    return (value + entry.offset if entry.offset else value).reshape(entry.shape)
