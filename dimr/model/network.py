"""Checks of a forward's arguments.

Shapes and dtypes are checked everywhere. Values (class ids, timesteps) are checked where that costs nothing: on CPU
tensors and Python numbers, outside torch.compile. On a GPU reading them would stop the host until the device has
caught up; there the embedding's own device assertion catches a class id out of range.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dimr_kernels.checks import can_read_values

from .config import DiMRConfig
from .layers import ConvNeXtBranch, Modulation, NoiseHead, PatchEmbedding, PatchHead, check_mode, make_first_branch

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


# How a model starts when it is trained from scratch.


STD = 0.02


def initialize(model: nn.Module) -> None:
    """Truncated normal weights and zero biases, as in vision transformers and ConvNeXt; the prediction starts at zero.

    The norms keep their own start. Depthwise convolutions keep torch's: with only ``K * K`` inputs to each output,
    weights of 0.02 would hardly mix neighbours.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=STD)
        elif isinstance(module, PatchEmbedding):
            nn.init.trunc_normal_(module.position, std=STD)
        elif isinstance(module, (NoiseHead, PatchHead)):
            for parameter in module.conv.parameters():
                nn.init.zeros_(parameter)
    for module in model.modules():
        if isinstance(module, Modulation):
            module.start_at_zero()  # after its linear layers' own start above


# The multi-resolution network.


class DiMR(nn.Module):
    """Predicts the noise in ``x`` at every resolution (paper, section 3).

    The branches run from the lowest resolution, a transformer, to the input's own; each hands its features on to the
    next. Parameters are float32 at first; :meth:`to` and autocast work as for any module.
    """

    def __init__(self, config: DiMRConfig) -> None:
        super().__init__()
        if not isinstance(config, DiMRConfig):
            raise TypeError(f"config must be a DiMRConfig, got {type(config).__name__}")
        self.config = config
        self.branches = make_branches(config)
        initialize(self)

    def set_checkpointing(self, mode: str) -> DiMR:
        """What training keeps of the forward for the backward; results and gradients stay the same.

        Args:
            mode: "none" keeps everything (the start). "blocks" keeps the input of each block and runs the block again
                in the backward. "selective" keeps the results of matrix products, attention and convolutions, and
                computes norms, GeGLU products and concatenations again. Counted from shapes, a batch of 64 of XL/2R
                (bfloat16 autocast, fused operators) holds 33.0, 2.6 and 22.7 GiB.

        Returns:
            The model itself.

        Raises:
            ValueError: another mode.
        """
        set_checkpointing(self.branches, mode)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, x: Tensor, timestep: Tensor | float, class_labels: Tensor) -> tuple[Tensor, ...]:
        """Noise predictions, lowest resolution first.

        Args:
            x: ``[B, C, S, S]`` noised images or latents.
            timestep: in (0, 1000]; ``[B]``, or ``[1]``, a scalar tensor or a number for the whole batch.
            class_labels: ``[B]`` int64 or int32; the unconditional class, where there is one, is ``num_classes``.

        Returns:
            One ``[B, C, s, s]`` per branch, ``s`` from ``config.prediction_sizes``.

        Raises:
            ValueError, TypeError: an argument's shape, dtype, device or value does not fit. Values are checked on the
                CPU only (see ``dimr.model.network``).
        """
        check_image(self.config, x, self.dtype, self.device)
        check_class_labels(self.config, class_labels, x.shape[0], self.device)
        return run_branches(self.branches, x, as_timestep(timestep, x.shape[0], self.device), class_labels)


def without_weights(config: DiMRConfig) -> DiMR:
    """The model on the meta device: shapes and names, to count or to be given weights."""
    with torch.device("meta"):
        return DiMR(config)


def make_branches(config: DiMRConfig) -> nn.ModuleList:
    """The whole of a model's parameters, lowest resolution first."""
    higher = (ConvNeXtBranch(config, i) for i in range(1, config.num_branches))
    return nn.ModuleList([make_first_branch(config), *higher])


def run_branches(branches: nn.ModuleList, x: Tensor, timestep: Tensor, class_labels: Tensor) -> tuple[Tensor, ...]:
    """:meth:`DiMR.forward` of arguments that have been checked; ``timestep [B]`` or ``[1]``, float32."""
    t = timestep / 500 - 1  # what the norms see, in (-1, 1]
    prediction, features = branches[0](x, t, class_labels)
    predictions = [prediction]
    for branch in branches[1:]:  # type: ignore[attr-defined]
        prediction, features = branch(x, t, features)
        predictions.append(prediction)
    return tuple(predictions)


def set_checkpointing(branches: nn.ModuleList, mode: str) -> None:
    """See :meth:`DiMR.set_checkpointing`."""
    check_mode(mode)
    for branch in branches:
        branch.checkpointing = mode  # type: ignore[assignment]
