"""The operators as modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import functional as F
from .conditioning import current_timestep
from .norms import TDLayerNorm


def _is_plain_linear(module: nn.Module) -> bool:
    """Whether a call is its weight and bias and nothing else: no adapter in its place, no hook that waits for it."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) is nn.Linear and not any(hooks)


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
        proj = self.proj
        if _is_plain_linear(proj):
            return F.geglu_linear(x, proj.weight, proj.bias, self.approximate, self.gate)
        return F.geglu(proj(x), approximate=self.approximate, gate=self.gate)

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
        return F.pixel_shuffle_td_norm_add(
            self.proj(self.norm_in(x, t)), y, t, self.upscale_factor, norm.p1, norm.p2, norm.p3, norm.p4,
            norm.scale_gate_weight, norm.scale_gate_offset, norm.shift_gate_weight, norm.shift_gate_offset, norm.eps,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"upscale_factor={self.upscale_factor}"


class DepthwiseConv2d(nn.Module):
    """Depthwise convolution of channels-last feature maps, stride 1, same padding, with an optional residual.

    Args:
        channels: C.
        kernel_size: 3, 5 or 7.
        bias: whether there is one.

    The parameters have the names, shapes and initial distribution of ``nn.Conv2d(C, C, K, padding=K // 2, groups=C)``,
    so that its state dict loads.

    Shape: ``[B, H, W, C]`` -> ``[B, H, W, C]``; ``residual``, of the same shape, is added to the result.
    """

    def __init__(self, channels: int, kernel_size: int = 7, bias: bool = True) -> None:
        super().__init__()
        if kernel_size not in (3, 5, 7):
            raise ValueError(f"DepthwiseConv2d: kernel_size must be 3, 5 or 7, got {kernel_size!r}")
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel_size, kernel_size))
        self.bias: nn.Parameter | None = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.weight[0].numel() ** -0.5  # torch's Conv2d: Kaiming with a = sqrt(5), fan in K * K
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return F.depthwise_conv2d(x, self.weight, self.bias, residual)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, kernel_size={self.weight.shape[-1]}, bias={self.bias is not None}"
