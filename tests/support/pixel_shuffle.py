"""Images in the layouts of the pixel shuffle, and its CUDA kernel's threads on the host, as a GPU launches them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dimr_kernels.dispatch import extension_status
from dimr_kernels.ops import pixel_shuffle

STATUS = extension_status()
needs_extension = pytest.mark.skipif(not STATUS.loaded, reason=f"compiled extension: {STATUS.reason}")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("nhwc", "nchw", "channels_last")
"""In the order of csrc's enum Layout; likewise the modes and dtypes."""
MODES = ("add", "shuffle", "unshuffle")


def images(shape, r, layout, dtype, device, needs=(True, True)):
    """Make ``x`` and ``y`` in one of the three layouts."""
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
    """Write special values in place, so that every pair of them meets somewhere."""
    info = torch.finfo(values[0].dtype)
    numbers = [float("nan"), float("inf"), -float("inf"), info.max, -info.max, 0.0, -0.0, 1.0, info.eps / 2]
    for value in values:
        special = torch.tensor(numbers)[torch.randint(len(numbers), value.shape)]
        value.copy_(torch.where(torch.rand(value.shape) < 0.5, special, value.cpu()))


def image_shape(B: int, C: int, H: int, W: int, r: int, layout: str) -> Any:
    """Describe the low-resolution image of ``C*r*r`` channels."""
    from dimr_kernels import _C  # type: ignore[attr-defined]

    return _C.PixelShuffleShape(B, C, H, W, r, LAYOUTS.index(layout))


def launch_geometry(shape: Any, dtype: torch.dtype, aligned: bool = True) -> dict[str, Any]:
    """Return blocks, threads, a thread's ``planes`` runs of ``vector`` elements; ``wide``: 64-bit offsets."""
    from dimr_kernels import _C  # type: ignore[attr-defined]

    return _C.pixel_shuffle_launch(shape, dtype.itemsize, aligned)


def tile_offsets(shape: Any, dtype: torch.dtype, tile: int, aligned: bool = True) -> tuple[int, list[int]]:
    """Return the offset of thread ``tile`` on the dense side, and each plane's on the gathered side."""
    from dimr_kernels import _C  # type: ignore[attr-defined]

    return _C.pixel_shuffle_offsets(shape, dtype.itemsize, aligned, tile)


def run_on_host(x: Tensor, y: Tensor | None, r: int, layout: str, inverse: bool = False) -> Tensor:
    """Compute ``y + shuffle(x)``, or ``unshuffle(x)``, by the CUDA kernel's threads one after another on the CPU."""
    from dimr_kernels import _C  # type: ignore[attr-defined]

    mode = "unshuffle" if inverse else "shuffle" if y is None else "add"
    out = pixel_shuffle.fake_unshuffle(x, r, layout) if inverse else pixel_shuffle.fake_shuffle(x, y, r, layout)
    B, C, H, W = pixel_shuffle.sizes(out if inverse else x, layout)
    _C.pixel_shuffle_on_host(
        image_shape(B, C // (r * r), H, W, r, layout), MODES.index(mode), DTYPES.index(x.dtype), x.data_ptr(),
        0 if y is None else y.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    return out
