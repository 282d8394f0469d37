"""Time-dependent norms as modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ... import checks
from ...conditioning import current_timestep
from . import functional as F


def _width(module: str, normalized_shape: int | Sequence[int]) -> int:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if len(shape) != 1 or shape[0] < 1:
        raise ValueError(f"{module}: normalized_shape must be one positive width, got {normalized_shape!r}")
    return shape[0]


class TDNormParameters(nn.Module):
    """Parameters that both norms share: ``p1, p2 [D]`` and the gates' weights and offsets, ``[D]`` or ``[1]``."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float,
        shift: bool,
        gate: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        checks.check_choice(name, "gate", gate, ("channel", "scalar"))
        D = _width(name, normalized_shape)
        gate_width = D if gate == "channel" else 1
        self.normalized_shape = (D,)
        self.eps = eps
        self.gate = gate

        def parameter(width: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(width, device=device, dtype=dtype))

        self.p1, self.p2 = parameter(D), parameter(D)
        self.p3: nn.Parameter | None = parameter(D) if shift else None
        self.p4: nn.Parameter | None = parameter(D) if shift else None
        self.scale_gate_weight, self.scale_gate_offset = parameter(gate_width), parameter(gate_width)
        self.shift_gate_weight: nn.Parameter | None = parameter(gate_width) if shift else None
        self.shift_gate_offset: nn.Parameter | None = parameter(gate_width) if shift else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale 1 and shift 0 at every timestep; the gates open with the timestep (w = 1, o = 0)."""
        ones = (self.p1, self.p2, self.scale_gate_weight, self.shift_gate_weight)
        zeros = (self.p3, self.p4, self.scale_gate_offset, self.shift_gate_offset)
        for value, parameters in ((1.0, ones), (0.0, zeros)):
            for parameter in parameters:
                if parameter is not None:
                    nn.init.constant_(parameter, value)

    def _take(self, weight: Tensor | None, bias: Tensor | None) -> None:
        """Start from the scale and shift of a norm without a timestep."""
        with torch.no_grad():
            for parameters, source in (((self.p1, self.p2), weight), ((self.p3, self.p4), bias)):
                for parameter in parameters:
                    if parameter is not None and source is not None:
                        parameter.copy_(source)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, gate={self.gate!r}"


class TDLayerNorm(TDNormParameters):
    """Time-dependent layer norm (DiMR eq. (4) and (5)); see :func:`dimr_kernels.functional.td_layer_norm`.

    Args:
        normalized_shape: the width D, an int or a sequence of one (more than one dimension is refused).
        eps: inside the root, added to the variance.
        bias: whether there is a shift (``p3``, ``p4`` and their gate).
        gate: "channel" has one gate per channel (the released models), "scalar" one for all (the paper's eq. (5)).

    Shape: ``x [B, ..., D]``, ``t [B]``, ``[1]``, ``[]`` or a float -> ``[B, ..., D]``; with ``residual`` (x's shape)
    the pair ``(norm(x + residual), x + residual)``. ``t=None`` takes the value of
    :func:`dimr_kernels.time_conditioning`. A new module computes ``nn.LayerNorm(D)`` at every timestep.

    Example:
        >>> norm = TDLayerNorm(8)
        >>> x, t = torch.randn(2, 5, 8), torch.tensor([-0.5, 1.0])
        >>> torch.allclose(norm(x, t), nn.functional.layer_norm(x, (8,)), atol=1e-6)
        True
        >>> y, total = norm(x, t, residual=x)
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        bias: bool = True,
        gate: str = "channel",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, bias, gate, device, dtype)

    @classmethod
    def from_layer_norm(cls, norm: nn.LayerNorm, gate: str = "channel") -> TDLayerNorm:
        """The same function at every timestep until trained: both ends take the weight and bias (copies)."""
        like = norm.weight
        module = cls(
            norm.normalized_shape,
            eps=norm.eps,
            bias=norm.bias is not None,
            gate=gate,
            device=None if like is None else like.device,
            dtype=None if like is None else like.dtype,
        )
        module._take(norm.weight, norm.bias)
        return module.train(norm.training)

    def forward(
        self, x: Tensor, t: Tensor | float | None = None, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if t is None:
            t = current_timestep("TDLayerNorm")
        return F.td_layer_norm(
            x, t, self.p1, self.p2, self.p3, self.p4, self.scale_gate_weight, self.scale_gate_offset,
            self.shift_gate_weight, self.shift_gate_offset, self.eps, residual,
        )  # fmt: skip


class TDRMSNorm(TDNormParameters):
    """Time-dependent RMS norm, ``gamma(t) x / (rms + eps)``; see :func:`dimr_kernels.functional.td_rms_norm`.

    Args:
        normalized_shape: the width D, an int or a sequence of one (more than one dimension is refused).
        eps: outside the root, added to the root mean square.
        gate: "channel" has one gate per channel (the released models), "scalar" one for all.

    Shape: as :class:`TDLayerNorm`.

    Example:
        >>> TDRMSNorm(2)(torch.tensor([[3.0, 4.0]]), 0.5)
        tensor([[0.8485, 1.1314]], grad_fn=...)
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-8,
        gate: str = "channel",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, False, gate, device, dtype)

    @classmethod
    def from_rms_norm(cls, norm: nn.RMSNorm, gate: str = "channel", eps: float | None = None) -> TDRMSNorm:
        """Start from torch's RMS norm, whose eps lies inside the root: ``x / sqrt(mean(x^2) + eps)``.

        The two agree exactly for ``norm.eps == 0`` only; for any other, giving ``eps`` (of the new norm) accepts that
        they differ, noticeably where ``mean(x^2)`` is not far above ``norm.eps``.

        Raises:
            ValueError: ``norm.eps`` is not 0 and no ``eps`` was given.
        """
        if eps is None:
            if norm.eps != 0:
                raise ValueError(
                    f"TDRMSNorm.from_rms_norm: norm has eps={norm.eps} inside the root, which TDRMSNorm does not "
                    f"have; give eps= (outside the root) to accept the difference"
                )
            eps = 0.0
        like = norm.weight
        module = cls(
            norm.normalized_shape,
            eps=eps,
            gate=gate,
            device=None if like is None else like.device,
            dtype=None if like is None else like.dtype,
        )
        module._take(norm.weight, None)
        return module.train(norm.training)

    def forward(
        self, x: Tensor, t: Tensor | float | None = None, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if t is None:
            t = current_timestep("TDRMSNorm")
        return F.td_rms_norm(x, t, self.p1, self.p2, self.scale_gate_weight, self.scale_gate_offset, self.eps, residual)


TRITON_MODULES = (TDLayerNorm, TDRMSNorm)
