"""The Triton form of the time-dependent norms: ``forward``, ``backward`` and the configurations the model compiles."""

from __future__ import annotations

from .triton_backward import backward
from .triton_forward import forward, sum_dtype

__all__ = ["backward", "forward", "sum_dtype"]
