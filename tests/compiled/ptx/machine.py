"""The state of some blocks of a launch, and the loop that runs their instructions.

A lane is a thread; lanes are numbered block by block. A register is an array of one number per lane, or of a single
number where all lanes hold the same. Every instruction runs once for all lanes that are at it. Where threads part at a
branch, those at the smallest address go first, and join the others where they meet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from .faults import Fault, Kind
from .global_memory import GlobalMemory
from .parsing import Address, Instruction, Number, Operand, Program, Register, Special, Symbol, Unused
from .products import Products
from .shared_memory import SharedMemory
from .values import DTYPES, SIGNED, UNSIGNED, Approximation, Array, pack, unpack

WARP = 32
Mask = Array | None
"""Lanes that take part; None for all."""
Action = Callable[["Machine", Mask], None]
# What registers hold before anything is written to them: a NaN in every float type, an odd address.
UNSET = {1: np.zeros(1, bool), 16: np.array([0x7FC1], np.uint16), 32: np.array([0x7FC17FC1], np.uint32)}
UNSET |= {64: np.array([0x7FF8DEAD7FC17FC1], np.uint64), 8: np.array([0x7F], np.uint8)}


@dataclass
class Code:
    """A program ready to run."""

    program: Program
    actions: list[Action]


class Machine:
    def __init__(
        self,
        code: Code,
        grid: tuple[int, int, int],
        parameters: dict[str, Array],
        global_memory: GlobalMemory,
        shared_bytes: int,
        blocks: Array,
        approximation: Approximation,
    ) -> None:
        self.program = code.program
        self._actions = code.actions
        self.grid = grid
        self.parameters = parameters
        self.approximation = approximation
        self.threads = self.program.threads
        self.blocks = blocks
        self.lanes = self.threads * len(blocks)
        self.lane = np.arange(self.lanes)
        self.thread = (self.lane % self.threads).astype(np.int32)
        self.block_index = self.lane // self.threads
        """Number of each lane's block, among the blocks here."""
        self.block = blocks[self.block_index].astype(np.int32)
        """Number of each lane's block, in the grid."""
        self.global_memory = global_memory
        self.shared = SharedMemory(self, shared_bytes)
        self.registers: list[Array] = [UNSET[width] for width in self.program.widths]
        self.written = [-1] * len(self.registers)
        """The step that wrote each register last."""
        self.products = Products()
        self.instruction: Instruction = self.program.instructions[0]
        self.steps = 0
        self.notes: set[str] = set()

    # Running

    def run(self) -> None:
        waiting: dict[int, Mask] = {0: None}
        while waiting:
            position = min(waiting)
            self._run_from(position, waiting.pop(position), waiting)

    def _run_from(self, position: int, mask: Mask, waiting: dict[int, Mask]) -> None:
        """Until these lanes part, finish, or come to where others wait."""
        instructions, actions = self.program.instructions, self._actions
        next_stop = min(waiting, default=len(instructions))
        while True:
            instruction = self.instruction = instructions[position]
            self.steps += 1
            if instruction.opcode in ("bra", "ret", "exit"):
                taken, left = self._parted(instruction, mask)
                if instruction.opcode == "bra":
                    target = self.program.labels[instruction.operands[0].name]  # type: ignore[union-attr]
                    if taken is not NOBODY:
                        self._wait(waiting, target, taken)
                if left is not NOBODY:
                    self._wait(waiting, position + 1, left)
                return
            active = mask if instruction.guard is None else self._parted(instruction, mask)[0]
            if active is not NOBODY:
                if self.products.under_way:
                    self.products.check(self, instruction)
                actions[position](self, active)
            position += 1
            if position >= next_stop:
                self._wait(waiting, position, mask)
                return

    def _parted(self, instruction: Instruction, mask: Mask) -> tuple[Mask, Mask]:
        """Lanes of ``mask`` for which the guard holds, and the others; ``NOBODY`` where there are none."""
        if instruction.guard is None:
            return mask, NOBODY
        holds = self.registers[instruction.guard.index]
        if instruction.guard_negated:
            holds = ~holds
        chosen = holds if mask is None else mask & holds
        others = ~holds if mask is None else mask & ~holds
        if not others.any():
            return mask, NOBODY
        if not chosen.any():
            return NOBODY, mask
        return chosen, others

    def _wait(self, waiting: dict[int, Mask], position: int, mask: Mask) -> None:
        if position in waiting and mask is not None:
            others = waiting[position]
            mask = None if others is None else others | mask
            if mask is not None and mask.all():
                mask = None
        waiting[position] = mask

    # Faults

    def fault(self, kind: Kind, what: str, lanes: Array, address: int | None = None) -> NoReturn:
        """``lanes`` did it."""
        instruction = self.instruction
        first = int(lanes[0])
        thread = f"thread {int(self.thread[first])} of block {int(self.block[first])}"
        if len(lanes) > 1:
            thread += f" and {len(lanes) - 1} more"
        where = "" if address is None else f", address {address:#x}"
        raise Fault(
            kind,
            f"{what}\n  kernel {self.program.name}, PTX line {instruction.line}: {instruction.text}\n"
            f"  source {instruction.location or 'unknown'}\n  {thread}{where}",
        )

    def note(self, what: str) -> None:
        """Something to know that is no fault."""
        self.notes.add(f"{self.program.name}, {self.instruction.location}: {what}")

    # Lanes

    def active_lanes(self, mask: Mask) -> Array:
        return self.lane if mask is None else np.flatnonzero(mask)

    def full(self, values: Array) -> Array:
        """One value for each lane."""
        return values if len(values) == self.lanes else np.broadcast_to(values, (self.lanes,))

    def whole_warps(self, mask: Mask, what: str) -> Array:
        """Lanes of the active warps, ``[warps, 32]``; a fault where a part of a warp is missing."""
        return self._whole(mask, WARP, Kind.DIVERGENT_WARP, f"{what} by a part of a warp")

    def whole_warpgroups(self, mask: Mask, what: str) -> Array:
        """Lanes of the active warp groups, ``[groups, 128]``."""
        return self._whole(mask, 4 * WARP, Kind.DIVERGENT_WARP, f"{what} by a part of a warp group")

    def whole_blocks(self, mask: Mask, what: str) -> Array:
        """Lanes of the active blocks, ``[blocks, threads]``."""
        return self._whole(mask, self.threads, Kind.DIVERGENT_BARRIER, f"{what} by a part of a block")

    def _whole(self, mask: Mask, size: int, kind: Kind, message: str) -> Array:
        lanes = self.lane.reshape(-1, size)
        if mask is None:
            return lanes
        present = mask.reshape(-1, size).sum(1)
        parts = (present > 0) & (present < size)
        if parts.any():
            self.fault(kind, message, lanes[parts][mask.reshape(-1, size)[parts]])
        return lanes[present > 0]

    # Operands

    def read(self, operand: Operand, kind: str) -> Array:
        """As numbers of a type; a register that is wider than the type gives its lower bits."""
        dtype = DTYPES[kind]
        if isinstance(operand, Register):
            values = self.registers[operand.index]
            if values.itemsize != np.dtype(dtype).itemsize:
                values = values.astype(UNSIGNED[8 * np.dtype(dtype).itemsize])
            return values.view(dtype)
        if isinstance(operand, Number):
            return _number(operand, dtype)
        if isinstance(operand, Special):
            return self._special(operand).astype(dtype)
        if isinstance(operand, Symbol):
            return np.array([self.shared.address_of(operand.name)], np.uint64).astype(dtype)
        raise self.instruction.unsupported()

    def read_predicate(self, operand: Operand) -> Array:
        if isinstance(operand, Register) and operand.width == 1:
            return self.registers[operand.index]
        if isinstance(operand, Number):
            return np.array([operand.bits != 0])
        raise self.instruction.unsupported()

    def read_halves(self, operand: Operand, kind: str) -> list[Array]:
        return unpack(self.read(operand, "b32" if kind.endswith("x2") else "b16"), kind)

    def _special(self, operand: Special) -> Array:
        if operand.name == "tid":
            return self.thread if operand.axis == 0 else np.zeros(1, np.int32)
        if operand.name == "laneid":
            return self.thread % WARP
        if operand.name == "ntid":
            return np.array([self.threads if operand.axis == 0 else 1])
        if operand.name == "nctaid":
            return np.array([self.grid[operand.axis]])
        width, height, _ = self.grid
        if operand.axis == 0:
            return self.block % width
        return self.block // width % height if operand.axis == 1 else self.block // (width * height)

    def addresses(self, operand: Operand, kind: str) -> Array:
        if not isinstance(operand, Address):
            raise self.instruction.unsupported()
        base = self.read(operand.base, kind)
        return base + np.array([operand.offset], np.int64).astype(base.dtype) if operand.offset else base

    def write(self, operand: Operand, values: Array, mask: Mask) -> None:
        """Into a register, extended by the sign or by zeros where it is wider than the values."""
        if isinstance(operand, Unused):
            return
        if not isinstance(operand, Register):
            raise self.instruction.unsupported()
        width = operand.width
        if width > 1:
            have = 8 * values.itemsize
            if have < width:
                values = values.astype((SIGNED if values.dtype.kind == "i" else UNSIGNED)[width])
            elif have > width:
                raise self.instruction.unsupported()
            values = values.view(UNSIGNED[width])
        index = operand.index
        self.registers[index] = values if mask is None else np.where(mask, values, self.registers[index])
        self.written[index] = self.steps

    def write_lanes(self, operand: Operand, values: Array, lanes: Array, mask: Mask) -> None:
        """``values[i]`` belongs to ``lanes[i]``, the lanes of ``mask``."""
        if mask is not None:
            spread = np.zeros(self.lanes, values.dtype)
            spread[lanes] = values
            values = spread
        self.write(operand, values, mask)

    def write_halves(self, operand: Operand, parts: list[Array], kind: str, mask: Mask) -> None:
        self.write(operand, pack(parts, kind), mask)


NOBODY = np.zeros(0, bool)


def _number(operand: Number, dtype: type) -> Array:
    size = np.dtype(dtype).itemsize
    return np.array([operand.bits], np.uint64).astype(UNSIGNED[8 * size]).view(dtype)
