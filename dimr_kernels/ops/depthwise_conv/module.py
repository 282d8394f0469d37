"""The convolution as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .functional import depthwise_conv2d


class DepthwiseConv2d(nn.Module):
    """Depthwise convolution of channels-last feature maps, stride 1, same padding, with an optional residual.

    Args:
        channels: C.
        kernel_size: 3, 5 or 7.
        bias: whether there is one.

    The parameters have the names, shapes and initial distribution of ``nn.Conv2d(C, C, K, padding=K // 2, groups=C)``,
    so that its state dict loads.

    Shape: ``[B, H, W, C]`` -> ``[B, H, W, C]``; ``residual``, of the same shape, is added to the result.

    Example:
        >>> conv = DepthwiseConv2d(16, kernel_size=7)
        >>> _ = conv.load_state_dict(nn.Conv2d(16, 16, 7, padding=3, groups=16).state_dict())
        >>> conv(torch.randn(2, 8, 8, 16)).shape
        torch.Size([2, 8, 8, 16])
    """

    def __init__(self, channels: int, kernel_size: int = 7, bias: bool = True) -> None:
        super().__init__()
        if kernel_size not in (3, 5, 7):
            raise ValueError(f"DepthwiseConv2d: kernel_size must be 3, 5 or 7, got {kernel_size!r}")
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel_size, kernel_size))
        self.bias: nn.Parameter | None = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.weight[0].numel() ** -0.5  # torch's Conv2d: Kaiming with a = sqrt(5), fan in K * K
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return depthwise_conv2d(x, self.weight, self.bias, residual)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, kernel_size={self.weight.shape[-1]}, bias={self.bias is not None}"


TRITON_MODULES = (DepthwiseConv2d,)
