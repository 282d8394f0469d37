"""Tensors ``[B, ..., D]`` as samples of rows: what the launchers of the kernels need to know."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .launch import ceil_div, next_power_of_2


@dataclass(frozen=True)
class Samples:
    """``B`` samples of ``N`` rows of width ``D``. Where one timestep serves all, they may be one sample."""

    B: int
    N: int
    D: int

    @property
    def rows(self) -> int:
        return self.B * self.N

    def chunks(self, rows_per_chunk: int) -> int:
        """Programs that a sample is cut into; never 0, since kernels divide by it."""
        return max(ceil_div(self.N, rows_per_chunk), 1)


def as_samples(x: Tensor, *others: Tensor | None, shared: bool) -> tuple[Samples, list[Tensor | None]]:
    """Views (copies where there is none) ``[B, N, D]`` with a unit last stride.

    ``shared``: one timestep for all, so that sample borders mean nothing; they go where the strides allow.
    """
    B, D = x.shape[0], x.shape[-1]
    N = math.prod(x.shape[1:-1])
    views = [None if v is None else _unit_stride(v.reshape(B, N, D)) for v in (x, *others)]
    if shared and all(v is None or v.stride(0) == N * v.stride(1) for v in views):
        views = [None if v is None else v.view(1, B * N, D) for v in views]
        B, N = 1, B * N
    return Samples(B, N, D), views


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def row_strides(x: Tensor | None) -> tuple[int, int]:
    return (0, 0) if x is None else (x.stride(0), x.stride(1))


def walk(samples: Samples, tile: int, programs: int, longest: int) -> tuple[int, int]:
    """Rows per tile and tiles per program: as many as leave ``programs`` of them, both powers of two.

    Depends on shapes alone, so sums are cut the same way every time.
    """
    rows = min(max(tile // next_power_of_2(samples.D), 1), next_power_of_2(max(samples.N, 1)))
    tiles = ceil_div(samples.N, rows)
    wanted = min(samples.B * tiles // programs, tiles, longest)
    return rows, 1 << max(wanted, 1).bit_length() - 1
