"""Checks of the arguments of pixel shuffles: the factor and the layout, and the shapes on both sides."""

from __future__ import annotations

from torch import Tensor

from . import checks


def check_shuffle(operator: str, x: Tensor, name: str, factor: int, layout: str) -> int:
    """Check what both directions share, and return the factor."""
    checks.check_floating(operator, x=x)
    checks.check_choice(operator, "layout", layout, ("nhwc", "nchw"))
    checks.check_rank(operator, "x", x, 4, "[B, H, W, C]" if layout == "nhwc" else "[B, C, H, W]")
    if not isinstance(factor, int) or factor < 1:
        raise ValueError(f"{operator}: {name} must be an integer of at least 1, got {factor!r}")
    return factor


def check_shuffled(operator: str, x: Tensor, y: Tensor | None, r: int, layout: str) -> int:
    """Check x's channels, and y against x; return the channels of the result."""
    nhwc = layout == "nhwc"
    channels = x.shape[3 if nhwc else 1]
    if channels % (r * r):
        raise ValueError(
            f"{operator}: x must have a multiple of {r * r} channels for upscale_factor {r}, got {channels} in shape "
            f"{list(x.shape)}, layout {layout!r}"
        )
    C = channels // (r * r)
    if y is not None:
        B, H, W = (x.shape[0], *x.shape[1:3]) if nhwc else (x.shape[0], *x.shape[2:])
        checks.check_floating(operator, y=y)
        checks.check_shape(operator, "y", y, (B, r * H, r * W, C) if nhwc else (B, C, r * H, r * W))
        checks.check_same_device(operator, x=x, y=y)
    return C
