"""The public functions: checks, and which form runs."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import checks, time_checks
from ...dispatch import choose
from . import eager, op

FUSED_FORMS = {"td_layer_norm": "triton", "td_rms_norm": "triton"}


def td_layer_norm(
    x: Tensor,
    t: Tensor | float,
    p1: Tensor,
    p2: Tensor,
    p3: Tensor | None,
    p4: Tensor | None,
    scale_gate_weight: Tensor,
    scale_gate_offset: Tensor,
    shift_gate_weight: Tensor | None,
    shift_gate_offset: Tensor | None,
    eps: float = 1e-5,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Time-dependent layer norm (DiMR eq. (4) and (5)): ``LN(x) * gamma(t) + beta(t)`` over the last dimension.

    ``gamma = s p1 + (1 - s) p2`` with ``s = sigmoid(scale_gate_weight * t + scale_gate_offset)``; ``beta`` likewise
    from ``p3, p4`` and the shift gate.

    Args:
        x: ``[B, ..., D]``; ``[D]`` is one sample.
        t: ``[B]``, or one value for the batch: ``[1]``, ``[]`` or a float. Differentiable. NaN is refused in numbers
            and CPU tensors; on a GPU looking would wait for it, so there it reaches the result.
        p1, p2: ``[D]``, the scale where the gate is open and where it is shut.
        p3, p4: ``[D]``, the shift likewise; None, with the shift gate, for no shift.
        scale_gate_weight, scale_gate_offset, shift_gate_weight, shift_gate_offset: ``[D]`` (a gate per channel) or
            ``[1]``.
        eps: added to the variance.
        residual: x's shape, in x's dtype or another one; added before the norm.

    Parameters and ``t`` may have another dtype than ``x``; each gradient has its own tensor's. Statistics are float32
    (float64 for float64 inputs).

    Returns:
        The norm in x's shape and dtype; with ``residual``, the pair ``(norm(x + residual), x + residual)``, both
        differentiable.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit, or ``t`` is NaN.
        BackendError: the implementation asked for cannot run (see :func:`dimr_kernels.use_backend`).

    Example:
        >>> import torch
        >>> x, one, zero = torch.randn(2, 5, 8), torch.ones(8), torch.zeros(8)
        >>> y = td_layer_norm(x, 0.5, one, one, zero, zero, one, zero, one, zero)  # both ends alike: no time in it
        >>> torch.allclose(y, torch.nn.functional.layer_norm(x, (8,)), atol=1e-6)
        True
    """
    missing = (p3 is None) + (p4 is None) + (shift_gate_weight is None) + (shift_gate_offset is None)
    if missing not in (0, 4):
        raise ValueError(
            "td_layer_norm: p3, p4, shift_gate_weight and shift_gate_offset must all be given or all be None"
        )
    return _td_norm(
        "td_layer_norm", x, t, p1, p2, p3, p4, scale_gate_weight, scale_gate_offset, shift_gate_weight,
        shift_gate_offset, eps, residual, rms=False,
    )  # fmt: skip


def td_rms_norm(
    x: Tensor,
    t: Tensor | float,
    p1: Tensor,
    p2: Tensor,
    scale_gate_weight: Tensor,
    scale_gate_offset: Tensor,
    eps: float = 1e-8,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Time-dependent RMS norm: ``gamma(t) * x / (sqrt(mean(x^2)) + eps)``, eps outside the root, no shift.

    Arguments, results and errors as for :func:`td_layer_norm`.

    Example:
        >>> import torch
        >>> x, t = torch.tensor([[3.0, 4.0], [3.0, 4.0]]), torch.tensor([-100.0, 100.0])  # gate shut, gate open
        >>> td_rms_norm(x, t, p1=torch.ones(2), p2=torch.zeros(2), scale_gate_weight=torch.ones(2),
        ...             scale_gate_offset=torch.zeros(2))
        tensor([[0.0000, 0.0000],
                [0.8485, 1.1314]])
    """
    return _td_norm(
        "td_rms_norm", x, t, p1, p2, None, None, scale_gate_weight, scale_gate_offset, None, None, eps, residual,
        rms=True,
    )  # fmt: skip


def _td_norm(
    operator: str,
    x: Tensor,
    t: Tensor | float,
    p1: Tensor,
    p2: Tensor,
    p3: Tensor | None,
    p4: Tensor | None,
    scale_gate_weight: Tensor,
    scale_gate_offset: Tensor,
    shift_gate_weight: Tensor | None,
    shift_gate_offset: Tensor | None,
    eps: float,
    residual: Tensor | None,
    rms: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    checks.check_floating(operator, x=x, residual=residual)
    checks.check_number(operator, "eps", eps)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"{operator}: x must have shape [B, ..., D] with D >= 1, got {list(x.shape)}")
    if residual is not None and (residual.shape, residual.dtype, residual.device) != (x.shape, x.dtype, x.device):
        _check_residual(operator, x, residual)
    D = x.shape[-1]
    time_checks.check_gated_pair(
        operator, D, x.device, p1=p1, p2=p2, scale_gate_weight=scale_gate_weight, scale_gate_offset=scale_gate_offset
    )
    if p3 is not None:
        time_checks.check_gated_pair(
            operator, D, x.device, p3=p3, p4=p4, shift_gate_weight=shift_gate_weight,
            shift_gate_offset=shift_gate_offset,
        )  # fmt: skip
    single = x.dim() == 1
    if single:
        x, residual = x[None], None if residual is None else residual[None]
    t = time_checks.as_timesteps(operator, t, x)
    norm = op.td_norm if choose(operator, x, "triton") == "triton" else eager.td_norm
    y, total = norm(
        x, residual, t, p1, p2, p3, p4, scale_gate_weight, scale_gate_offset, shift_gate_weight, shift_gate_offset,
        eps, rms,
    )[:2]  # fmt: skip
    if single:
        y, total = y[0], total if residual is None else total[0]
    return y if residual is None else (y, total)


def _check_residual(operator: str, x: Tensor, residual: Tensor) -> None:
    checks.check_shape(operator, "residual", residual, tuple(x.shape))
    checks.check_same_device(operator, x=x, residual=residual)
    if (x.dtype == torch.float64) != (residual.dtype == torch.float64):
        raise TypeError(f"{operator}: residual has dtype {residual.dtype}, x has {x.dtype}: float64 does not mix")
