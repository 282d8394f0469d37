"""Gated MLPs as modules."""

from __future__ import annotations

from torch import Tensor, nn

from ...plain import is_plain_linear
from ..geglu.functional import geglu
from .functional import geglu_linear


def project_and_gate(proj: nn.Module, x: Tensor, approximate: str, gate: str) -> Tensor:
    """``geglu(proj(x))``; a plain linear layer is part of the operator, any other projection is called."""
    if is_plain_linear(proj):
        return geglu_linear(x, proj.weight, proj.bias, approximate, gate)  # type: ignore[arg-type]
    return geglu(proj(x), approximate=approximate, gate=gate)


class GEGLU(nn.Module):
    """Projection and gate: ``gelu(x W_gate + b_gate) * (x W_value + b_value)``, one matrix product for both.

    Args:
        dim_in: width of the input.
        dim_out: width of the output; the projection is twice as wide.
        bias: whether the projection has one.
        approximate: "none" (exact erf) or "tanh".
        gate: which half of the projection is the gate, "first" or "last" (other projects' order).

    Shape: ``[..., dim_in]`` -> ``[..., dim_out]``.

    Example:
        >>> import torch
        >>> GEGLU(8, 16)(torch.randn(4, 8)).shape
        torch.Size([4, 16])
    """

    def __init__(
        self, dim_in: int, dim_out: int, bias: bool = True, approximate: str = "none", gate: str = "first"
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out, bias=bias)
        self.approximate = approximate
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return project_and_gate(self.proj, x, self.approximate, self.gate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}, gate={self.gate!r}"


class GEGLUMLP(nn.Module):
    """:class:`GEGLU` and the projection back: ``[..., dim]`` -> ``[..., dim]`` through ``hidden_dim``.

    Example:
        >>> import torch
        >>> GEGLUMLP(8, hidden_dim=16)(torch.randn(4, 8)).shape
        torch.Size([4, 8])
    """

    def __init__(self, dim: int, hidden_dim: int, bias: bool = True, approximate: str = "none") -> None:
        super().__init__()
        self.geglu = GEGLU(dim, hidden_dim, bias=bias, approximate=approximate)
        self.out = nn.Linear(hidden_dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.geglu(x))


TRITON_MODULES = (GEGLU,)
