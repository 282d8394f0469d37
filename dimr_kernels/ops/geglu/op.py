"""Registration of GeGLU: ``dimr_kernels::geglu_pair`` and ``dimr_kernels::geglu_packed`` with their backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..registration import define_gradient, define_op, refuse_double_backward
from ..samples import with_even_rows
from .eager import split_packed


def _forward_pair(gate: Tensor, value: Tensor, approximate: str) -> Tensor:
    from . import triton as kernels

    return kernels.forward(with_even_rows(gate), with_even_rows(value), approximate)


def _forward_packed(h: Tensor, approximate: str, gate_first: bool) -> Tensor:
    from . import triton as kernels

    return kernels.forward(*split_packed(with_even_rows(h), gate_first), approximate)


def _backward_pair(grad: Tensor, gate: Tensor, value: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    from . import triton as kernels

    dgate, dvalue = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (gate, value))
    kernels.backward(grad, with_even_rows(gate), with_even_rows(value), dgate, dvalue, approximate)
    return dgate, dvalue


def _backward_packed(grad: Tensor, h: Tensor, approximate: str, gate_first: bool) -> Tensor:
    from . import triton as kernels

    h = with_even_rows(h)
    dh = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    kernels.backward(grad, *split_packed(h, gate_first), *split_packed(dh, gate_first), approximate)
    return dh


geglu_pair = define_op(
    "geglu_pair(Tensor gate, Tensor value, str approximate) -> Tensor",
    kernel=_forward_pair,
    fake=lambda gate, value, approximate: gate.new_empty(gate.shape),
)
geglu_pair_backward = define_op(
    "geglu_pair_backward(Tensor grad, Tensor gate, Tensor value, str approximate) -> (Tensor, Tensor)",
    kernel=_backward_pair,
    fake=lambda grad, gate, value, approximate: (gate.new_empty(gate.shape), value.new_empty(value.shape)),
)
geglu_packed = define_op(
    "geglu_packed(Tensor h, str approximate, bool gate_first) -> Tensor",
    kernel=_forward_packed,
    fake=lambda h, approximate, gate_first: h.new_empty((*h.shape[:-1], h.shape[-1] // 2)),
)
geglu_packed_backward = define_op(
    "geglu_packed_backward(Tensor grad, Tensor h, str approximate, bool gate_first) -> Tensor",
    kernel=_backward_packed,
    fake=lambda grad, h, approximate, gate_first: h.new_empty(h.shape),
)


def _save_pair(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gate, value, ctx.approximate = inputs
    ctx.save_for_backward(gate, value)


def _save_packed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, ctx.approximate, ctx.gate_first = inputs
    ctx.save_for_backward(h)


def _gradient_pair(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    dgate, dvalue = geglu_pair_backward(grad, *ctx.saved_tensors, ctx.approximate)
    return dgate, dvalue, None


def _gradient_packed(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return geglu_packed_backward(grad, *ctx.saved_tensors, ctx.approximate, ctx.gate_first), None, None


define_gradient(geglu_pair, setup_context=_save_pair, backward=_gradient_pair)
define_gradient(geglu_packed, setup_context=_save_packed, backward=_gradient_packed)
refuse_double_backward(geglu_pair_backward, "geglu")
refuse_double_backward(geglu_packed_backward, "geglu")
