"""A launch: all blocks of a grid, some at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from .faults import Unsupported
from .global_memory import GlobalMemory, Span
from .instructions import build
from .machine import Code, Machine
from .parsing import Instruction, Program, parse
from .values import BITS, DTYPES, UNSIGNED, Approximation, Array

LANES_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Pointer:
    """An argument that is an address, 0 for none."""

    address: int


Argument = Pointer | int | float | bool


@dataclass
class Outcome:
    instructions: int = 0
    """Run, each for all threads of some blocks at once."""
    notes: set[str] = field(default_factory=set)


@cache
def load(text: str) -> Code:
    """Read a kernel; once for each text."""
    return build(parse(text))


def run(
    code: Code,
    grid: tuple[int, int, int],
    arguments: Sequence[Argument],
    shared_bytes: int,
    tensors: Sequence[Span],
    approximation: Approximation | None = None,
) -> Outcome:
    """Run a kernel on memory of this process.

    Raises :class:`Fault` for what the kernel must not do. No access leaves ``tensors``.
    """
    program = code.program
    memory = GlobalMemory(tensors, _smallest_global_access(program))
    parameters = _parameters(program, arguments, memory)
    blocks = np.arange(int(np.prod(grid)), dtype=np.int64)
    at_once = max(1, LANES_AT_ONCE // program.threads)
    outcome = Outcome()
    with np.errstate(all="ignore"):
        for start in range(0, len(blocks), at_once):
            some = blocks[start : start + at_once]
            machine = Machine(code, grid, parameters, memory, shared_bytes, some, approximation or Approximation())
            machine.run()
            outcome.instructions += machine.steps
            outcome.notes |= machine.notes
    return outcome


def _parameters(program: Program, arguments: Sequence[Argument], memory: GlobalMemory) -> dict[str, Array]:
    if len(arguments) != len(program.parameters):
        raise TypeError(f"{program.name} has {len(program.parameters)} parameters, given {len(arguments)}")
    found = {}
    for (name, kind), argument in zip(program.parameters, arguments, strict=True):
        if kind not in BITS:
            raise Unsupported(f"{program.name}: parameter {name} of type {kind}")
        if isinstance(argument, Pointer):
            bits = np.array([memory.seen(argument.address) if argument.address else 0], np.uint64)
        elif kind.startswith("f"):
            bits = np.array([argument], DTYPES[kind]).view(UNSIGNED[BITS[kind]])
        elif isinstance(argument, float):
            raise TypeError(f"{program.name}: {argument} for parameter {name} of type {kind}")
        else:
            bits = np.array([argument & ((1 << BITS[kind]) - 1)], UNSIGNED[BITS[kind]])
        found[name] = bits
    return found


def _smallest_global_access(program: Program) -> int:
    """In bytes, 4 at most: how fine the record of who touched a tensor must be."""
    return min([4, *(_bytes(one) for one in program.instructions if "global" in one.modifiers and one.kind in BITS)])


def _bytes(one: Instruction) -> int:
    return BITS[one.kind] // 8
