"""The compiled extension ``dimr_kernels._C``: whether it loaded, what it holds, and why not if it is missing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class ExtensionStatus:
    loaded: bool
    has_cuda: bool
    reason: str
    """Why it did not load, or why it has no CUDA; empty if nothing is missing."""


@lru_cache(maxsize=1)
def _load() -> ExtensionStatus:
    try:
        from . import _C  # type: ignore[attr-defined]
    except ImportError as error:
        return ExtensionStatus(loaded=False, has_cuda=False, reason=f"not built ({error})")
    return ExtensionStatus(loaded=True, has_cuda=_C.has_cuda, reason="" if _C.has_cuda else "built without nvcc")


@torch.compiler.assume_constant_result
def extension_status() -> ExtensionStatus:
    """Load the extension once and say what came of it."""
    return _load()
