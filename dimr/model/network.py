"""The multi-resolution network: the branches in order, their initialisation, and the checks of arguments."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dimr_kernels.checks import FLOATING, can_read_values, is_call_modified

from .config import DiMRConfig
from .layers import (
    ConvNeXtBranch,
    Modulation,
    NoiseHead,
    PatchEmbedding,
    PatchHead,
    check_checkpointing,
    make_first_branch,
)

LAST_TIMESTEP = 1000
STD = 0.02  # of initial weights


class DiMR(nn.Module):
    """Predict the noise in ``x`` at every resolution (paper, section 3).

    The branches run from the lowest resolution, a transformer, to the input's own, and each passes its features on to
    the next. Parameters are float32 at first; :meth:`to` and autocast work as for any module.
    """

    def __init__(self, config: DiMRConfig) -> None:
        super().__init__()
        if not isinstance(config, DiMRConfig):
            raise TypeError(f"config must be a DiMRConfig, got {type(config).__name__}")
        self.config = config
        self.branches = make_branches(config)
        initialize(self)

    def set_checkpointing(self, mode: str) -> DiMR:
        """Set what training keeps of the forward for the backward. Results and gradients stay the same.

        Args:
            mode: "none" (the default) keeps everything. "blocks" keeps the input of each block and recomputes the
                block in the backward. "selective" keeps the results of matrix products, attention and convolutions,
                and recomputes norms, GeGLU products and concatenations. Computed from shapes, a batch of 64 of XL/2R
                (bfloat16 autocast, fused operators) holds 33.0, 2.6 and 22.7 GiB.

        Returns:
            The model itself.

        Raises:
            ValueError: an unknown mode.
        """
        set_checkpointing(self.branches, mode)
        return self

    @property
    def device(self) -> torch.device:
        """The device of the weights; for an offloaded model, whose weights hooks bring in, that of its calls."""
        device = next(self.parameters()).device
        return offloaded_device(self) or device if device.type == "meta" else device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights; quantised integers, of which other libraries make parameters, do not count."""
        return next(p.dtype for p in self.parameters() if p.dtype in FLOATING)

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
                CPU only, outside torch.compile.
        """
        device = device_of_call(self, x)
        check_image(self.config, x, self.dtype, device)
        check_class_labels(self.config, class_labels, x.shape[0], device)
        return run_branches(self.branches, x, as_timestep(timestep, x.shape[0], device), class_labels)


def without_weights(config: DiMRConfig) -> DiMR:
    """Build the model on the meta device: it has names and shapes, and can be counted or loaded with weights."""
    with torch.device("meta"):
        return DiMR(config)


def make_branches(config: DiMRConfig) -> nn.ModuleList:
    """Build the branches, lowest resolution first. They hold all of a model's parameters."""
    higher = (ConvNeXtBranch(config, i) for i in range(1, config.num_branches))
    return nn.ModuleList([make_first_branch(config), *higher])


def run_branches(branches: nn.ModuleList, x: Tensor, timestep: Tensor, class_labels: Tensor) -> tuple[Tensor, ...]:
    """Compute :meth:`DiMR.forward` from checked arguments; ``timestep [B]`` or ``[1]``, float32."""
    t = timestep / 500 - 1  # the norms' time, in (-1, 1]
    prediction, features = branches[0](x, t, class_labels)
    predictions = [prediction]
    for branch in branches[1:]:  # type: ignore[attr-defined]
        prediction, features = branch(x, t, features)
        predictions.append(prediction)
    return tuple(predictions)


def set_checkpointing(branches: nn.ModuleList, mode: str) -> None:
    """Set the activation checkpointing of every branch; see :meth:`DiMR.set_checkpointing`."""
    check_checkpointing(mode)
    for branch in branches:
        branch.checkpointing = mode  # type: ignore[assignment]


def initialize(model: nn.Module) -> None:
    """Initialise for training from scratch: truncated normal weights and zero biases, and a prediction of zero.

    This is the initialisation of vision transformers and ConvNeXt. Norms keep their own. Depthwise convolutions keep
    torch's, because with only ``K * K`` inputs to each output, weights of 0.02 would hardly mix neighbours.
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
            module.init_zero()  # overrides the linear layers' weights set above


# Offloading
#
# Hooks of accelerate or diffusers bring weights to the device of computation while a module is called. Between calls
# the weights are on another device, or on the meta device.


def offloaded_device(model: nn.Module) -> torch.device | None:
    """Return the device that accelerate's hooks compute on; None if the model has none."""
    for module in model.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.empty(0, device=device).device  # accelerate names a GPU by its number
    return None


def device_of_call(model: DiMR, x: object) -> torch.device:
    """Return the device that arguments must be on: x's own where hooks may bring the weights there."""
    device = model.device
    if isinstance(x, Tensor) and x.device != device and any(map(is_call_modified, model.branches.modules())):
        return x.device
    return device


# Checks of arguments
#
# Shapes and dtypes are always checked. Values (class ids, timesteps) are checked only where reading them does not
# synchronise: on CPU tensors and Python numbers, outside torch.compile. On a GPU, the embedding's device assertion
# catches a class id out of range.


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
    """Convert to a float32 tensor ``[B]`` or ``[1]`` on the model's device; values must be in (0, 1000]."""
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
