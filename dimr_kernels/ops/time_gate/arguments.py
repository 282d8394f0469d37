"""The parameters of scale and shift, in the order of schemas and of the kernels, and the gradients that are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

GATES = (
    "Tensor p1, Tensor p2, Tensor? p3, Tensor? p4, Tensor scale_gate_weight, Tensor scale_gate_offset, "
    "Tensor? shift_gate_weight, Tensor? shift_gate_offset"
)


def by_kind(values: Sequence[Any]) -> tuple[Any, ...]:
    """The schema's order p1 p2 p3 p4, scale gate, shift gate -> the kernels': scale's four, shift's four."""
    p1, p2, p3, p4, scale_weight, scale_offset, shift_weight, shift_offset = values
    return p1, p2, scale_weight, scale_offset, p3, p4, shift_weight, shift_offset


def by_schema(values: Sequence[Any]) -> tuple[Any, ...]:
    """The inverse of :func:`by_kind`."""
    p1, p2, scale_weight, scale_offset, p3, p4, shift_weight, shift_offset = values
    return p1, p2, p3, p4, scale_weight, scale_offset, shift_weight, shift_offset


def fake_gradients(tensors: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor]:
    """Of those tensors that want one, not filled."""
    return [v.new_empty(v.shape) for v, need in zip(tensors, needs, strict=True) if need]


def in_place_of(needs: Sequence[bool], found: Iterable[Tensor]) -> list[Tensor | None]:
    """The gradients that were found, each where one is wanted, and None elsewhere."""
    remaining = iter(found)
    return [next(remaining) if need else None for need in needs]
