"""Checks of a forward's arguments.

Shapes and dtypes are checked everywhere. Values (class ids, timesteps) are checked where that costs nothing: on CPU
tensors and Python numbers, outside torch.compile. On a GPU reading them would stop the host until the device has
caught up; there the embedding's own device assertion catches a class id out of range.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dimr_kernels.checks import can_read_values

from .config import DiMRConfig

LAST_TIMESTEP = 1000


def check_image(config: DiMRConfig, x: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a Tensor, got {type(x).__name__}")
    C, S = config.in_channels, config.input_size
    if x.dim() != 4 or tuple(x.shape[1:]) != (C, S, S):
        raise ValueError(f"x must have shape [B, {C}, {S}, {S}], got {list(x.shape)}")
    if x.device != device:
        raise ValueError(f"x is on {x.device}, the model is on {device}")
    if x.dtype != dtype and not (x.is_floating_point() and torch.is_autocast_enabled(device.type)):
        raise TypeError(f"x must have the model's dtype {dtype} (or run under autocast), got {x.dtype}")


def check_class_labels(config: DiMRConfig, class_labels: Tensor, batch: int, device: torch.device) -> None:
    if not isinstance(class_labels, Tensor):
        raise TypeError(f"class_labels must be a Tensor, got {type(class_labels).__name__}")
    if class_labels.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"class_labels must have dtype int64 or int32, got {class_labels.dtype}")
    if tuple(class_labels.shape) != (batch,):
        raise ValueError(f"class_labels must have shape [{batch}], one per sample, got {list(class_labels.shape)}")
    if class_labels.device != device:
        raise ValueError(f"class_labels is on {class_labels.device}, the model is on {device}")
    if batch == 0 or not can_read_values(class_labels):
        return
    low, high = int(class_labels.min()), int(class_labels.max())
    if low < 0 or high >= config.num_embeddings:
        raise ValueError(f"class_labels must be in [0, {config.num_embeddings - 1}], got {low if low < 0 else high}")


def as_timestep(timestep: Tensor | float, batch: int, device: torch.device) -> Tensor:
    """The timesteps as a float32 tensor ``[B]`` or ``[1]`` on the model's device, checked to be in (0, 1000]."""
    if isinstance(timestep, (int, float)) and not isinstance(timestep, bool):
        if not 0 < timestep <= LAST_TIMESTEP:  # NaN fails too
            raise ValueError(f"timestep must be in (0, {LAST_TIMESTEP}], got {timestep}")
        return torch.full((1,), float(timestep), device=device)
    if not isinstance(timestep, Tensor) or timestep.dtype == torch.bool:
        raise TypeError(f"timestep must be a number or a Tensor of numbers, got {timestep!r}")
    if timestep.dim() > 1 or timestep.numel() not in (1, batch):
        raise ValueError(f"timestep must be a scalar or have shape [1] or [{batch}], got {list(timestep.shape)}")
    if timestep.device != device and timestep.device.type != "cpu":
        raise ValueError(f"timestep is on {timestep.device}, the model is on {device}")
    if can_read_values(timestep):
        for value in timestep.reshape(-1).tolist():
            if math.isnan(value) or not 0 < value <= LAST_TIMESTEP:
                raise ValueError(f"timestep must be in (0, {LAST_TIMESTEP}], got {value}")
    return timestep.reshape(-1).to(device=device, dtype=torch.float32)
