"""The time-dependent group norm as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import checks
from ...conditioning import current_timestep
from ..td_norm.module import TDNormParameters
from .functional import check_groups, td_group_norm


class TDGroupNorm(TDNormParameters):
    """Time-dependent group norm; see :func:`dimr_kernels.functional.td_group_norm`.

    Args:
        num_groups: must divide ``num_channels``.
        num_channels: C.
        eps: inside the root, added to the variance.
        bias: whether there is a shift (``p3``, ``p4`` and their gate).
        gate: "channel" has one gate per channel, "scalar" one for all.
        layout: "nhwc" takes ``[B, ..., C]``; "nchw" takes torch's ``[B, C, ...]``, which costs nothing where it lies
            channels last in memory and a copy where it does not.

    Shape: ``x``'s; ``t [B]``, ``[1]``, ``[]`` or a float; ``t=None`` takes the value of
    :func:`dimr_kernels.time_conditioning`. A new module computes ``nn.GroupNorm(num_groups, num_channels)`` at every
    timestep.

    Example:
        >>> norm = TDGroupNorm.from_group_norm(nn.GroupNorm(2, 8))  # takes [B, C, H, W] as that does
        >>> x = torch.randn(2, 8, 4, 4)
        >>> torch.allclose(norm(x, 0.5), nn.functional.group_norm(x, 2), atol=1e-6)
        True
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        bias: bool = True,
        gate: str = "channel",
        layout: str = "nhwc",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_channels, eps, bias, gate, device, dtype)
        check_groups("TDGroupNorm", num_groups, num_channels)
        checks.check_choice("TDGroupNorm", "layout", layout, ("nhwc", "nchw"))
        self.num_groups = num_groups
        self.layout = layout

    @classmethod
    def from_group_norm(cls, norm: nn.GroupNorm, gate: str = "channel", layout: str = "nchw") -> TDGroupNorm:
        """The same function at every timestep until trained: both ends take the weight and bias (copies)."""
        like = norm.weight
        device, dtype = (None, None) if like is None else (like.device, like.dtype)
        module = cls(norm.num_groups, norm.num_channels, norm.eps, norm.bias is not None, gate, layout, device, dtype)
        module._take(norm.weight, norm.bias)
        return module.train(norm.training)

    def forward(self, x: Tensor, t: Tensor | float | None = None) -> Tensor:
        if t is None:
            t = current_timestep("TDGroupNorm")
        y = td_group_norm(
            x.movedim(1, -1) if self.layout == "nchw" else x, t, self.num_groups, self.p1, self.p2, self.p3, self.p4,
            self.scale_gate_weight, self.scale_gate_offset, self.shift_gate_weight, self.shift_gate_offset, self.eps,
        )  # fmt: skip
        return y.movedim(-1, 1) if self.layout == "nchw" else y

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {super().extra_repr()}, layout={self.layout!r}"


TRITON_MODULES = (TDGroupNorm,)
