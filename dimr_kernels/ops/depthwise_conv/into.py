"""The depthwise convolution for inference: ``dimr_kernels::depthwise_conv2d_into``, without a backward."""

from __future__ import annotations

import torch
from torch import Tensor

from ..registration import define_op
from . import eager


def definition(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """``conv(x) + bias + x`` into ``out``; all ``[B, H, W, C]``."""
    torch.add(eager.depthwise_conv2d(x, weight, bias, None), x, out=out)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    from . import triton as kernels

    if out.shape[2] == 1:  # its stride says nothing
        out = out.as_strided(out.shape, (*out.stride()[:2], out.stride(1), 1))
    kernels.forward(x, weight, bias, None, add_input=True, out=out)


depthwise_conv2d_into = define_op(
    "depthwise_conv2d_into(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) out) -> ()",
    kernel=_forward,
    fake=lambda x, weight, bias, out: None,
)
