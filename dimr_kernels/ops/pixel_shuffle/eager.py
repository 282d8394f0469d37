"""The definition of the pixel shuffle in plain PyTorch (Shi et al. 2016; the sum is DiMR's eq. (2)).

``layout`` "nhwc" has channels in ``(r, r, C)`` order, "nchw" and "channels_last" in torch's ``(C, r, r)`` order.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pixel_shuffle(x: Tensor, r: int, layout: str) -> Tensor:
    """nhwc: ``x [B, H, W, r*r*C]`` -> ``[B, r*H, r*W, C]``; else ``x [B, C*r*r, H, W]`` -> ``[B, C, r*H, r*W]``."""
    if layout != "nhwc":
        if x.numel() == 0:  # torch's own has no backward there
            B, channels, H, W = x.shape
            return x.reshape(B, channels // (r * r), H * r, W * r)
        return F.pixel_shuffle(x, r)
    B, H, W, channels = x.shape
    C = channels // (r * r)
    return x.reshape(B, H, W, r, r, C).permute(0, 1, 3, 2, 4, 5).reshape(B, H * r, W * r, C)


def pixel_shuffle_add(x: Tensor, y: Tensor | None, r: int, layout: str) -> Tensor:
    shuffled = pixel_shuffle(x, r, layout)
    return shuffled if y is None else y + shuffled


def pixel_unshuffle(x: Tensor, r: int, layout: str) -> Tensor:
    """The inverse of :func:`pixel_shuffle`."""
    if layout != "nhwc":
        if x.numel() == 0:  # torch's own takes the shape to be any that holds nothing
            B, C, H, W = x.shape
            return x.reshape(B, C * r * r, H // r, W // r)
        return F.pixel_unshuffle(x, r)
    B, H, W, C = x.shape
    return x.reshape(B, H // r, r, W // r, r, C).permute(0, 1, 3, 2, 4, 5).reshape(B, H // r, W // r, r * r * C)
