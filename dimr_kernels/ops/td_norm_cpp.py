"""C++ kernels of the time-dependent norms for CPU tensors (csrc/td_norm.cpp), as the operators of td_norm.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..registration import cpp_kernel


def forward(x: Tensor, residual: Tensor | None, t: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    found = cpp_kernel("td_norm_cpp")(x, residual, t, *rest, True)
    if residual is None:
        return found[0], x.new_empty(0), found[1]
    return tuple(found)


def inference(x: Tensor, residual: Tensor | None, t: Tensor, *rest: Any) -> tuple[Tensor, Tensor | None, None]:
    found = cpp_kernel("td_norm_cpp")(x, residual, t, *rest, False)
    return found[0], None if residual is None else found[1], None


def backward(*arguments: Any) -> list[Tensor]:
    return cpp_kernel("td_norm_cpp_backward")(*arguments)


def forward_into(*arguments: Any) -> Tensor:
    return cpp_kernel("td_norm_cpp_into")(*arguments)
