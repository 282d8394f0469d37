"""What transformer blocks with adaLN-Zero (DiT, Peebles and Xie 2023) compute once TD-LN is in its place.

What stays of the modulation are the two gates (alpha) that scale what a block adds to its stream.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.td_norm.module import TDLayerNorm
from ..scoped import ScopedValue
from .swap import Adopted

model_timestep: ScopedValue[Tensor | None] = ScopedValue("dimr_kernels_model_timestep", None)

TIME_ARGUMENTS = ("t", "timestep", "timesteps")


class FittedTDLayerNorm(TDLayerNorm):
    """TD-LN that knows which timesteps of its model are ``t = -1`` and ``t = 1``."""

    time_range = (0.0, 1000.0)

    def time(self, timestep: Tensor) -> Tensor:
        low, high = self.time_range
        return (timestep.to(torch.promote_types(timestep.dtype, torch.float32)) - low) * (2 / (high - low)) - 1

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, time_range={self.time_range}"


class TimedModel(Adopted):
    """A model whose blocks are told the conditioning alone: its forward keeps the timestep for them."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        timestep = args[1] if len(args) > 1 else next((kwargs[name] for name in TIME_ARGUMENTS if name in kwargs), None)
        with model_timestep.set_to(timestep):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


class TDBlock(Adopted):
    """``block(x [B, L, D], c [B, width])`` of the published DiT code."""

    norm1: Any
    norm2: Any
    attn: Any
    mlp: Any
    adaLN_modulation: Any

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        timestep = model_timestep.get()
        if timestep is None:
            raise ValueError(
                f"{type(self).__name__}: no timestep: the model's forward keeps it, so call the model (when "
                f"checkpointed blocks run again for the backward, that forward has ended)"
            )
        t = self.norm1.time(timestep)
        alpha1, alpha2 = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        h, x = self.norm2(alpha1 * self.attn(self.norm1(x, t)), t, residual=x)
        return x + alpha2 * self.mlp(h)


class TDDiffusersBlock(Adopted):
    """diffusers' ``BasicTransformerBlock`` with ``norm_type="ada_norm_zero"`` and self-attention only."""

    norm1: Any
    norm3: Any
    attn1: Any
    ff: Any

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        ada = self.norm1
        c = ada.emb(timestep, class_labels, hidden_dtype=hidden_states.dtype)
        alpha1, alpha2 = ada.linear(ada.silu(c))[:, None].chunk(2, dim=-1)
        t = ada.norm.time(timestep)
        h = self.attn1(ada.norm(hidden_states, t), attention_mask=attention_mask, **(cross_attention_kwargs or {}))
        h, hidden_states = self.norm3(alpha1 * h, t, residual=hidden_states)
        return hidden_states + alpha2 * self.ff(h)
