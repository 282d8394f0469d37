"""Registration of the depthwise convolution: ``dimr_kernels::depthwise_conv2d`` and its two gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..registration import define_gradient, define_op, refuse_double_backward


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, add_input: bool) -> Tensor:
    from . import triton as kernels

    return kernels.forward(x, weight, bias, residual, add_input)


def _input_gradient(grad: Tensor, weight: Tensor, add_input: bool) -> Tensor:
    from . import triton as kernels

    return kernels.forward(grad, weight, None, None, add_input, flip=True)


def _weight_gradient(
    grad: Tensor, x: Tensor, kernel_size: int, weight_dtype: torch.dtype, bias_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    from . import triton as kernels

    return kernels.weight_gradient(grad, x, kernel_size, weight_dtype, bias_dtype)


def _fake_weight_gradient(
    grad: Tensor, x: Tensor, kernel_size: int, weight_dtype: torch.dtype, bias_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    C = x.shape[3]
    return x.new_empty((C, 1, kernel_size, kernel_size), dtype=weight_dtype), x.new_empty((C,), dtype=bias_dtype)


depthwise_conv2d = define_op(
    "depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, bool add_input) -> Tensor",
    kernel=_forward,
    fake=lambda x, weight, bias, residual, add_input: x.new_empty(x.shape),
)
depthwise_conv2d_input_gradient = define_op(
    "depthwise_conv2d_input_gradient(Tensor grad, Tensor weight, bool add_input) -> Tensor",
    kernel=_input_gradient,
    fake=lambda grad, weight, add_input: grad.new_empty(grad.shape),
)
depthwise_conv2d_weight_gradient = define_op(
    "depthwise_conv2d_weight_gradient(Tensor grad, Tensor x, int kernel_size, ScalarType weight_dtype, "
    "ScalarType bias_dtype) -> (Tensor, Tensor)",
    kernel=_weight_gradient,
    fake=_fake_weight_gradient,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, _, ctx.add_input = inputs
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    ctx.kernel_size, ctx.weight_dtype = weight.shape[3], weight.dtype
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, needs_residual, _ = ctx.needs_input_grad
    dx = dweight = dbias = None
    if needs_x:
        dx = depthwise_conv2d_input_gradient(grad, weight, ctx.add_input)
    if needs_weight:
        dtypes = ctx.weight_dtype, ctx.bias_dtype or torch.float32
        dweight, dbias = depthwise_conv2d_weight_gradient(grad, x, ctx.kernel_size, *dtypes)
    elif needs_bias:
        dbias = grad.sum((0, 1, 2), dtype=torch.float32).to(ctx.bias_dtype)
    return dx, dweight, dbias if needs_bias else None, grad if needs_residual else None, None


define_gradient(depthwise_conv2d, setup_context=_save, backward=_gradient)
refuse_double_backward(depthwise_conv2d_input_gradient, "depthwise_conv2d")
refuse_double_backward(depthwise_conv2d_weight_gradient, "depthwise_conv2d")
