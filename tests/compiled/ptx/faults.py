"""Faults, which end a run."""

from __future__ import annotations

import enum


class Kind(enum.Enum):
    """An act of a kernel that is not allowed."""

    OUT_OF_BOUNDS = "out of bounds"
    MISALIGNED = "misaligned"
    UNINITIALISED = "uninitialised shared memory"
    RACE = "race"
    BLOCK_RACE = "race between blocks"
    DIVERGENT_BARRIER = "divergent barrier"
    DIVERGENT_WARP = "divergent warp"
    UNFINISHED_COPY = "unfinished copy"
    UNFINISHED_PRODUCT = "unfinished matrix product"
    MISSING_FENCE = "missing fence"
    DIVISION_BY_ZERO = "integer division by zero"
    TRAP = "trap"


class Fault(AssertionError):
    """A kernel did what it must not do; the message names the kernel, the lines, the threads and the address."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(f"{kind.value}: {message}")
        self.kind = kind


class Unsupported(NotImplementedError):
    """An instruction, or a form of one, that is not implemented here: nothing is skipped or guessed."""
