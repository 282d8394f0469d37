"""Time-dependent layer norm and RMS norm (TD-LN, DiMR eq. (4) and (5)), whose scale and shift depend on a timestep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checks
from ..dispatch import choose
from ..registration import Operator, cpp_kernel, define_forms, define_gradients
from .time_gate import (
    GATES_SCHEMA,
    GateParameters,
    as_timesteps,
    check_gates,
    computed_gradients,
    current_timestep,
    fake_gradients,
    scale_and_shift,
    scatter_gradients,
)

# The definition in plain PyTorch.


def td_norm_definition(
    x: Tensor, residual: Tensor | None, t: Tensor, gates: GateParameters, eps: float, rms: bool
) -> tuple[Tensor, Tensor]:
    """Compute the norm of ``x + residual`` in x's dtype, and the sum: ``x [B, ..., D]``, ``t [B]`` or ``[1]``."""
    total = x if residual is None else x + residual
    dtype = torch.float64 if total.dtype == torch.float64 else torch.float32
    gamma, beta = scale_and_shift(t, gates, dtype)  # [T, D]
    norm = _rms_norm if rms else _layer_norm
    return norm(total.to(dtype), gamma, beta, eps).to(x.dtype), total


def _layer_norm(x: Tensor, gamma: Tensor, beta: Tensor | None, eps: float) -> Tensor:
    """Normalize ``x [B, ..., D]``, with ``gamma, beta [T, D]``."""
    D = x.shape[-1]
    if gamma.shape[0] == 1:  # torch's layer norm applies one scale and shift for the whole batch in the same pass
        return F.layer_norm(x, (D,), gamma[0], None if beta is None else beta[0], eps)
    return _modulated(F.layer_norm(x, (D,), eps=eps), gamma, beta)


def _rms_norm(x: Tensor, gamma: Tensor, beta: Tensor | None, eps: float) -> Tensor:
    """Compute ``x / (rms + eps)``, eps outside the root. The derivative of the norm of a zero row is taken as zero."""
    rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
    return _modulated(x / (rms + eps), gamma, beta)


def _modulated(z: Tensor, gamma: Tensor, beta: Tensor | None) -> Tensor:
    """Scale ``z [B, ..., D]`` by ``gamma [T, D]`` and add ``beta [T, D]``, one row of each per sample."""
    per_sample = (gamma.shape[0], *[1] * (z.dim() - 2), gamma.shape[1])
    gamma = gamma.view(per_sample)
    return z * gamma if beta is None else torch.addcmul(beta.view(per_sample), z, gamma)


def td_norm_into_definition(
    x: Tensor,
    residual: Tensor | None,
    total: Tensor | None,
    offset: Tensor | None,
    t: Tensor,
    gates: GateParameters,
    eps: float,
    rms: bool,
) -> Tensor:
    """Compute the norm of ``x + residual + offset`` in x's dtype and write ``x + residual`` to ``total``.

    ``x [B, ..., D]``, ``offset [D]``, ``t [B]`` or ``[1]``.
    """
    if residual is not None:
        x = torch.add(x, residual, out=total)
    summed = x if offset is None else x.to(torch.promote_types(x.dtype, torch.float32)) + offset
    return td_norm_definition(summed, None, t, gates, eps, rms)[0].to(x.dtype)


# Public functions.


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
            and CPU tensors; on a GPU reading values would synchronise, so there it reaches the result.
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
    gates = GateParameters(
        p1, p2, scale_gate_weight, scale_gate_offset, p3, p4, shift_gate_weight, shift_gate_offset
    )  # fmt: skip
    return _td_norm("td_layer_norm", x, t, gates, eps, residual, rms=False)


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
    gates = GateParameters(p1, p2, scale_gate_weight, scale_gate_offset)
    return _td_norm("td_rms_norm", x, t, gates, eps, residual, rms=True)


