"""Registration of the cascade's way up: ``dimr_kernels::shuffle_norm_add`` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import limits
from ..registration import define_gradient, define_op, refuse_double_backward
from ..time_gate.arguments import GATES, by_kind, by_schema, fake_gradients, in_place_of

MOST_PIXELS = 2**31 - 2**16


def fits(y: Tensor) -> bool:
    """Whether the kernels take a result of y's shape ``[B, r*H, r*W, C]``."""
    return y.shape[3] <= limits.WIDEST_IN_REGISTERS and y.shape[1] * y.shape[2] < MOST_PIXELS


def _forward(x: Tensor, y: Tensor, t: Tensor, upscale_factor: int, *rest: Any) -> tuple[Tensor, Tensor]:
    from . import triton as kernels

    *gates, eps = rest
    return kernels.forward(x, y, t, upscale_factor, by_kind(gates), eps)  # type: ignore[return-value]


def _inference(x: Tensor, y: Tensor, t: Tensor, upscale_factor: int, *rest: Any) -> tuple[Tensor, Tensor | None]:
    from . import triton as kernels

    *gates, eps = rest
    return kernels.forward(x, y, t, upscale_factor, by_kind(gates), eps, statistics=False)


def _fake_forward(x: Tensor, y: Tensor, t: Tensor, upscale_factor: int, *rest: Any) -> tuple[Tensor, Tensor]:
    out = y.new_empty(y.shape, dtype=torch.promote_types(x.dtype, y.dtype))
    return out, x.new_empty((2, y.numel() // y.shape[3]), dtype=torch.float32)


def _backward(grad: Tensor, x: Tensor, stats: Tensor, t: Tensor, upscale_factor: int, *rest: Any) -> list[Tensor]:
    from . import triton as kernels

    *gates, needs = rest
    needs = [*needs[:2], *by_kind(needs[2:])]
    dx, dt, *dgates = kernels.backward(grad, x, stats, t, upscale_factor, by_kind(gates), needs)
    return [g for g in (dx, dt, *by_schema(dgates)) if g is not None]


def _fake_backward(grad: Tensor, x: Tensor, stats: Tensor, t: Tensor, upscale_factor: int, *rest: Any) -> list[Tensor]:
    *gates, needs = rest
    return fake_gradients((x, t, *gates), needs)


shuffle_norm_add = define_op(
    f"shuffle_norm_add(Tensor x, Tensor y, Tensor t, int upscale_factor, {GATES}, float eps) -> (Tensor, Tensor)",
    kernel=_forward,
    fake=_fake_forward,
    inference=_inference,
)
shuffle_norm_add_backward = define_op(
    f"shuffle_norm_add_backward(Tensor grad, Tensor x, Tensor stats, Tensor t, int upscale_factor, {GATES}, "
    "bool[] needs) -> Tensor[]",
    kernel=_backward,
    fake=_fake_backward,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, _, t, ctx.upscale_factor, *gates, _ = inputs
    _, stats = output
    ctx.save_for_backward(x, stats, t, *gates)
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x_needs, y_needs, t_needs, _, *gates_need, _ = ctx.needs_input_grad
    needs = [x_needs, t_needs, *gates_need]
    if grad is None:
        return (None,) * (4 + len(gates_need) + 1)
    gradients: list[Tensor | None] = [None] * len(needs)
    if any(needs):
        x, stats, t, *gates = ctx.saved_tensors
        found = shuffle_norm_add_backward(grad, x, stats, t, ctx.upscale_factor, *gates, needs)
        gradients = in_place_of(needs, found)
    dx, dt, *dgates = gradients
    return dx, grad if y_needs else None, dt, None, *dgates, None  # autograd casts to y's dtype


define_gradient(shuffle_norm_add, setup_context=_save, backward=_gradient)
refuse_double_backward(shuffle_norm_add_backward, "pixel_shuffle_td_norm_add")
