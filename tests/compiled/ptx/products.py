"""Registers of matrix products that are under way (wgmma)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .faults import Kind
from .parsing import Address, Group, Instruction, Operand, Register

if TYPE_CHECKING:
    from .machine import Machine


class Products:
    def __init__(self) -> None:
        self._open: set[int] = set()
        """Registers of products that no group holds yet."""
        self._groups: list[set[int]] = []
        """Groups that were not waited for, the oldest first."""
        self._fence_step = -1
        self._written_by_product: dict[int, int] = {}
        self._registers: dict[int, frozenset[int]] = {}

    @property
    def under_way(self) -> bool:
        return bool(self._open or self._groups)

    def fence(self, step: int) -> None:
        self._fence_step = step

    def begin(self, machine: Machine, sums: list[int], inputs: list[int]) -> None:
        """A product reads and writes the registers ``sums`` and reads ``inputs``."""
        for register in (*sums, *inputs):
            written = machine.written[register]
            if written > self._fence_step and written != self._written_by_product.get(register):
                what = "a matrix product uses registers written after the last wgmma.fence"
                machine.fault(Kind.MISSING_FENCE, what, machine.lane)
        for register in sums:
            self._written_by_product[register] = machine.steps
        self._open |= {*sums, *inputs}

    def commit(self) -> None:
        self._groups.append(self._open)
        self._open = set()

    def wait(self, most: int) -> None:
        del self._groups[: max(0, len(self._groups) - most)]

    def check(self, machine: Machine, instruction: Instruction) -> None:
        """A fault where another instruction touches registers of a product that is under way."""
        if instruction.opcode == "wgmma":
            return
        used = self._registers.get(id(instruction))
        if used is None:
            used = self._registers[id(instruction)] = frozenset(_registers(instruction.operands))
        if not used.isdisjoint(self._open.union(*self._groups)):
            what = "touches registers of a matrix product that was not waited for"
            machine.fault(Kind.UNFINISHED_PRODUCT, what, machine.lane)


def _registers(operands: tuple[Operand, ...]) -> list[int]:
    found = []
    for operand in operands:
        if isinstance(operand, Register):
            found.append(operand.index)
        elif isinstance(operand, Group):
            found += _registers(operand.members)
        elif isinstance(operand, Address):
            found += _registers((operand.base,))
    return found
