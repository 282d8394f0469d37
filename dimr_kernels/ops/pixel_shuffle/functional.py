"""The public functions: checks, and which form runs."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import shuffle_checks
from ...dispatch import choose
from . import eager, op

FUSED_FORMS = {"pixel_shuffle_add": "cuda", "pixel_unshuffle": "cuda"}


def pixel_shuffle_add(x: Tensor, y: Tensor | None, upscale_factor: int, layout: str = "nhwc") -> Tensor:
    """``y + shuffle(x)``, the sum of a cascade (DiMR eq. (2)); the shuffle is Shi et al. 2016's.

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
    r = shuffle_checks.check_shuffle(operator, x, "upscale_factor", upscale_factor, layout)
    shuffle_checks.check_shuffled(operator, x, y, r, layout)
    if y is not None:
        dtype = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(dtype), y.to(dtype)
    if choose(operator, x, "cuda") == "eager":
        return eager.pixel_shuffle_add(x, y, r, layout)
    return op.pixel_shuffle_add(x, y, r, _memory_layout(x, layout))


def pixel_unshuffle(x: Tensor, downscale_factor: int, layout: str = "nhwc") -> Tensor:
    """The inverse of the shuffle in :func:`pixel_shuffle_add`.

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
    r = shuffle_checks.check_shuffle(operator, x, "downscale_factor", downscale_factor, layout)
    H, W = x.shape[1:3] if layout == "nhwc" else x.shape[2:]
    if H % r or W % r:
        raise ValueError(
            f"{operator}: x must have height and width that are multiples of downscale_factor {r}, got {H} x {W} in "
            f"shape {list(x.shape)}, layout {layout!r}"
        )
    if choose(operator, x, "cuda") == "eager":
        return eager.pixel_unshuffle(x, r, layout)
    return op.pixel_unshuffle(x, r, _memory_layout(x, layout))


def _memory_layout(x: Tensor, layout: str) -> str:
    """ "nchw" splits by the memory that ``x`` has."""
    if layout == "nhwc" or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return layout
    return "channels_last"
