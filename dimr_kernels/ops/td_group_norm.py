"""Time-dependent group norm: the statistics of a group norm (Wu and He 2018), the scale and shift of TD-LN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from ..dispatch import choose
from ..registration import Operator, cpp_kernel, define_forms, define_gradients
from .td_norm import TDNormParameters
from .time_gate import (
    GATES_SCHEMA,
    GateParameters,
    as_timesteps,
    check_gates,
    computed_gradients,
    current_timestep,
    fake_backward,
    scale_and_shift,
    scatter_gradients,
)


def td_group_norm_definition(x: Tensor, t: Tensor, num_groups: int, gates: GateParameters, eps: float) -> Tensor:
    """Compute the norm of ``x [B, ..., C]`` at ``t [B]`` or ``[1]`` in plain PyTorch, in x's shape and dtype."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    B, C = x.shape[0], x.shape[-1]
    gamma, beta = scale_and_shift(t, gates, dtype)  # [T, C]
    groups = x.to(dtype).reshape(B, x.shape[1:-1].numel(), num_groups, C // num_groups)  # [B, N, G, C / G]
    if groups.numel():  # torch warns about the variance of an empty tensor
        variance, mean = torch.var_mean(groups, (1, 3), correction=0, keepdim=True)
        groups = (groups - mean) * (variance + eps).rsqrt()
    y = groups.flatten(-2) * gamma[:, None]  # [B, N, C]
    if beta is not None:
        y = y + beta[:, None]
    return y.view(x.shape).to(x.dtype)


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
    gates = GateParameters(
        p1, p2, scale_gate_weight, scale_gate_offset, p3, p4, shift_gate_weight, shift_gate_offset
    )  # fmt: skip
    return _td_group_norm(x, t, num_groups, gates, eps)


def _td_group_norm(x: Tensor, t: Tensor | float, num_groups: int, gates: GateParameters, eps: float) -> Tensor:
    operator = "td_group_norm"
    checks.check_floating(operator, x=x)
    checks.check_number(operator, "eps", eps)
    if x.dim() < 2 or x.shape[-1] == 0:
        raise ValueError(f"{operator}: x must have shape [B, ..., C] with C >= 1, got {list(x.shape)}")
    C = x.shape[-1]
    _check_groups(operator, num_groups, C)
    check_gates(operator, C, x.device, gates)
    t = as_timesteps(operator, t, x)
    form = choose(operator, x)
    if form == "eager":
        return td_group_norm_definition(x, t, num_groups, gates, eps)
    return td_group_norm_ops[form](x, t, num_groups, *gates.in_schema_order(), eps)[0]


def _check_groups(operator: str, num_groups: int, channels: int) -> None:
    if not isinstance(num_groups, int) or num_groups < 1 or channels % num_groups:
        raise ValueError(f"{operator}: num_groups must divide the {channels} channels, got {num_groups!r}")


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
        _check_groups("TDGroupNorm", num_groups, num_channels)
        checks.check_choice("TDGroupNorm", "layout", layout, ("nhwc", "nchw"))
        self.num_groups = num_groups
        self.layout = layout

    @classmethod
    def from_group_norm(cls, norm: nn.GroupNorm, gate: str = "channel", layout: str = "nchw") -> TDGroupNorm:
        """Build a norm that computes the same at every timestep until trained; weight and bias are copied."""
        like = norm.weight
        device, dtype = (None, None) if like is None else (like.device, like.dtype)
        module = cls(norm.num_groups, norm.num_channels, norm.eps, norm.bias is not None, gate, layout, device, dtype)
        module._copy_from(norm.weight, norm.bias)
        return module.train(norm.training)

    def forward(self, x: Tensor, t: Tensor | float | None = None) -> Tensor:
        if t is None:
            t = current_timestep("TDGroupNorm")
        if self.layout == "nchw":
            x = x.movedim(1, -1)
        y = _td_group_norm(x, t, self.num_groups, self.gate_parameters(), self.eps)
        return y.movedim(-1, 1) if self.layout == "nchw" else y

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {super().extra_repr()}, layout={self.layout!r}"


# Registration: ``dimr_kernels::td_group_norm`` and its backward, and both with ``_cpp`` behind for the C++ form.


def _forward(x: Tensor, t: Tensor, num_groups: int, *rest: Any) -> tuple[Tensor, Tensor]:
    from . import td_group_norm_triton as kernels

    *gates, eps = rest
    return kernels.forward(x, t, num_groups, GateParameters.from_schema(gates), eps)


def _fake_forward(x: Tensor, t: Tensor, num_groups: int, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((2, x.shape[0] * num_groups), dtype=torch.float32)


def _backward(grad: Tensor, x: Tensor, stats: Tensor, t: Tensor, num_groups: int, *rest: Any) -> list[Tensor]:
    from . import td_group_norm_triton as kernels

    *gates, (needs_x, needs_t, *needs_gates) = rest
    gradients = kernels.backward(
        grad, x, stats, t, num_groups, GateParameters.from_schema(gates), needs_x, needs_t,
        GateParameters.from_schema(needs_gates),
    )  # fmt: skip
    return computed_gradients(*gradients)


_td_group_norm_cpp = cpp_kernel("td_group_norm_cpp")


def _cpp_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    return tuple(_td_group_norm_cpp(*arguments))  # type: ignore[return-value]


td_group_norm_ops = define_forms(
    f"td_group_norm(Tensor x, Tensor t, int num_groups, {GATES_SCHEMA}, float eps) -> (Tensor, Tensor)",
    kernels={"triton": _forward, "cpp": _cpp_forward},
    fake=_fake_forward,
)
td_group_norm_backward_ops = define_forms(
    f"td_group_norm_backward(Tensor grad, Tensor x, Tensor stats, Tensor t, int num_groups, {GATES_SCHEMA}, "
    "bool[] needs) -> Tensor[]",
    kernels={"triton": _backward, "cpp": cpp_kernel("td_group_norm_cpp_backward")},
    fake=fake_backward,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, t, ctx.num_groups, *gates, _ = inputs
    _, stats = output
    ctx.save_for_backward(x, stats, t, *gates)
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)


def _gradient(
    backward: Operator, ctx: Any, grad: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:  # fmt: skip
    x_needs, t_needs, _, *gates_need, _ = ctx.needs_input_grad
    needs = [x_needs, t_needs, *gates_need]
    gradients: list[Tensor | None] = [None] * len(needs)
    if grad is not None:
        x, stats, t, *gates = ctx.saved_tensors
        gradients = scatter_gradients(needs, backward(grad, x, stats, t, ctx.num_groups, *gates, needs))
    dx, dt, *dgates = gradients
    return dx, dt, None, *dgates, None


define_gradients(
    "td_group_norm", td_group_norm_ops, td_group_norm_backward_ops, setup_context=_save, backward=_gradient
)
