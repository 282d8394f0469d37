"""The cascade's way up as a module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...conditioning import current_timestep
from ..td_norm.module import TDLayerNorm
from .functional import pixel_shuffle_td_norm_add


class PixelShuffleUpsample(nn.Module):
    """The cascade's way up (DiMR eq. (2)): ``y + TDLN(shuffle(Linear(TDLN(x))))``.

    Args:
        dim_in: width of ``x``, the lower branch's features.
        dim_out: width of ``y`` and of the result.
        upscale_factor: ``r``; the linear layer gives ``r * r * dim_out`` channels in ``(r, r, C)`` order.

    Shape: ``x [B, H, W, dim_in]``, ``y [B, r*H, r*W, dim_out]`` -> ``[B, r*H, r*W, dim_out]``; ``t`` as in
    :class:`TDLayerNorm`.

    ``norm_out`` is part of one fused operator, which reads its parameters: hooks on it do not run.

    Example:
        >>> import torch
        >>> upsample = PixelShuffleUpsample(dim_in=32, dim_out=8)
        >>> upsample(torch.randn(1, 2, 2, 32), torch.randn(1, 4, 4, 8), t=0.5).shape
        torch.Size([1, 4, 4, 8])
    """

    def __init__(self, dim_in: int, dim_out: int, upscale_factor: int = 2) -> None:
        super().__init__()
        if upscale_factor < 1:
            raise ValueError(f"PixelShuffleUpsample: upscale_factor must be at least 1, got {upscale_factor}")
        self.upscale_factor = upscale_factor
        self.norm_in = TDLayerNorm(dim_in)
        self.proj = nn.Linear(dim_in, upscale_factor * upscale_factor * dim_out)
        self.norm_out = TDLayerNorm(dim_out)

    def forward(self, x: Tensor, y: Tensor, t: Tensor | float | None = None) -> Tensor:
        if t is None:
            t = current_timestep("PixelShuffleUpsample")
        norm: Any = self.norm_out  # which has a shift, so none of its parameters is missing
        return pixel_shuffle_td_norm_add(
            self.proj(self.norm_in(x, t)), y, t, self.upscale_factor, norm.p1, norm.p2, norm.p3, norm.p4,
            norm.scale_gate_weight, norm.scale_gate_offset, norm.shift_gate_weight, norm.shift_gate_offset, norm.eps,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"upscale_factor={self.upscale_factor}"


TRITON_MODULES = (PixelShuffleUpsample,)
