"""The optional package flash-attn (Dao 2023, FlashAttention-2)."""

from __future__ import annotations

import importlib.util
from functools import lru_cache

import torch
from torch import Tensor

from ...traced import constant_when_traced


@lru_cache(maxsize=1)
def _import_error() -> str | None:
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    try:
        from flash_attn import flash_attn_func  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # usually built for another torch: undefined symbols
        return f"flash-attn is installed but does not load ({error})"
    return None


@constant_when_traced
def why_not_installed() -> str | None:
    """Import the package once, and say what came of it."""
    return _import_error()


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """``[B, heads, L, E]`` in, a view of flash-attn's ``[B, L, heads, E]`` out; no copies."""
    from flash_attn import flash_attn_func

    out = flash_attn_func(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        softmax_scale=scale,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return out.transpose(1, 2)
