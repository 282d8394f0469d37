"""Registration of the time-dependent group norm: ``dimr_kernels::td_group_norm`` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..registration import define_gradient, define_op, refuse_double_backward
from ..time_gate.arguments import GATES, by_kind, by_schema, fake_gradients, in_place_of


def _forward(x: Tensor, t: Tensor, num_groups: int, *rest: Any) -> tuple[Tensor, Tensor]:
    from . import triton as kernels

    *gates, eps = rest
    return kernels.forward(x, t, num_groups, by_kind(gates), eps)


def _fake_forward(x: Tensor, t: Tensor, num_groups: int, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((2, x.shape[0] * num_groups), dtype=torch.float32)


def _backward(grad: Tensor, x: Tensor, stats: Tensor, t: Tensor, num_groups: int, *rest: Any) -> list[Tensor]:
    from . import triton as kernels

    *gates, needs = rest
    needs = [*needs[:2], *by_kind(needs[2:])]
    dx, dt, *dgates = kernels.backward(grad, x, stats, t, num_groups, by_kind(gates), needs)
    return [g for g in (dx, dt, *by_schema(dgates)) if g is not None]


def _fake_backward(grad: Tensor, x: Tensor, stats: Tensor, t: Tensor, num_groups: int, *rest: Any) -> list[Tensor]:
    *gates, needs = rest
    return fake_gradients((x, t, *gates), needs)


td_group_norm = define_op(
    f"td_group_norm(Tensor x, Tensor t, int num_groups, {GATES}, float eps) -> (Tensor, Tensor)",
    kernel=_forward,
    fake=_fake_forward,
)
td_group_norm_backward = define_op(
    f"td_group_norm_backward(Tensor grad, Tensor x, Tensor stats, Tensor t, int num_groups, {GATES}, bool[] needs) "
    "-> Tensor[]",
    kernel=_backward,
    fake=_fake_backward,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, t, ctx.num_groups, *gates, _ = inputs
    _, stats = output
    ctx.save_for_backward(x, stats, t, *gates)
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x_needs, t_needs, _, *gates_need, _ = ctx.needs_input_grad
    needs = [x_needs, t_needs, *gates_need]
    gradients: list[Tensor | None] = [None] * len(needs)
    if grad is not None:
        x, stats, t, *gates = ctx.saved_tensors
        gradients = in_place_of(needs, td_group_norm_backward(grad, x, stats, t, ctx.num_groups, *gates, needs))
    dx, dt, *dgates = gradients
    return dx, dt, None, *dgates, None


define_gradient(td_group_norm, setup_context=_save, backward=_gradient)
refuse_double_backward(td_group_norm_backward, "td_group_norm")
