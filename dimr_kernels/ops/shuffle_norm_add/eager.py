"""The definition of the cascade's way up (DiMR eq. (2) with a TD-LN), made of the definitions of its parts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..pixel_shuffle.eager import pixel_shuffle
from ..td_norm.eager import td_norm


def shuffle_norm_add(x: Tensor, y: Tensor, t: Tensor, r: int, *gates_and_eps: Any) -> Tensor:
    """``x [B, H, W, r*r*C]``, ``y [B, r*H, r*W, C]``, ``t [B]`` or ``[1]``; the rest as for ``td_norm``."""
    normalized, _ = td_norm(pixel_shuffle(x, r, "nhwc"), None, t, *gates_and_eps, False)  # type: ignore[call-arg]
    return y + normalized
