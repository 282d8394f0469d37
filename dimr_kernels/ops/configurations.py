"""Launch configurations as data: beside each kernel a table, read by size and architecture. Nothing is timed in use.

``python -m benchmarks.tune`` times what a table holds as candidates, so that a person can edit its rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..launch import assume_architecture, forget_launches  # noqa: F401
from ..launch import family_of as family  # noqa: F401
from ..launch import gpu_family as current_family

C = TypeVar("C")
FAMILIES = (80, 90)
_forced: dict[str, Any] = {}


@dataclass(frozen=True)
class Row(Generic[C]):
    """One line of a table."""

    config: C
    up_to: int | None = None
    """The largest size it serves; None for any."""
    family: int | None = None
    """Compute capability times ten, 80 or 90, as :func:`family` rounds it; None for any."""
    measured: str | None = None
    """The measurement that chose it: GPU, shape, time, and that of the next best. None: not timed."""


class Table(Generic[C]):
    """The configurations of one kernel.

    Args:
        kernel: its name, as the static report and the tuner call it.
        rows: from the smallest size up; the first that serves decides.
        candidates: what the tuner tries at a size (of this family) besides the rows' choice.
    """

    def __init__(self, kernel: str, rows: Sequence[Row[C]], candidates: Callable[[int, int], Sequence[C]]) -> None:
        self.kernel = kernel
        self.rows = tuple(rows)
        self._candidates = candidates
        for wanted in FAMILIES:
            if not any(row.up_to is None and row.family in (None, wanted) for row in rows):
                raise ValueError(f"{kernel}: no row serves every size on {wanted}")

    def choose(self, size: int) -> C:
        """What this size runs with on the GPU in use; inside :func:`forced`, what was forced."""
        if _forced and self.kernel in _forced:
            return _forced[self.kernel]
        return self.row(size).config

    def row(self, size: int) -> Row[C]:
        wanted = current_family()
        return next(
            row
            for row in self.rows
            if (row.up_to is None or size <= row.up_to) and (row.family is None or row.family == wanted)
        )

    def candidates(self, size: int) -> list[C]:
        """What is worth trying, the present choice first, none twice."""
        return list(dict.fromkeys((self.row(size).config, *self._candidates(size, current_family()))))


@contextlib.contextmanager
def forced(kernel: str, config: Any) -> Iterator[None]:
    """Inside the block the kernel runs with this configuration, in every thread: for the tuner and for tests."""
    if kernel in _forced:
        raise RuntimeError(f"{kernel}: a configuration is forced already")
    _forced[kernel] = config
    forget_launches()
    try:
        yield
    finally:
        del _forced[kernel]
        forget_launches()