def _td_norm(
    operator: str,
    x: Tensor,
    t: Tensor | float,
    gates: GateParameters,
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
    check_gates(operator, x.shape[-1], x.device, gates)
    single = x.dim() == 1
    if single:
        x, residual = x[None], None if residual is None else residual[None]
    t = as_timesteps(operator, t, x)
    form = choose(operator, x)
    if form == "eager":
        y, total = td_norm_definition(x, residual, t, gates, eps, rms)
    else:
        y, total, _ = td_norm_ops[form](x, residual, t, *gates.in_schema_order(), eps, rms)
    if single:
        y, total = y[0], total if residual is None else total[0]
    return y if residual is None else (y, total)


def _check_residual(operator: str, x: Tensor, residual: Tensor) -> None:
    checks.check_shape(operator, "residual", residual, tuple(x.shape))
    checks.check_same_device(operator, x=x, residual=residual)
    if (x.dtype == torch.float64) != (residual.dtype == torch.float64):
        raise TypeError(f"{operator}: residual has dtype {residual.dtype}, x has {x.dtype}: float64 does not mix")


# Modules.


def _width(module: str, normalized_shape: int | Sequence[int]) -> int:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if len(shape) != 1 or shape[0] < 1:
        raise ValueError(f"{module}: normalized_shape must be one positive width, got {normalized_shape!r}")
    return shape[0]


class TDNormParameters(nn.Module):
    """Base of the time-dependent norms: ``p1`` to ``p4`` ``[D]``, the gates' weights and offsets ``[D]`` or ``[1]``."""

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
        """Set scale 1 and shift 0 at every timestep; the gates open with the timestep (w = 1, o = 0)."""
        ones = (self.p1, self.p2, self.scale_gate_weight, self.shift_gate_weight)
        zeros = (self.p3, self.p4, self.scale_gate_offset, self.shift_gate_offset)
        for value, parameters in ((1.0, ones), (0.0, zeros)):
            for parameter in parameters:
                if parameter is not None:
                    nn.init.constant_(parameter, value)

    def _copy_from(self, weight: Tensor | None, bias: Tensor | None) -> None:
        """Copy the scale and shift of a norm without a timestep."""
        with torch.no_grad():
            for parameters, source in (((self.p1, self.p2), weight), ((self.p3, self.p4), bias)):
                for parameter in parameters:
                    if parameter is not None and source is not None:
                        parameter.copy_(source)

    def gate_parameters(self) -> GateParameters:
        return GateParameters(
            self.p1, self.p2, self.scale_gate_weight, self.scale_gate_offset,
            self.p3, self.p4, self.shift_gate_weight, self.shift_gate_offset,
        )  # fmt: skip

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
        """Build a norm that computes the same at every timestep until trained; weight and bias are copied."""
        like = norm.weight
        module = cls(
            norm.normalized_shape,
            eps=norm.eps,
            bias=norm.bias is not None,
            gate=gate,
            device=None if like is None else like.device,
            dtype=None if like is None else like.dtype,
        )
        module._copy_from(norm.weight, norm.bias)
        return module.train(norm.training)

    def forward(
        self, x: Tensor, t: Tensor | float | None = None, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if t is None:
            t = current_timestep("TDLayerNorm")
        return _td_norm("td_layer_norm", x, t, self.gate_parameters(), self.eps, residual, rms=False)


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
        """Build from torch's RMS norm, whose eps lies inside the root: ``x / sqrt(mean(x^2) + eps)``.

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
        module._copy_from(norm.weight, None)
        return module.train(norm.training)

    def forward(
        self, x: Tensor, t: Tensor | float | None = None, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if t is None:
            t = current_timestep("TDRMSNorm")
        return _td_norm("td_rms_norm", x, t, self.gate_parameters(), self.eps, residual, rms=True)


# Registration: ``dimr_kernels::td_norm``, its backward, and the form for inference that writes into given tensors; each
# with a second operator, ``td_norm_cpp`` and so on, for the C++ form.


def _forward(x: Tensor, residual: Tensor | None, t: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    from . import td_norm_triton as kernels

    *gates, eps, rms = rest
    y, total, stats = kernels.forward(x, residual, t, GateParameters.from_schema(gates), eps, rms)
    return y, x.new_empty(0) if total is None else total, stats  # type: ignore[return-value]


def _inference(x: Tensor, residual: Tensor | None, t: Tensor, *rest: Any) -> tuple[Tensor, Tensor | None, None]:
    from . import td_norm_triton as kernels

    *gates, eps, rms = rest
    y, total, _ = kernels.forward(x, residual, t, GateParameters.from_schema(gates), eps, rms, statistics=False)
    return y, total, None


def _fake_forward(x: Tensor, residual: Tensor | None, t: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    if residual is None:
        total = x.new_empty((0,))
    else:
        total = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype))
    rows = x.numel() // x.shape[-1]
    stats = x.new_empty((1 if rest[-1] else 2, rows), dtype=torch.float32)
    return x.new_empty(x.shape), total, stats


def _backward(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, stats: Tensor, t: Tensor, *rest: Any
) -> list[Tensor]:  # fmt: skip
    from . import td_norm_triton as kernels

    *gates, eps, rms, (needs_x, needs_t, *needs_gates) = rest
    gradients = kernels.backward(
        dy, dtotal, x, stats, t, GateParameters.from_schema(gates), eps, rms, needs_x, needs_t,
        GateParameters.from_schema(needs_gates),
    )  # fmt: skip
    return computed_gradients(*gradients)


def _fake_backward(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, stats: Tensor, t: Tensor, *rest: Any
) -> list[Tensor]:  # fmt: skip
    *gates, _, _, needs = rest
    return fake_gradients((x, t, *gates), needs)


def _forward_into(
    x: Tensor, residual: Tensor | None, total: Tensor | None, offset: Tensor | None, t: Tensor, *rest: Any
) -> Tensor:
    from . import td_norm_triton as kernels

    *gates, eps, rms = rest
    return kernels.forward_into(x, residual, total, offset, t, GateParameters.from_schema(gates), eps, rms)


_td_norm_cpp = cpp_kernel("td_norm_cpp")


def _cpp_forward(x: Tensor, residual: Tensor | None, t: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    found = _td_norm_cpp(x, residual, t, *rest, True)
    if residual is None:
        return found[0], x.new_empty(0), found[1]
    return tuple(found)  # type: ignore[return-value]


def _cpp_inference(x: Tensor, residual: Tensor | None, t: Tensor, *rest: Any) -> tuple[Tensor, Tensor | None, None]:
    found = _td_norm_cpp(x, residual, t, *rest, False)
    return found[0], None if residual is None else found[1], None


td_norm_ops = define_forms(
    f"td_norm(Tensor x, Tensor? residual, Tensor t, {GATES_SCHEMA}, float eps, bool rms) -> (Tensor, Tensor, Tensor)",
    kernels={"triton": _forward, "cpp": _cpp_forward},
    fake=_fake_forward,
    inference={"triton": _inference, "cpp": _cpp_inference},
)
td_norm_backward_ops = define_forms(
    f"td_norm_backward(Tensor dy, Tensor? dtotal, Tensor x, Tensor stats, Tensor t, {GATES_SCHEMA}, float eps, "
    "bool rms, bool[] needs) -> Tensor[]",
    kernels={"triton": _backward, "cpp": cpp_kernel("td_norm_cpp_backward")},
    fake=_fake_backward,
)
td_norm_into_ops = define_forms(
    "td_norm_into(Tensor x, Tensor? residual, Tensor(a!)? total, Tensor? offset, Tensor t, "
    f"{GATES_SCHEMA}, float eps, bool rms) -> Tensor",
    kernels={"triton": _forward_into, "cpp": cpp_kernel("td_norm_cpp_into")},
    fake=lambda x, *rest: x.new_empty(x.shape),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, residual, t, *gates, ctx.eps, ctx.rms = inputs
    _, total, stats = output
    ctx.dtypes = (x.dtype, None if residual is None else residual.dtype)
    ctx.save_for_backward(x if residual is None else total, stats, t, *gates)
    ctx.set_materialize_grads(False)  # an output that was not used costs nothing
    sum_is_constant = residual is None or not any(ctx.needs_input_grad[:2])
    ctx.mark_non_differentiable(*(stats, total) if sum_is_constant else (stats,))


def _gradient(
    backward: Operator, ctx: Any, dy: Tensor | None, dtotal: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    x_needs, residual_needs, *others = ctx.needs_input_grad[:11]
    needs = [x_needs or residual_needs, *others]
    gradients: list[Tensor | None] = [None] * len(needs)
    if dy is None:
        gradients[0] = dtotal
    else:
        found = backward(dy, dtotal, *ctx.saved_tensors, ctx.eps, ctx.rms, needs)
        gradients = scatter_gradients(needs, found)
    dinput, *rest = gradients
    dx, dresidual = (
        dinput.to(dtype) if need and dinput is not None else None
        for need, dtype in zip((x_needs, residual_needs), ctx.dtypes, strict=True)
    )
    return dx, dresidual, *rest, None, None


define_gradients("td_norm", td_norm_ops, td_norm_backward_ops, setup_context=_save, backward=_gradient)
