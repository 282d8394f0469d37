"""The definition of attention in plain PyTorch (Vaswani et al. 2017, eq. 1), no mask and no dropout."""

from __future__ import annotations

from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """``q [B, heads, L, E]``, ``k [B, heads, S, E]``, ``v [B, heads, S, Ev]`` -> ``[B, heads, L, Ev]``.

    torch computes the softmax of float16 and bfloat16 in float32.
    """
    scores = (q * scale) @ k.transpose(-2, -1)  # [B, heads, L, S]
    return scores.softmax(dim=-1).to(v.dtype) @ v
