"""Registration of the one-kernel form, ``dimr_kernels::geglu_linear``, its gradient, and when it is taken."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...dispatch import capability
from ..geglu.op import geglu_packed_backward
from ..registration import define_gradient, define_op
from .eager import project

FORMS = ("auto", "one_kernel", "two_kernels")
ONE_KERNEL_DTYPES = (torch.float16, torch.bfloat16)

# (compute capability times ten, K, N) -> the measurement by which one kernel beats a matrix product of cuBLAS followed
# by a fused GeGLU there. Empty until measured: "auto" then takes two kernels everywhere.
ONE_KERNEL_WINS: dict[tuple[int, int, int], str] = {}


def wins(x: Tensor, weight: Tensor) -> bool:
    """Whether the one-kernel form was measured to be faster at this shape on this GPU."""
    if not ONE_KERNEL_WINS or x.device.type != "cuda" or x.dtype not in ONE_KERNEL_DTYPES:
        return False
    major, minor = capability(x.device)
    return (10 * major + minor, weight.shape[1], weight.shape[0] // 2) in ONE_KERNEL_WINS


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, approximate: str, gate_first: bool) -> Tensor:
    from . import triton as kernels

    return kernels.forward(x, weight, bias, approximate, gate_first)


geglu_linear = define_op(
    "geglu_linear(Tensor x, Tensor weight, Tensor? bias, str approximate, bool gate_first) -> Tensor",
    kernel=_forward,
    fake=lambda x, weight, bias, approximate, gate_first: x.new_empty((x.shape[0], weight.shape[0] // 2)),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.approximate, ctx.gate_first = inputs
    ctx.save_for_backward(x, weight, bias)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The forward left no h behind: it is computed again, then GeGLU's backward and the products of a linear layer."""
    x, weight, bias = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    dh = geglu_packed_backward(grad, project(x, weight, bias), ctx.approximate, ctx.gate_first)  # [M, 2N]
    dx = dh @ weight if needs_x else None
    dweight = dh.t() @ x if needs_weight else None
    dbias = dh.sum(0, dtype=bias.dtype) if needs_bias else None
    return dx, dweight, dbias, None, None


define_gradient(geglu_linear, setup_context=_save, backward=_gradient)
