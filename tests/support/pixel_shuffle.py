"""Images in the layouts of the pixel shuffle, and when its compiled form can be tested."""

from __future__ import annotations

import pytest
import torch

from dimr_kernels.dispatch import extension_status

STATUS = extension_status()
needs_extension = pytest.mark.skipif(not STATUS.loaded, reason=f"compiled extension: {STATUS.reason}")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("nhwc", "nchw", "channels_last")


def images(shape, r, layout, dtype, device, needs=(True, True)):
    """``x`` and ``y`` for one of the three layouts."""
    B, C, H, W = shape
    x, y = torch.randn(B, C * r * r, H, W, device=device), torch.randn(B, C, H * r, W * r, device=device)
    if layout == "nhwc":
        x, y = x.permute(0, 2, 3, 1).contiguous(), y.permute(0, 2, 3, 1).contiguous()
    elif layout == "channels_last":
        x, y = (v.contiguous(memory_format=torch.channels_last) for v in (x, y))
    return {k: v.to(dtype).requires_grad_(need) for k, v, need in zip("xy", (x, y), needs, strict=True)}


def public(layout):
    return "nhwc" if layout == "nhwc" else "nchw"


def strew_special_values(*values):
    """In place; every pair of them meets somewhere."""
    info = torch.finfo(values[0].dtype)
    numbers = [float("nan"), float("inf"), -float("inf"), info.max, -info.max, 0.0, -0.0, 1.0, info.eps / 2]
    for value in values:
        special = torch.tensor(numbers)[torch.randint(len(numbers), value.shape)]
        value.copy_(torch.where(torch.rand(value.shape) < 0.5, special, value.cpu()))
