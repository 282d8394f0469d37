"""The operators as modules."""

from __future__ import annotations

from torch import Tensor, nn

from . import functional as F
from .ops.shuffle_norm_add.eager import pixel_shuffle_nhwc


class GEGLU(nn.Module):
    """Projection and gate: ``gelu(x W_gate + b_gate) * (x W_value + b_value)``, one matrix product for both.

    Args:
        dim_in: width of the input.
        dim_out: width of the output; the projection is twice as wide.
        bias: whether the projection has one.
        approximate: "none" (exact erf) or "tanh".
        gate: which half of the projection is the gate, "first" or "last" (other projects' order).

    Shape: ``[..., dim_in]`` -> ``[..., dim_out]``.
    """

    def __init__(
        self, dim_in: int, dim_out: int, bias: bool = True, approximate: str = "none", gate: str = "first"
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out, bias=bias)
        self.approximate = approximate
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return F.geglu(self.proj(x), approximate=self.approximate, gate=self.gate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}, gate={self.gate!r}"


class GEGLUMLP(nn.Module):
    """:class:`GEGLU` and the projection back: ``[..., dim]`` -> ``[..., dim]`` through ``hidden_dim``."""

    def __init__(self, dim: int, hidden_dim: int, bias: bool = True, approximate: str = "none") -> None:
        super().__init__()
        self.geglu = GEGLU(dim, hidden_dim, bias=bias, approximate=approximate)
        self.out = nn.Linear(hidden_dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.geglu(x))


class PixelShuffleUpsample(nn.Module):
    """The cascade's way up (DiMR eq. (2)): ``y + TDLN(shuffle(Linear(TDLN(x))))``.

    Args:
        dim_in: width of ``x``, the lower branch's features.
        dim_out: width of ``y`` and of the result.
        upscale_factor: ``r``; the linear layer gives ``r * r * dim_out`` channels in ``(r, r, C)`` order.

    Shape: ``x [B, H, W, dim_in]``, ``y [B, r*H, r*W, dim_out]`` -> ``[B, r*H, r*W, dim_out]``; ``t`` as in
    :class:`TDLayerNorm`.
    """

    def __init__(self, dim_in: int, dim_out: int, upscale_factor: int = 2) -> None:
        super().__init__()
        self.upscale_factor = upscale_factor
        self.norm_in = TDLayerNorm(dim_in)
        self.proj = nn.Linear(dim_in, upscale_factor * upscale_factor * dim_out)
        self.norm_out = TDLayerNorm(dim_out)

    def forward(self, x: Tensor, y: Tensor, t: Tensor | float | None = None) -> Tensor:
        h = self.proj(self.norm_in(x, t))
        return y + self.norm_out(pixel_shuffle_nhwc(h, self.upscale_factor), t)

    def extra_repr(self) -> str:
        return f"upscale_factor={self.upscale_factor}"
