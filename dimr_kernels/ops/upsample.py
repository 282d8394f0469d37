"""Upsampling of the cascade: ``y + TDLN(pixel_shuffle(x))`` over channels-last maps (DiMR eq. (2) with a TD-LN)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from ..dispatch import choose
from ..registration import Operator, cpp_kernel, define_forms, define_gradients
from . import time_gate
from .linear import apply_linear
from .pixel_shuffle import shuffle_definition
from .td_norm import TDLayerNorm, td_norm_definition, td_norm_ops
from .time_gate import (
    GATES_SCHEMA,
    GateParameters,
    as_timesteps,
    check_gates,
    computed_gradients,
    current_timestep,
    fake_backward,
    scatter_gradients,
)

MOST_PIXELS = 2**31 - 2**16


def shuffle_norm_add_definition(
    x: Tensor, y: Tensor, t: Tensor, r: int, gates: GateParameters, eps: float
) -> Tensor:  # fmt: skip
    """Compute the sum in plain PyTorch: ``x [B, H, W, r*r*C]``, ``y [B, r*H, r*W, C]``, ``t [B]`` or ``[1]``."""
    normalized, _ = td_norm_definition(shuffle_definition(x, r, "nhwc"), None, t, gates, eps, rms=False)
    return y + normalized


def kernels_fit(y: Tensor) -> bool:
    """Return True if Triton's kernels take a result of y's shape ``[B, r*H, r*W, C]``."""
    return y.shape[3] <= time_gate.WIDEST_IN_REGISTERS and y.shape[1] * y.shape[2] < MOST_PIXELS


def pixel_shuffle_td_norm_add(
    x: Tensor,
    y: Tensor,
    t: Tensor | float,
    upscale_factor: int,
    p1: Tensor,
    p2: Tensor,
    p3: Tensor,
    p4: Tensor,
    scale_gate_weight: Tensor,
    scale_gate_offset: Tensor,
    shift_gate_weight: Tensor,
    shift_gate_offset: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """Upsample for the cascade: ``y + TDLN(shuffle(x))`` in one pass (DiMR eq. (2), (4) and (5)), channels last.

    Args:
        x: ``[B, H, W, r*r*C]`` with channels in ``(r, r, C)`` order.
        y: ``[B, r*H, r*W, C]``; its dtype may differ from x's.
        upscale_factor: ``r >= 1``.
        t, p1, p2, p3, p4, the gates, eps: as for :func:`td_layer_norm`, of width C.

    On a GPU, rows wider than 8192 channels are shuffled, normalized and added in three passes.

    Returns:
        ``[B, r*H, r*W, C]`` in the dtype that torch's promotion gives ``x`` and ``y``.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit, or ``t`` is NaN.
        BackendError: the implementation asked for cannot run (see :func:`dimr_kernels.use_backend`).

    Example:
        >>> x, y, one, zero = torch.randn(1, 2, 2, 4 * 8), torch.randn(1, 4, 4, 8), torch.ones(8), torch.zeros(8)
        >>> pixel_shuffle_td_norm_add(x, y, 0.5, 2, one, one, zero, zero, one, zero, one, zero).shape
        torch.Size([1, 4, 4, 8])
    """
    gates = GateParameters(
        p1, p2, scale_gate_weight, scale_gate_offset, p3, p4, shift_gate_weight, shift_gate_offset
    )  # fmt: skip
    return _shuffle_norm_add(x, y, t, upscale_factor, gates, eps)


def _shuffle_norm_add(
    x: Tensor, y: Tensor, t: Tensor | float, upscale_factor: int, gates: GateParameters, eps: float
) -> Tensor:
    operator = "pixel_shuffle_td_norm_add"
    r = checks.check_shuffle(operator, x, "upscale_factor", upscale_factor, "nhwc")
    checks.check_floating(operator, y=y)
    C = checks.check_shuffled(operator, x, y, r, "nhwc")
    if C == 0:
        raise ValueError(f"{operator}: x must have at least one channel, got shape {list(x.shape)}")
    if (x.dtype == torch.float64) != (y.dtype == torch.float64):
        raise TypeError(f"{operator}: y has dtype {y.dtype}, x has {x.dtype}: float64 does not mix")
    checks.check_number(operator, "eps", eps)
    check_gates(operator, C, x.device, gates, needs_shift=True)
    t = as_timesteps(operator, t, x)
    form = choose(operator, x)
    if form == "eager":
        return shuffle_norm_add_definition(x, y, t, r, gates, eps)
    if form == "triton" and not kernels_fit(y):
        shuffled = shuffle_definition(x, r, "nhwc")
        return y + td_norm_ops[form](shuffled, None, t, *gates.in_schema_order(), eps, False)[0]
    return shuffle_norm_add_ops[form](x, y, t, r, *gates.in_schema_order(), eps)[0]


class PixelShuffleUpsample(nn.Module):
    """Upsampling of the cascade (DiMR eq. (2)): ``y + TDLN(shuffle(Linear(TDLN(x))))``.

    Args:
        dim_in: width of ``x``, the lower branch's features.
        dim_out: width of ``y`` and of the result.
        upscale_factor: ``r``; the linear layer gives ``r * r * dim_out`` channels in ``(r, r, C)`` order.

    Shape: ``x [B, H, W, dim_in]``, ``y [B, r*H, r*W, dim_out]`` -> ``[B, r*H, r*W, dim_out]``; ``t`` as in
    :class:`TDLayerNorm`.

    ``norm_out`` is part of one fused operator, which reads its parameters. It is called by itself, at the cost of two
    more passes, where a call of it does more: hooks, an offloader that moves its parameters in, a forward of its own.

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
        h = apply_linear(self.proj, self.norm_in(x, t))  # type: ignore[arg-type]
        if type(self.norm_out).forward is not TDLayerNorm.forward or checks.is_call_modified(self.norm_out):
            r = checks.check_shuffle("PixelShuffleUpsample", h, "upscale_factor", self.upscale_factor, "nhwc")
            return y + self.norm_out(shuffle_definition(h, r, "nhwc"), t)
        return _shuffle_norm_add(h, y, t, self.upscale_factor, self.norm_out.gate_parameters(), self.norm_out.eps)

    def extra_repr(self) -> str:
        return f"upscale_factor={self.upscale_factor}"


