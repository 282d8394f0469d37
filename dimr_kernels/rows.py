"""Operators over the last dimension see their input as a matrix."""

from __future__ import annotations

import math

from torch import Tensor


def as_rows(x: Tensor) -> Tensor:
    """``[..., D]`` -> ``[rows, D]``, also where D is 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def with_rows_of(x: Tensor, out: Tensor) -> Tensor:
    """``out [rows, N]`` -> ``[..., N]`` for ``x [..., D]``."""
    return out.reshape(*x.shape[:-1], out.shape[-1])
