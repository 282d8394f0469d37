"""Pixel shuffle with a sum, ``y + shuffle(x)``, and its inverse (Shi et al. 2016; the sum is DiMR's eq. (2)).

``layout`` "nhwc" has channels in ``(r, r, C)`` order, "nchw" in torch's ``(C, r, r)`` order. The operators' layout
"channels_last" is "nchw" in channels-last memory. The fused forms are the extension's (``csrc/pixel_shuffle*``): C++
for CPU tensors, CUDA for GPU tensors. Each operator is the other's derivative, so gradients of any order work.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks
from ..dispatch import choose, extension_status
from ..registration import define_gradient, define_op


def shuffle_definition(x: Tensor, r: int, layout: str) -> Tensor:
    """Pixel shuffle in plain PyTorch.

    nhwc: ``x [B, H, W, r*r*C]`` -> ``[B, r*H, r*W, C]``; else ``x [B, C*r*r, H, W]`` -> ``[B, C, r*H, r*W]``.
    """
    if layout != "nhwc":
        if x.numel() == 0:  # torch's own has no backward there
            B, channels, H, W = x.shape
            return x.reshape(B, channels // (r * r), H * r, W * r)
        return F.pixel_shuffle(x, r)
    B, H, W, channels = x.shape
    C = channels // (r * r)
    return x.reshape(B, H, W, r, r, C).permute(0, 1, 3, 2, 4, 5).reshape(B, H * r, W * r, C)


def shuffle_add_definition(x: Tensor, y: Tensor | None, r: int, layout: str) -> Tensor:
    shuffled = shuffle_definition(x, r, layout)
    return shuffled if y is None else y + shuffled


def unshuffle_definition(x: Tensor, r: int, layout: str) -> Tensor:
    """Invert :func:`shuffle_definition`."""
    if layout != "nhwc":
        if x.numel() == 0:  # torch's own takes the shape to be any that holds nothing
            B, C, H, W = x.shape
            return x.reshape(B, C * r * r, H // r, W // r)
        return F.pixel_unshuffle(x, r)
    B, H, W, C = x.shape
    return x.reshape(B, H // r, r, W // r, r, C).permute(0, 1, 3, 2, 4, 5).reshape(B, H // r, W // r, r * r * C)


def pixel_shuffle_add(x: Tensor, y: Tensor | None, upscale_factor: int, layout: str = "nhwc") -> Tensor:
    """Pixel shuffle with a sum: ``y + shuffle(x)``, as in a cascade (DiMR eq. (2)).

    Args:
        x: layout "nhwc": ``[B, H, W, r*r*C]`` with channels in ``(r, r, C)`` order; "nchw": ``[B, C*r*r, H, W]`` in
            torch's ``(C, r, r)`` order, contiguous or channels last in memory.
        y: "nhwc": ``[B, r*H, r*W, C]``; "nchw": ``[B, C, r*H, r*W]``; None for the shuffle alone.
        upscale_factor: ``r >= 1``.
        layout: "nhwc" or "nchw".

    Returns:
        y's shape, in the dtype that torch's promotion gives ``x`` and ``y``; channels last in memory where ``x`` is.
        Differentiable any number of times.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit.
        BackendError: the implementation asked for cannot run (see :func:`dimr_kernels.use_backend`).

    Example:
        >>> import torch
        >>> x, y = torch.arange(4.0).view(1, 1, 1, 4), torch.full((1, 2, 2, 1), 10.0)
        >>> pixel_shuffle_add(x, y, 2).view(2, 2)
        tensor([[10., 11.],
                [12., 13.]])
    """
    operator = "pixel_shuffle_add"
    r = checks.check_shuffle(operator, x, "upscale_factor", upscale_factor, layout)
    checks.check_shuffled(operator, x, y, r, layout)
    if y is not None and y.dtype != x.dtype:
        dtype = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(dtype), y.to(dtype)
    if choose(operator, x) == "eager":
        return shuffle_add_definition(x, y, r, layout)
    return pixel_shuffle_add_op(x, y, r, _memory_layout(x, layout))


def pixel_unshuffle(x: Tensor, downscale_factor: int, layout: str = "nhwc") -> Tensor:
    """Invert the shuffle of :func:`pixel_shuffle_add`.

    Args:
        x: layout "nhwc": ``[B, r*H, r*W, C]``; "nchw": ``[B, C, r*H, r*W]``, contiguous or channels last in memory.
        downscale_factor: ``r >= 1``.
        layout: "nhwc" gives ``[B, H, W, r*r*C]`` in ``(r, r, C)`` order, "nchw" gives ``[B, C*r*r, H, W]`` in torch's.

    Raises as :func:`pixel_shuffle_add`.

    Example:
        >>> import torch
        >>> pixel_unshuffle(torch.arange(4.0).view(1, 2, 2, 1), 2).flatten()
        tensor([0., 1., 2., 3.])
    """
    operator = "pixel_unshuffle"
    r = checks.check_shuffle(operator, x, "downscale_factor", downscale_factor, layout)
    H, W = x.shape[1:3] if layout == "nhwc" else x.shape[2:]
    if H % r or W % r:
        raise ValueError(
            f"{operator}: x must have height and width that are multiples of downscale_factor {r}, got {H} x {W} in "
            f"shape {list(x.shape)}, layout {layout!r}"
        )
    if choose(operator, x) == "eager":
        return unshuffle_definition(x, r, layout)
    return pixel_unshuffle_op(x, r, _memory_layout(x, layout))


def _memory_layout(x: Tensor, layout: str) -> str:
    """Split layout "nchw" by the memory format of ``x``."""
    if layout == "nhwc" or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return layout
    return "channels_last"


def _empty(x: Tensor, layout: str, B: int, C: int, H: int, W: int) -> Tensor:
    if layout == "nhwc":
        return x.new_empty((B, H, W, C))
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return torch.empty((B, C, H, W), dtype=x.dtype, device=x.device, memory_format=memory_format)


def sizes(x: Tensor, layout: str) -> tuple[int, int, int, int]:
    """Return ``(B, C, H, W)`` of ``x``."""
    if layout == "nhwc":
        B, H, W, C = x.shape
    else:
        B, C, H, W = x.shape
    return B, C, H, W


def fake_shuffle(x: Tensor, y: Tensor | None, upscale_factor: int, layout: str) -> Tensor:
    """Allocate the output: the right shape and strides, not filled."""
    r = upscale_factor
    B, C, H, W = sizes(x, layout)
    return _empty(x, layout, B, C // (r * r), H * r, W * r)


def fake_unshuffle(x: Tensor, downscale_factor: int, layout: str) -> Tensor:
    """Allocate the output: the right shape and strides, not filled."""
    r = downscale_factor
    B, C, H, W = sizes(x, layout)
    return _empty(x, layout, B, C * r * r, H // r, W // r)


pixel_shuffle_add_op = define_op(
    "pixel_shuffle_add(Tensor x, Tensor? y, int upscale_factor, str layout) -> Tensor", kernel=None, fake=fake_shuffle
)
pixel_unshuffle_op = define_op(
    "pixel_unshuffle(Tensor x, int downscale_factor, str layout) -> Tensor", kernel=None, fake=fake_unshuffle
)


def _save_shuffle(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, ctx.factor, ctx.layout = inputs


def _save_unshuffle(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.factor, ctx.layout = inputs


def _gradient_shuffle(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    needs_x, needs_y = ctx.needs_input_grad[:2]
    dx = pixel_unshuffle_op(grad, ctx.factor, ctx.layout) if needs_x else None
    return dx, grad if needs_y else None, None, None


def _gradient_unshuffle(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return pixel_shuffle_add_op(grad, None, ctx.factor, ctx.layout), None, None


define_gradient(pixel_shuffle_add_op, setup_context=_save_shuffle, backward=_gradient_shuffle)
define_gradient(pixel_unshuffle_op, setup_context=_save_unshuffle, backward=_gradient_unshuffle)
extension_status()  # if it was built, loading it gives the two operators their implementations
