"""C++ kernels of GeGLU for CPU tensors (csrc/geglu.cpp), as the operators of geglu.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..registration import cpp_kernel


def forward_pair(*arguments: Any) -> Tensor:
    return cpp_kernel("geglu_pair_cpp")(*arguments)


def forward_packed(*arguments: Any) -> Tensor:
    return cpp_kernel("geglu_packed_cpp")(*arguments)


def backward_pair(*arguments: Any) -> tuple[Tensor, Tensor]:
    return cpp_kernel("geglu_pair_cpp_backward")(*arguments)


def backward_packed(*arguments: Any) -> Tensor:
    return cpp_kernel("geglu_packed_cpp_backward")(*arguments)
