"""Attention by a named backend, or by the best one that can compute the call."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...dispatch import BackendError
from . import eager, flash_attn
from .rules import RULES, automatic, describe

BACKENDS = ("auto", *RULES)
SDPA_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def attention(q: Tensor, k: Tensor, v: Tensor, backend: str, scale: float) -> Tensor:
    """``q [B, heads, L, E]``, ``k [B, heads, S, E]``, ``v [B, heads, S, Ev]`` -> ``[B, heads, L, Ev]``."""
    if backend == "eager":
        return eager.attention(q, k, v, scale)
    # Every fused kernel wants unit last strides; views of a packed qkv have them.
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if backend != "auto":
        return _chosen(q, k, v, backend, scale)
    if q.device.type != "cuda":
        # One fused kernel at most: torch's own choice is the right one, and costs less on the host.
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    backends = automatic(describe(q, k, v))
    if backends[0] == "flash_attn":
        return flash_attn.attention(q, k, v, scale)
    return _sdpa(q, k, v, scale, backends)


def _chosen(q: Tensor, k: Tensor, v: Tensor, backend: str, scale: float) -> Tensor:
    problem = RULES[backend](describe(q, k, v))
    if problem is not None:
        raise BackendError(f"attention: backend {backend!r} was asked for and cannot run: {problem}")
    if backend == "flash_attn":
        return flash_attn.attention(q, k, v, scale)
    if torch.compiler.is_compiling():
        return _sdpa(q, k, v, scale, [backend])
    try:
        return _sdpa(q, k, v, scale, [backend])
    except RuntimeError as error:
        if "No available kernel" not in str(error) and "No viable backend" not in str(error):
            raise
        raise BackendError(f"attention: backend {backend!r} was asked for and torch refuses it: {error}") from error


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, backends: list[str]) -> Tensor:
    """torch's SDPA restricted to these backends, tried in this order."""
    with sdpa_kernel([SDPA_BACKENDS[name] for name in backends], set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
