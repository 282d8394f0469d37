"""The public function: checks, and which form runs."""

from __future__ import annotations

from torch import Tensor

from ... import checks, time_checks
from ...dispatch import choose
from . import eager, op

FUSED_FORMS = {"td_group_norm": "triton"}


def td_group_norm(
    x: Tensor,
    t: Tensor | float,
    num_groups: int,
    p1: Tensor,
    p2: Tensor,
    p3: Tensor | None,
    p4: Tensor | None,
    scale_gate_weight: Tensor,
    scale_gate_offset: Tensor,
    shift_gate_weight: Tensor | None,
    shift_gate_offset: Tensor | None,
    eps: float = 1e-5,
) -> Tensor:
    """Time-dependent group norm of a channels-last feature map: ``GN(x) * gamma(t) + beta(t)``.

    Mean and variance are those of a sample's group of channels over all its pixels (Wu and He 2018); the scale and
    shift of every channel follow the timestep as in :func:`dimr_kernels.functional.td_layer_norm`.

    Args:
        x: ``[B, ..., C]``, ``[B, H, W, C]`` for an image.
        t, p1, p2, p3, p4, the gates: as for :func:`~dimr_kernels.functional.td_layer_norm`, of width C.
        num_groups: must divide C; a group is ``C / num_groups`` neighbouring channels.
        eps: added to the variance.

    Returns:
        x's shape and dtype. Statistics are float32 (float64 for float64 inputs).

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit, or ``t`` is NaN.
        BackendError: the implementation asked for cannot run (see :func:`dimr_kernels.use_backend`).

    Example:
        >>> import torch
        >>> x, one, zero = torch.randn(2, 4, 4, 8), torch.ones(8), torch.zeros(8)
        >>> td_group_norm(x, 0.5, 2, one, one, zero, zero, one, zero, one, zero).shape
        torch.Size([2, 4, 4, 8])
    """
    operator = "td_group_norm"
    checks.check_floating(operator, x=x)
    checks.check_number(operator, "eps", eps)
    if x.dim() < 2 or x.shape[-1] == 0:
        raise ValueError(f"{operator}: x must have shape [B, ..., C] with C >= 1, got {list(x.shape)}")
    C = x.shape[-1]
    check_groups(operator, num_groups, C)
    gates = (p1, p2, p3, p4, scale_gate_weight, scale_gate_offset, shift_gate_weight, shift_gate_offset)
    time_checks.check_gates(operator, C, x.device, gates)
    t = time_checks.as_timesteps(operator, t, x)
    if choose(operator, x, "triton") == "eager":
        return eager.td_group_norm(x, t, num_groups, *gates, eps)
    return op.td_group_norm(x, t, num_groups, *gates, eps)[0]


def check_groups(operator: str, num_groups: int, channels: int) -> None:
    """A whole number of channels to each group."""
    if not isinstance(num_groups, int) or num_groups < 1 or channels % num_groups:
        raise ValueError(f"{operator}: num_groups must divide the {channels} channels, got {num_groups!r}")
