"""The definition of the cascade's way up in plain PyTorch (DiMR eq. (2) and (5), channels last)."""

from __future__ import annotations

from torch import Tensor


def pixel_shuffle_nhwc(x: Tensor, r: int) -> Tensor:
    """``x [B, H, W, r*r*C]``, channels in ``(r, r, C)`` order -> ``[B, r*H, r*W, C]``."""
    B, H, W, packed = x.shape
    C = packed // (r * r)
    return x.reshape(B, H, W, r, r, C).permute(0, 1, 3, 2, 4, 5).reshape(B, H * r, W * r, C)
