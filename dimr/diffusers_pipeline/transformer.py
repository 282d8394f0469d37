"""The network as a model of diffusers."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from ..checkpoints.weights import CheckpointError, loadable_weights
from ..model.config import DiMRConfig
from ..model.network import (
    DiMR,
    as_timestep,
    check_class_labels,
    check_image,
    initialize,
    make_branches,
    run_branches,
    set_checkpointing,
    without_weights,
)


@dataclasses.dataclass
class DiMRTransformer2DModelOutput(BaseOutput):
    """``sample [B, C, S, S]`` is the noise prediction; ``predictions`` has all resolutions, lowest first."""

    sample: Tensor
    predictions: tuple[Tensor, ...] = None  # type: ignore[assignment]  # so that a dictionary makes one, as in copies


class DiMRTransformer2DModel(ModelMixin, ConfigMixin):  # type: ignore[misc]  # both declare config_name
    """:class:`dimr.DiMR` with the saving, loading and calling conventions of diffusers' models.

    Parameters have the same names, so that weights files serve both. The arguments are
    :class:`~dimr.DiMRConfig`'s fields, and so are their errors. ``torch_dtype`` may be bfloat16 or float16: norms
    compute their statistics, gates and scale in float32 whatever the dtype of their parameters.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns: Any = ("embed", "norm", "time_")
    _no_split_modules: Any = (
        "TransformerBlock", "ConvNeXtBlock", "AdaLNZeroTransformerBlock", "AdaLNZeroConvNeXtBlock",
        "PatchEmbedding", "NoiseHead", "PatchHead", "PixelShuffleUpsample", "PlainUpsample", "ConcatUpsample",
    )  # fmt: skip

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        input_size: int = 32,
        dims: tuple[int, ...] = (960, 480),
        layers: tuple[int, ...] = (39, 20),
        num_heads: int = 16,
        num_classes: int = 1000,
        unconditional_class: bool = True,
        kernel_size: int = 7,
        mlp_ratio: float = 2,
        norm: str = "td_rms",
        modulation: str = "linear",
        mlp: str = "geglu",
        first_branch: str = "transformer",
        cascade: str = "add",
        branch_skips: bool = True,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        self.architecture = DiMRConfig.from_dict({k: v for k, v in self.config.items() if not k.startswith("_")})
        self.branches = make_branches(self.architecture)
        self._checkpointing = "none"
        initialize(self)

    @classmethod
    def from_dimr(cls, model: DiMR) -> DiMRTransformer2DModel:
        """Wrap ``model``; both share their parameters."""
        with torch.device("meta"):
            made = cls(**model.config.to_dict())
        made.branches = model.branches
        return made.train(model.training)

    def to_dimr(self) -> DiMR:
        """Return the :class:`dimr.DiMR` with the same parameters, the inverse of :meth:`from_dimr`."""
        model = without_weights(self.architecture)
        model.branches = self.branches
        return model.train(self.training)

    @functools.wraps(ModelMixin.save_pretrained, assigned=())  # pipelines look for its parameters
    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], *arguments: Any, **options: Any
    ) -> None:
        """Save as diffusers does.

        Raises:
            CheckpointError: the weights would not load again (see :func:`dimr.save_model`), or have adapters or
                parametrizations, which :func:`dimr.save_model` merges and diffusers would write as they are.
        """
        if loadable_weights(self.to_dimr()).keys() != self.state_dict().keys():
            raise CheckpointError(
                "this model has adapters or parametrizations, which from_pretrained would not find: merge them, or "
                "save to_dimr() by dimr.save_model, which merges them"
            )
        super().save_pretrained(save_directory, *arguments, **options)

    def set_checkpointing(self, mode: str) -> DiMRTransformer2DModel:
        """See :meth:`dimr.DiMR.set_checkpointing`; :meth:`enable_gradient_checkpointing` sets "blocks"."""
        set_checkpointing(self.branches, mode)
        self._checkpointing = mode
        return self

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self._checkpointing != "none"

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Any] | None = None) -> None:
        """Keep the input of each block and recompute the block in the backward.

        Raises:
            ValueError: ``gradient_checkpointing_func`` is given; the model has its own.
        """
        if gradient_checkpointing_func is not None:
            raise ValueError("gradient_checkpointing_func cannot be chosen; set_checkpointing(mode) has what there is")
        self.set_checkpointing("blocks")

    def disable_gradient_checkpointing(self) -> None:
        self.set_checkpointing("none")

    def forward(
        self, hidden_states: Tensor, timestep: Tensor | float, class_labels: Tensor, return_dict: bool = True
    ) -> DiMRTransformer2DModelOutput | tuple[Tensor, tuple[Tensor, ...]]:
        """Predict the noise.

        Args:
            hidden_states: ``[B, C, S, S]`` noised images or latents in the model's dtype.
            timestep: 0 to 999, as diffusers' schedulers count; one less than for :class:`dimr.DiMR`. ``[B]``, or
                ``[1]``, a scalar tensor or a number for the whole batch.
            class_labels: ``[B]`` int64 or int32; the unconditional class, where there is one, is ``num_classes``.
            return_dict: False for the plain tuple ``(sample, predictions)``.

        Raises:
            ValueError, TypeError: see :meth:`dimr.DiMR.forward`.
        """
        config, device = self.architecture, hidden_states.device
        first: Any = self.branches[0]
        check_image(config, hidden_states, first.embed.position.dtype, device)
        check_class_labels(config, class_labels, hidden_states.shape[0], device)
        step = as_timestep(timestep + 1, hidden_states.shape[0], device)
        predictions = run_branches(self.branches, hidden_states, step, class_labels)
        if not return_dict:
            return predictions[-1], predictions
        return DiMRTransformer2DModelOutput(sample=predictions[-1], predictions=predictions)
