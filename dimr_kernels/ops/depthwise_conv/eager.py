"""The definition of the depthwise convolution in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """``x [B, H, W, C]``, ``weight [C, 1, K, K]`` -> ``[B, H, W, C]``.

    The permuted view of a contiguous NHWC tensor is torch's channels_last format, so nothing is copied.
    """
    bias = None if bias is None else bias.to(x.dtype)
    weight = weight.to(x.dtype)
    channels, _, kernel_size, _ = weight.shape
    out = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=kernel_size // 2, groups=channels)
    out = out.permute(0, 2, 3, 1)
    return out if residual is None else out + residual
