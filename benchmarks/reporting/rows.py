"""One line of a report: an operator, a direction and a shape, ours beside its rivals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .records import DIRECTIONS, OURS, SCOPES, Record

# The order of reading, from the transformer's norms to attention; others follow by name.
OPERATORS = (
    "td_layer_norm", "td_rms_norm", "td_layer_norm_residual", "td_rms_norm_residual", "geglu", "geglu_linear",
    "depthwise_conv7x7", "depthwise_conv3x3", "pixel_shuffle_add", "shuffle_norm_add", "attention",
)  # fmt: skip
RIVALS = ("eager", "compiled", "max-autotune")


@dataclass
class Row:
    operator: str
    direction: str
    shape: str
    dtype: str
    records: dict[str, Record] = field(default_factory=dict)
    """Implementation -> record."""

    @property
    def any_record(self) -> Record:
        return next(iter(self.records.values()))

    @property
    def ours(self) -> Record | None:
        return self.records.get(OURS)

    @property
    def rivals(self) -> dict[str, Record]:
        """The three that every operator has first, then the others by name."""
        return {name: self.records[name] for name in sorted(self.records, key=rival_order) if name != OURS}

    def speed_ups(self) -> dict[str, float]:
        """Rival -> its time over ours, by the same clock; only those that were measured."""
        ours = self.ours.microseconds if self.ours else None
        if ours is None:
            return {}
        return {name: r.microseconds / ours for name, r in self.rivals.items() if r.microseconds is not None}


def rival_order(name: str) -> tuple[int, str]:
    return (RIVALS.index(name) if name in RIVALS else len(RIVALS), name)


def as_rows(records: Iterable[Record]) -> list[Row]:
    rows: dict[tuple[str, ...], Row] = {}
    for record in records:
        key = record.operator, record.direction, record.shape, record.dtype
        rows.setdefault(key, Row(*key)).records[record.implementation] = record
    return sorted(rows.values(), key=_reading_order)


def _reading_order(row: Row) -> tuple[object, ...]:
    operator = OPERATORS.index(row.operator) if row.operator in OPERATORS else len(OPERATORS)
    record = row.any_record
    scope = SCOPES.index(record.scope)
    return (
        operator,
        row.operator,
        DIRECTIONS.index(row.direction),
        scope,
        record.width,
        record.batch,
        row.shape,
        row.dtype,
    )
