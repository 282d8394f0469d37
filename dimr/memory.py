"""Running out of memory, on a GPU or on the host."""

from __future__ import annotations

import torch

# How torch's allocator on a CPU and its size arithmetic say it, in errors of no type of their own.
HOST_WORDS = ("can't allocate memory", "not enough memory", "storage size calculation overflowed")


class OutOfMemoryError(RuntimeError):
    """Out of memory, with what can be done about it."""


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in HOST_WORDS)
