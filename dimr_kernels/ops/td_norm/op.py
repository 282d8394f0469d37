"""Registration of the time-dependent norms: ``dimr_kernels::td_norm`` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..registration import define_gradient, define_op, refuse_double_backward
from ..time_gate.arguments import GATES, by_kind, by_schema, fake_gradients, in_place_of


def _forward(x: Tensor, residual: Tensor | None, t: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    from . import triton as kernels

    *gates, eps, rms = rest
    y, total, stats = kernels.forward(x, residual, t, by_kind(gates), eps, rms)
    return y, x.new_empty(0) if total is None else total, stats  # type: ignore[return-value]


def _inference(x: Tensor, residual: Tensor | None, t: Tensor, *rest: Any) -> tuple[Tensor, Tensor | None, None]:
    from . import triton as kernels

    *gates, eps, rms = rest
    y, total, _ = kernels.forward(x, residual, t, by_kind(gates), eps, rms, statistics=False)
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
    from . import triton as kernels

    *gates, eps, rms, needs = rest
    needs = [*needs[:2], *by_kind(needs[2:])]
    dx, dt, *dgates = kernels.backward(dy, dtotal, x, stats, t, by_kind(gates), eps, rms, needs)
    return [g for g in (dx, dt, *by_schema(dgates)) if g is not None]


def _fake_backward(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, stats: Tensor, t: Tensor, *rest: Any
) -> list[Tensor]:  # fmt: skip
    *gates, _, _, needs = rest
    return fake_gradients((x, t, *gates), needs)


td_norm = define_op(
    f"td_norm(Tensor x, Tensor? residual, Tensor t, {GATES}, float eps, bool rms) -> (Tensor, Tensor, Tensor)",
    kernel=_forward,
    fake=_fake_forward,
    inference=_inference,
)
td_norm_backward = define_op(
    f"td_norm_backward(Tensor dy, Tensor? dtotal, Tensor x, Tensor stats, Tensor t, {GATES}, float eps, bool rms, "
    "bool[] needs) -> Tensor[]",
    kernel=_backward,
    fake=_fake_backward,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, residual, t, *gates, ctx.eps, ctx.rms = inputs
    _, total, stats = output
    ctx.dtypes = (x.dtype, None if residual is None else residual.dtype)
    ctx.save_for_backward(x if residual is None else total, stats, t, *gates)
    ctx.set_materialize_grads(False)  # an output that was not used costs nothing
    sum_is_constant = residual is None or not any(ctx.needs_input_grad[:2])
    ctx.mark_non_differentiable(*(stats, total) if sum_is_constant else (stats,))


def _gradient(ctx: Any, dy: Tensor | None, dtotal: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x_needs, residual_needs, *others = ctx.needs_input_grad[:11]
    needs = [x_needs or residual_needs, *others]
    gradients: list[Tensor | None] = [None] * len(needs)
    if dy is None:
        gradients[0] = dtotal
    else:
        found = td_norm_backward(dy, dtotal, *ctx.saved_tensors, ctx.eps, ctx.rms, needs)
        gradients = in_place_of(needs, found)
    dinput, *rest = gradients
    dx, dresidual = (
        dinput.to(dtype) if need and dinput is not None else None
        for need, dtype in zip((x_needs, residual_needs), ctx.dtypes, strict=True)
    )
    return dx, dresidual, *rest, None, None


define_gradient(td_norm, setup_context=_save, backward=_gradient)
refuse_double_backward(td_norm_backward, "td_norm")
