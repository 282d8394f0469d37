"""C++ kernels of the cascade's upsampling for CPU tensors (csrc/td_norm.cpp), as the operators of upsample.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..registration import cpp_kernel


def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    return tuple(cpp_kernel("shuffle_norm_add_cpp")(*arguments, True))


def inference(*arguments: Any) -> tuple[Tensor, None]:
    (out,) = cpp_kernel("shuffle_norm_add_cpp")(*arguments, False)
    return out, None


def backward(*arguments: Any) -> list[Tensor]:
    return cpp_kernel("shuffle_norm_add_cpp_backward")(*arguments)


def forward_into(*arguments: Any) -> None:
    cpp_kernel("shuffle_norm_add_cpp_")(*arguments)
