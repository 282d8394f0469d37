"""Registration of ``dimr_kernels::pixel_shuffle_add`` and ``dimr_kernels::pixel_unshuffle``.

Each is the other's derivative, so gradients of any order work. The implementations are csrc's, see ``cuda.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...extension import extension_status
from ..registration import define_gradient, define_op


def _empty(x: Tensor, layout: str, B: int, C: int, H: int, W: int) -> Tensor:
    if layout == "nhwc":
        return x.new_empty((B, H, W, C))
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return torch.empty((B, C, H, W), dtype=x.dtype, device=x.device, memory_format=memory_format)


def sizes(x: Tensor, layout: str) -> tuple[int, int, int, int]:
    """``(B, C, H, W)`` of ``x``."""
    if layout == "nhwc":
        B, H, W, C = x.shape
    else:
        B, C, H, W = x.shape
    return B, C, H, W


def fake_shuffle(x: Tensor, y: Tensor | None, upscale_factor: int, layout: str) -> Tensor:
    """An output of the right shape and strides, not filled."""
    r = upscale_factor
    B, C, H, W = sizes(x, layout)
    return _empty(x, layout, B, C // (r * r), H * r, W * r)


def fake_unshuffle(x: Tensor, downscale_factor: int, layout: str) -> Tensor:
    r = downscale_factor
    B, C, H, W = sizes(x, layout)
    return _empty(x, layout, B, C * r * r, H // r, W // r)


pixel_shuffle_add = define_op(
    "pixel_shuffle_add(Tensor x, Tensor? y, int upscale_factor, str layout) -> Tensor", kernel=None, fake=fake_shuffle
)
pixel_unshuffle = define_op(
    "pixel_unshuffle(Tensor x, int downscale_factor, str layout) -> Tensor", kernel=None, fake=fake_unshuffle
)


def _save_shuffle(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, ctx.factor, ctx.layout = inputs


def _save_unshuffle(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.factor, ctx.layout = inputs


def _gradient_shuffle(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    needs_x, needs_y = ctx.needs_input_grad[:2]
    dx = pixel_unshuffle(grad, ctx.factor, ctx.layout) if needs_x else None
    return dx, grad if needs_y else None, None, None


def _gradient_unshuffle(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return pixel_shuffle_add(grad, None, ctx.factor, ctx.layout), None, None


define_gradient(pixel_shuffle_add, setup_context=_save_shuffle, backward=_gradient_shuffle)
define_gradient(pixel_unshuffle, setup_context=_save_unshuffle, backward=_gradient_unshuffle)
extension_status()  # where it is built, loading it gives the two their implementations