# Registration: ``dimr_kernels::shuffle_norm_add``, its backward, and the form for inference that adds in place;
# each with a second operator, ``shuffle_norm_add_cpp`` and so on, for the C++ form.


def _forward(x: Tensor, y: Tensor, t: Tensor, upscale_factor: int, *rest: Any) -> tuple[Tensor, Tensor]:
    from . import upsample_triton as kernels

    *gates, eps = rest
    return kernels.forward(x, y, t, upscale_factor, GateParameters.from_schema(gates), eps)  # type: ignore[return-value]


def _inference(x: Tensor, y: Tensor, t: Tensor, upscale_factor: int, *rest: Any) -> tuple[Tensor, Tensor | None]:
    from . import upsample_triton as kernels

    *gates, eps = rest
    return kernels.forward(x, y, t, upscale_factor, GateParameters.from_schema(gates), eps, statistics=False)


def _fake_forward(x: Tensor, y: Tensor, t: Tensor, upscale_factor: int, *rest: Any) -> tuple[Tensor, Tensor]:
    out = y.new_empty(y.shape, dtype=torch.promote_types(x.dtype, y.dtype))
    return out, x.new_empty((2, y.numel() // y.shape[3]), dtype=torch.float32)


def _backward(grad: Tensor, x: Tensor, stats: Tensor, t: Tensor, upscale_factor: int, *rest: Any) -> list[Tensor]:
    from . import upsample_triton as kernels

    *gates, (needs_x, needs_t, *needs_gates) = rest
    gradients = kernels.backward(
        grad, x, stats, t, upscale_factor, GateParameters.from_schema(gates), needs_x, needs_t,
        GateParameters.from_schema(needs_gates),
    )  # fmt: skip
    return computed_gradients(*gradients)


def _forward_in_place(x: Tensor, y: Tensor, t: Tensor, upscale_factor: int, *rest: Any) -> None:
    from . import upsample_triton as kernels

    *gates, eps = rest
    kernels.forward_into(x, y, t, upscale_factor, GateParameters.from_schema(gates), eps)


_shuffle_norm_add_cpp = cpp_kernel("shuffle_norm_add_cpp")


def _cpp_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    return tuple(_shuffle_norm_add_cpp(*arguments, True))  # type: ignore[return-value]  # True: with statistics


def _cpp_inference(*arguments: Any) -> tuple[Tensor, None]:
    (out,) = _shuffle_norm_add_cpp(*arguments, False)
    return out, None


shuffle_norm_add_ops = define_forms(
    f"shuffle_norm_add(Tensor x, Tensor y, Tensor t, int upscale_factor, {GATES_SCHEMA}, float eps) "
    "-> (Tensor, Tensor)",
    kernels={"triton": _forward, "cpp": _cpp_forward},
    fake=_fake_forward,
    inference={"triton": _inference, "cpp": _cpp_inference},
)
shuffle_norm_add_backward_ops = define_forms(
    f"shuffle_norm_add_backward(Tensor grad, Tensor x, Tensor stats, Tensor t, int upscale_factor, {GATES_SCHEMA}, "
    "bool[] needs) -> Tensor[]",
    kernels={"triton": _backward, "cpp": cpp_kernel("shuffle_norm_add_cpp_backward")},
    fake=fake_backward,
)
shuffle_norm_add_in_place_ops = define_forms(
    f"shuffle_norm_add_(Tensor x, Tensor(a!) y, Tensor t, int upscale_factor, {GATES_SCHEMA}, float eps) -> ()",
    kernels={"triton": _forward_in_place, "cpp": cpp_kernel("shuffle_norm_add_cpp_")},
    fake=lambda x, y, *rest: None,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, _, t, ctx.upscale_factor, *gates, _ = inputs
    _, stats = output
    ctx.save_for_backward(x, stats, t, *gates)
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)


def _gradient(
    backward: Operator, ctx: Any, grad: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:  # fmt: skip
    x_needs, y_needs, t_needs, _, *gates_need, _ = ctx.needs_input_grad
    needs = [x_needs, t_needs, *gates_need]
    if grad is None:
        return (None,) * (4 + len(gates_need) + 1)
    gradients: list[Tensor | None] = [None] * len(needs)
    if any(needs):
        x, stats, t, *gates = ctx.saved_tensors
        found = backward(grad, x, stats, t, ctx.upscale_factor, *gates, needs)
        gradients = scatter_gradients(needs, found)
    dx, dt, *dgates = gradients
    return dx, grad if y_needs else None, dt, None, *dgates, None  # autograd casts to y's dtype


define_gradients(
    "pixel_shuffle_td_norm_add",
    shuffle_norm_add_ops,
    shuffle_norm_add_backward_ops,
    setup_context=_save,
    backward=_gradient,
)
