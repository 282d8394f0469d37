"""C++ kernels of the group norm for CPU tensors (csrc/td_group_norm.cpp), as the operators of td_group_norm.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..registration import cpp_kernel


def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    return tuple(cpp_kernel("td_group_norm_cpp")(*arguments))


def backward(*arguments: Any) -> list[Tensor]:
    return cpp_kernel("td_group_norm_cpp_backward")(*arguments)
