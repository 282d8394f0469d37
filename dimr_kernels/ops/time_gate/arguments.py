"""The order of the parameters of scale and shift: the public one, in schemas, and the kernels', by kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
