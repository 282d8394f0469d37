"""The multi-resolution network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .branches import ConvNeXtBranch, make_first_branch
from .config import DiMRConfig
from .initialization import initialize
from .inputs import as_timestep, check_class_labels, check_image
from .recomputation import check_mode


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
                CPU only (see ``dimr.inputs``).
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
