"""C++ kernels of the depthwise convolution for CPU tensors (csrc/depthwise_conv.cpp), as in depthwise_conv.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..registration import cpp_kernel


def forward(*arguments: Any) -> Tensor:
    return cpp_kernel("depthwise_conv2d_cpp")(*arguments)


def backward(*arguments: Any) -> list[Tensor]:
    return cpp_kernel("depthwise_conv2d_cpp_backward")(*arguments)


def forward_into(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    cpp_kernel("depthwise_conv2d_cpp_")(x, weight, bias, True, out)
