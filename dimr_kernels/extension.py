"""The compiled extension ``dimr_kernels._C``: whether it loaded, what it holds, and why not if it is missing."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from .traced import constant_when_traced

MISSING_NOTE = Path(__file__).with_name("_extension_missing.txt")
"""Written by the build where it left the extension out: one line that says why."""


@dataclass(frozen=True)
class ExtensionStatus:
    loaded: bool
    has_cuda: bool
    reason: str
    """Why it did not load, or why it has no CUDA; empty if nothing is missing."""
    build: dict[str, str] = field(default_factory=dict, compare=False)
    """Compiler, nvcc, architectures and version of torch's headers; empty if it did not load."""


def _why_not_loaded(error: ImportError) -> str:
    if importlib.util.find_spec("dimr_kernels._C") is not None:
        return f"it was built, but does not load here ({error})"
    if MISSING_NOTE.exists():
        return MISSING_NOTE.read_text().strip()
    return "it was not built (pip install builds it)"


@lru_cache(maxsize=1)
def _load() -> ExtensionStatus:
    try:
        from . import _C  # type: ignore[attr-defined]
    except ImportError as error:
        return ExtensionStatus(loaded=False, has_cuda=False, reason=_why_not_loaded(error))
    build = dict(_C.build_information)
    return ExtensionStatus(loaded=True, has_cuda=_C.has_cuda, reason=build.pop("cuda_missing"), build=build)


@constant_when_traced
def extension_status() -> ExtensionStatus:
    """Load the extension once, which registers its operators, and say what came of it."""
    return _load()
