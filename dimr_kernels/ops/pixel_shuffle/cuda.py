"""The compiled form (``csrc/pixel_shuffle*``): C++ for CPU tensors, CUDA for GPU tensors, over one index map.

``op.py`` reaches it through torch's dispatcher. Here the CUDA kernel's thread function runs on the host, over the
launch geometry that a GPU would get, so that it can be tested without one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import op

LAYOUTS = ("nhwc", "nchw", "channels_last")
"""In the order of csrc's enum Layout; likewise the two below."""
MODES = ("add", "shuffle", "unshuffle")
ELEMENTS = (torch.float32, torch.float16, torch.bfloat16)


def image_shape(B: int, C: int, H: int, W: int, r: int, layout: str) -> Any:
    """Of the low-resolution image of ``C*r*r`` channels."""
    from ... import _C  # type: ignore[attr-defined]

    return _C.PixelShuffleShape(B, C, H, W, r, LAYOUTS.index(layout))


def launch_geometry(shape: Any, dtype: torch.dtype, aligned: bool = True) -> dict[str, Any]:
    """Blocks, threads, and what a thread moves: ``planes`` runs of ``vector`` elements; ``wide``: 64-bit offsets."""
    from ... import _C  # type: ignore[attr-defined]

    return _C.pixel_shuffle_launch(shape, dtype.itemsize, aligned)


def tile_offsets(shape: Any, dtype: torch.dtype, tile: int, aligned: bool = True) -> tuple[int, list[int]]:
    """Where thread ``tile`` works: its offset on the dense side, and each plane's on the gathered side."""
    from ... import _C  # type: ignore[attr-defined]

    return _C.pixel_shuffle_offsets(shape, dtype.itemsize, aligned, tile)


def run_on_host(x: Tensor, y: Tensor | None, r: int, layout: str, inverse: bool = False) -> Tensor:
    """``y + shuffle(x)``, or ``unshuffle(x)``, computed by the CUDA kernel's threads one after another on the CPU."""
    from ... import _C  # type: ignore[attr-defined]

    mode = "unshuffle" if inverse else "shuffle" if y is None else "add"
    out = op.fake_unshuffle(x, r, layout) if inverse else op.fake_shuffle(x, y, r, layout)
    B, C, H, W = op.sizes(out if inverse else x, layout)
    _C.pixel_shuffle_on_host(
        image_shape(B, C // (r * r), H, W, r, layout), MODES.index(mode), ELEMENTS.index(x.dtype), x.data_ptr(),
        0 if y is None else y.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    return out
