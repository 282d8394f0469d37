"""Tensors ``[B, ..., D]`` as samples of rows: what the launchers of the kernels need to know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .configurations import Row
from .launch import cached_by_shape, ceil_div, next_power_of_2

Strides = tuple[int, ...]


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


@cached_by_shape
def row_stride(shape: Strides, strides: Strides) -> Any:
    """Between the rows of ``[..., D]``; None where it varies or the last stride is not 1.

    Where there are no elements it is D, whatever the strides: torch calls such a tensor contiguous.
    """
    if 0 in shape:
        return shape[-1]
    if shape[-1] > 1 and strides[-1] != 1:
        return None
    row, rows = None, 1
    for size, stride in zip(reversed(shape[:-1]), reversed(strides[:-1]), strict=True):
        if size != 1:
            if row is not None and stride != row * rows:
                return None
            row, rows = stride if row is None else row, rows * max(size, 1)
    return shape[-1] if row is None else row


@cached_by_shape
def row_strides(shape: Strides, strides: Strides) -> Any:
    """Two, of samples and of rows; None where ``[B, ..., D]`` is no view ``[B, N, D]`` with a unit last stride.

    What does not matter is chosen so that the samples follow one another.
    """
    N = math.prod(shape[1:-1])
    if 0 in shape:
        return N * shape[-1], shape[-1]
    row = row_stride(shape[1:], strides[1:])
    if row is None:
        return None
    if N == 1:
        return strides[0], strides[0]
    return strides[0] if shape[0] > 1 else row * N, row


def strides_of(x: Tensor | None) -> Strides | None:
    return None if x is None else x.stride()


def with_rows(x: Tensor) -> Tensor:
    """``x [B, ..., D]`` itself, or a copy where its rows do not lie at equal distances inside a sample."""
    if x.is_contiguous():
        return x
    return x.contiguous() if row_strides(x.shape, x.stride()) is None else x.resolve_neg()


def with_even_rows(x: Tensor) -> Tensor:
    """``x [..., D]`` itself, or a copy where its rows do not all lie at equal distances."""
    if x.is_contiguous():
        return x
    return x.contiguous() if row_stride(x.shape, x.stride()) is None else x.resolve_neg()


def as_samples(
    shape: Sequence[int], *strides: Strides | None, shared: bool
) -> tuple[Samples, list[tuple[int, int]]]:  # fmt: skip
    """Of tensors of one shape, as ``with_rows`` gives them: samples, and each one's strides of samples and rows.

    ``shared``: one timestep for all, so that sample borders mean nothing; they go where the strides allow.
    """
    B, N, D = shape[0], math.prod(shape[1:-1]), shape[-1]
    pairs: list[Any] = [(0, 0) if s is None else row_strides(tuple(shape), s) for s in strides]
    if shared and all(sample == N * row for sample, row in pairs):
        B, N = 1, B * N
    return Samples(B, N, D), pairs


@dataclass(frozen=True)
class Walk:
    """How rows are dealt out to programs, each of which walks over tiles of some rows of one sample."""

    elements: int
    """Of a tile, its rows rounded up to a power of two."""
    programs: int
    """So many are left before a program takes more than one tile."""
    longest: int
    """The most tiles that a program takes."""
    num_warps: int


def walk(samples: Samples, how: Walk) -> tuple[int, int]:
    """Rows per tile and tiles per program, both powers of two.

    Depends on shapes alone, so sums are cut the same way every time.
    """
    rows = min(max(how.elements // next_power_of_2(samples.D), 1), next_power_of_2(max(samples.N, 1)))
    tiles = ceil_div(samples.N, rows)
    wanted = min(samples.B * tiles // how.programs, tiles, how.longest)
    return rows, 1 << max(wanted, 1).bit_length() - 1


@dataclass(frozen=True)
class Tiling:
    """What one program works on."""

    columns: int
    """Of a tile, a power of two."""
    rows: int
    iterations: int
    """Tiles of rows per program; where a row does not fit in a tile, of columns per row."""
    num_warps: int

    @property
    def rows_per_program(self) -> int:
        return self.rows * self.iterations


def tiling(samples: Samples, how: Walk) -> Tiling:
    """Whole rows to each program, as ``how`` says."""
    rows, iterations = walk(samples, how)
    return Tiling(next_power_of_2(samples.D), rows, iterations, how.num_warps)


@dataclass(frozen=True)
class Columns:
    """Rows in blocks of columns, each walked as if it were the row."""

    block: int
    walk: Walk


def column_tiling(samples: Samples, how: Columns) -> Tiling:
    """A block of columns of some rows to each program; with several blocks, so many fewer programs of rows."""
    block = min(how.block, next_power_of_2(samples.D))
    programs = ceil_div(how.walk.programs, ceil_div(samples.D, block))
    return tiling(Samples(samples.B, samples.N, block), replace(how.walk, programs=programs))


def column_candidates(longest: int) -> list[Columns]:
    """For the tuner."""
    return [Columns(block, how) for block in (1024, 2048) for how in walk_candidates(block, longest)[1::2]]


def walk_rows(elements: int, programs: int, longest: int) -> tuple[Row[Walk], ...]:
    """A table's rows before any was timed: more warps for wider rows, so that a thread holds about as much."""
    limits = (2048, 4), (4096, 8), (None, 16)
    return tuple(Row(Walk(elements, programs, longest, num_warps), up_to) for up_to, num_warps in limits)


def walk_candidates(D: int, longest: int) -> list[Walk]:
    """For the tuner: 8 to 64 elements per thread, few programs and many."""
    tiles = [(elements, warps) for elements in (1024, 2048, 4096, 8192) for warps in (2, 4, 8, 16)]
    return [
        Walk(elements, programs, longest, warps)
        for elements, warps in tiles
        for programs in (1024, 4096)
        if elements >= next_power_of_2(D) and 8 <= elements // (32 * warps) <= 64
    ]
