"""The same numbers from the same seed, on a GPU too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Inside the block torch takes deterministic algorithms where it has them, and warns where it has none.

    cuBLAS reads its variable when the process first uses it, so enter the block before that.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    was_on = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    debugging: Any = torch.utils.deterministic
    filled = debugging.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    debugging.fill_uninitialized_memory = False  # a debugging aid that costs a write of every tensor
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=warned_only)
        debugging.fill_uninitialized_memory = filled
