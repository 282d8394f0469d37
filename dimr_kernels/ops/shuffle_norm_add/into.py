"""The cascade's way up for inference: ``dimr_kernels::shuffle_norm_add_``, in place and without a backward."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..registration import define_op
from ..time_gate.arguments import GATES, by_kind
from . import eager


def definition(x: Tensor, y: Tensor, t: Tensor, upscale_factor: int, *gates_and_eps: Any) -> None:
    """``y += TDLN(pixel_shuffle(x))``: ``x [B, H, W, r*r*C]``, ``y [B, r*H, r*W, C]``."""
    y.copy_(eager.shuffle_norm_add(x, y, t, upscale_factor, *gates_and_eps))


def _forward(x: Tensor, y: Tensor, t: Tensor, upscale_factor: int, *rest: Any) -> None:
    from . import triton as kernels

    *gates, eps = rest
    kernels.forward_into(x, y, t, upscale_factor, by_kind(gates), eps)


shuffle_norm_add_ = define_op(
    f"shuffle_norm_add_(Tensor x, Tensor(a!) y, Tensor t, int upscale_factor, {GATES}, float eps) -> ()",
    kernel=_forward,
    fake=lambda x, y, *rest: None,
)
