"""Shared memory of every block, and when which thread touched it.

Time is counted in phases: a block's barrier begins a new phase of the block and of its warps, a warp's barrier a new
phase of the warp. Two threads that touch the same bytes, one of them writing, race unless the later one is in a later
phase of the block, or of the warp where both belong to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .faults import Kind
from .values import UNSIGNED, Array

if TYPE_CHECKING:
    from .machine import Machine
    from .parsing import Instruction

WARP = 32
BASE = 1024
"""Address of the first byte; the null pointer and what lies behind it belong to nobody."""
NOBODY, SEVERAL = -1, -2
ROUNDING = 2.0**-18
"""Relative, and absolute for sums of terms of about 1 that cancel: what the order of a float32 sum may change."""


@dataclass
class _Copies:
    """Cells that one asynchronous instruction writes, or reads, and the group that it belongs to."""

    cells: Array
    """[lanes, cells of one access]"""
    lanes: Array
    groups: Array
    """Group of each lane's copy."""

    def of(self, chosen: Array) -> _Copies:
        return _Copies(self.cells[chosen], self.lanes[chosen], self.groups[chosen])


class SharedMemory:
    def __init__(self, machine: Machine, size: int) -> None:
        self._machine = machine
        self.size = size
        blocks = len(machine.blocks)
        self._stride = -(-size // 16) * 16
        """Bytes from one block's memory to the next one's."""
        self._cell = min(4, *(_smallest_access(machine.program.instructions)))
        raw = np.full(blocks * self._stride, 0xFF, np.uint8)  # NaN in every type
        self._views: dict[int, Array] = {size: raw.view(UNSIGNED[8 * size]) for size in (1, 2, 4, 8)}
        cells = len(raw) // self._cell
        self._phase = np.zeros(blocks, np.int32)
        self._warp_phase = np.zeros(machine.lanes // WARP, np.int32)
        # Of each cell: the last thread that wrote, who read since, and in which phases.
        self._writer, self._reader, self._reading_warp = (np.full(cells, NOBODY, np.int32) for _ in range(3))
        self._write_phase, self._write_warp_phase, self._read_phase, self._read_warp_phase = (
            np.zeros(cells, np.int32) for _ in range(4)
        )
        self._write_step = np.zeros(cells, np.int64)
        self._fence_step = np.zeros(blocks, np.int64)
        # cp.async: groups of each lane, and cells still to be filled.
        self._filling = np.zeros(cells, bool)
        self._copied = np.zeros(cells, bool)
        """Cells that cp.async wrote last."""
        self._copies: list[_Copies] = []
        self._committed = np.zeros(machine.lanes, np.int32)
        # wgmma: groups of each lane, and how many unfinished products still read a cell.
        self._multiplied = np.zeros(cells, np.int32)
        self._products: list[_Copies] = []
        self._products_committed = np.zeros(machine.lanes, np.int32)

    def address_of(self, symbol: str) -> int:
        if symbol != "global_smem":
            raise self._machine.instruction.unsupported()
        return BASE

    # Barriers

    def block_barrier(self, lanes: Array) -> None:
        """``lanes [blocks, threads]``"""
        self._phase[self._machine.block_index[lanes[:, 0]]] += 1
        self._warp_phase[lanes[:, ::WARP].reshape(-1) // WARP] += 1

    def warp_barrier(self, lanes: Array) -> None:
        """``lanes [warps, 32]``"""
        self._warp_phase[lanes[:, 0] // WARP] += 1

    def proxy_fence(self, lanes: Array) -> None:
        """Show matrix products, from here on, what was written before."""
        self._fence_step[np.unique(self._machine.block_index[lanes])] = self._machine.steps

    # Accesses

    def load(self, lanes: Array, addresses: Array, count: int, size: int) -> list[Array]:
        """``count`` unsigned numbers of ``size`` bytes, one after the other, for each lane."""
        places = self._places(lanes, addresses, count * size)
        self._note_read(lanes, self._cells(places, count * size), places)
        view, first = self._views[size], places // size
        return [view[first + k] for k in range(count)]

    def store(self, lanes: Array, addresses: Array, values: list[Array], size: int) -> None:
        places = self._places(lanes, addresses, len(values) * size)
        cells = self._cells(places, len(values) * size)
        view, first = self._views[size], places // size
        same = np.logical_and.reduce([view[first + k] == value for k, value in enumerate(values)])
        self._note_write(lanes, cells, places, same)
        for k, value in enumerate(values):
            view[first + k] = value
            other = view[first + k] != value
            if other.any():
                self._refuse_different(lanes[other], places[other], value[other], view[first + k][other])

    def _refuse_different(self, lanes: Array, places: Array, wanted: Array, stored: Array) -> None:
        """Threads store different values in one place at once, and one of them stays.

        That is so in compiled reductions: all lanes hold the sum and all store it, but where a product was contracted
        into the first sum of a butterfly, ``fma(a, b, partner)``, the lanes' sums differ by a rounding. Such a
        difference is noted; the results of a run show if it matters.
        """
        if wanted.dtype == np.uint32:
            x, y = wanted.view(np.float32), stored.view(np.float32)
            if np.allclose(x, y, rtol=ROUNDING, atol=ROUNDING):
                self._machine.note("lanes store sums that differ by a rounding in one place")
                return
        self._fault(Kind.RACE, "threads store different values at once", lanes, places)

    def _places(self, lanes: Array, addresses: Array, length: int) -> Array:
        """Bytes from the start of all blocks' memory; checked."""
        offsets = addresses.astype(np.int64) - BASE
        outside = (offsets < 0) | (offsets > self.size - length)
        if outside.any():
            what = f"{length} bytes at byte {int(offsets[outside][0])} of shared memory, which has {self.size}"
            self._machine.fault(Kind.OUT_OF_BOUNDS, what, lanes[outside], int(addresses[outside][0]))
        askew = (offsets & (length - 1)) != 0
        if askew.any():
            what = f"{length} bytes of shared memory, not at a multiple"
            self._machine.fault(Kind.MISALIGNED, what, lanes[askew], int(addresses[askew][0]))
        return self._machine.block_index[lanes] * self._stride + offsets

    def _cells(self, places: Array, length: int) -> Array:
        return places[:, None] // self._cell + np.arange(-(-length // self._cell))

    def _fault(self, kind: Kind, what: str, lanes: Array, places: Array) -> None:
        offset = int(places[0]) % self._stride
        self._machine.fault(kind, f"{what}, at byte {offset} of shared memory", lanes, BASE + offset)

    def _fault_where(self, where: Array, kind: Kind, what: str, lanes: Array, places: Array) -> None:
        """``where [lanes, cells]``"""
        rows = where.any(1)
        self._fault(kind, what, lanes[rows], places[rows])

    def _now(self, lanes: Array) -> tuple[Array, Array, Array, Array]:
        """Thread, warp, phase of the block and of the warp, each ``[lanes, 1]``."""
        machine = self._machine
        thread = machine.thread[lanes][:, None]
        return (
            thread,
            thread // WARP,
            self._phase[machine.block_index[lanes]][:, None],
            self._warp_phase[lanes // WARP][:, None],
        )

    def _refuse_race_with_writer(self, lanes: Array, cells: Array, places: Array, verb: str, allowed: Array) -> None:
        thread, warp, phase, warp_phase = self._now(lanes)
        writer = self._writer[cells]
        race = (writer != thread) & (writer != NOBODY) & (self._write_phase[cells] == phase) & ~allowed
        if race.any():
            race &= ~((writer // WARP == warp) & (self._write_warp_phase[cells] < warp_phase))
        if race.any():
            what = f"{verb} what thread {int(writer[race][0])} wrote, with no barrier between"
            self._fault_where(race, Kind.RACE, what, lanes, places)

    def _refuse_unfinished(self, lanes: Array, cells: Array, places: Array, verb: str) -> None:
        if self._copies:
            filling = self._filling[cells]
            if filling.any():
                what = f"{verb} what a cp.async fills that was not waited for"
                self._fault_where(filling, Kind.UNFINISHED_COPY, what, lanes, places)

    def _note_read(self, lanes: Array, cells: Array, places: Array) -> None:
        unset = self._writer[cells] == NOBODY
        if unset.any():
            self._fault_where(unset, Kind.UNINITIALISED, "reads what nobody wrote", lanes, places)
        self._refuse_unfinished(lanes, cells, places, "reads")
        self._refuse_race_with_writer(lanes, cells, places, "reads", np.zeros(1, bool))
        thread, warp, phase, warp_phase = self._now(lanes)
        reader, reading_warp = self._reader[cells], self._reading_warp[cells]
        first = (reader == NOBODY) | (self._read_phase[cells] != phase)
        first |= (reading_warp == warp) & (self._read_warp_phase[cells] < warp_phase)
        reader = np.where(first | (reader == thread), thread, np.int32(SEVERAL))
        reading_warp = np.where(first | (reading_warp == warp), warp, np.int32(SEVERAL))
        for record, now in ((self._reader, reader), (self._reading_warp, reading_warp)):
            record[cells] = now
            lost = record[cells] != now  # of lanes that read the same cell only the last one is in the record
            if lost.any():
                record[cells[lost]] = SEVERAL
        self._read_phase[cells] = phase
        self._read_warp_phase[cells] = warp_phase

    def _note_write(self, lanes: Array, cells: Array, places: Array, same: Array) -> None:
        """``same``: lanes that store what is there already, which may have been stored by another."""
        self._refuse_unfinished(lanes, cells, places, "overwrites")
        if self._products:
            reading = self._multiplied[cells] > 0
            if reading.any():
                what = "overwrites what a matrix product reads that was not waited for"
                self._fault_where(reading, Kind.UNFINISHED_PRODUCT, what, lanes, places)
        self._refuse_race_with_writer(lanes, cells, places, "overwrites", same[:, None])
        thread, warp, phase, warp_phase = self._now(lanes)
        reader = self._reader[cells]
        race = (reader != thread) & (reader != NOBODY) & (self._read_phase[cells] == phase)
        if race.any():
            race &= ~((self._reading_warp[cells] == warp) & (self._read_warp_phase[cells] < warp_phase))
        if race.any():
            other = int(reader[race][0])
            what = f"overwrites what {'others' if other < 0 else f'thread {other}'} read, with no barrier between"
            self._fault_where(race, Kind.RACE, what, lanes, places)
        self._writer[cells] = thread
        self._copied[cells] = False
        self._mark_written(lanes, cells)

    def _mark_written(self, lanes: Array, cells: Array) -> None:
        _, _, phase, warp_phase = self._now(lanes)
        self._write_phase[cells] = phase
        self._write_warp_phase[cells] = warp_phase
        self._write_step[cells] = self._machine.steps

    # cp.async

    def copy_into(self, lanes: Array, addresses: Array, values: list[Array], size: int) -> None:
        """Store, but nothing may touch the bytes until the threads that copy have waited for their groups."""
        self.store(lanes, addresses, values, size)
        cells = self._cells(self._places(lanes, addresses, len(values) * size), len(values) * size)
        self._filling[cells] = self._copied[cells] = True
        self._copies.append(_Copies(cells, lanes, self._committed[lanes] + 1))

    def commit_copies(self, lanes: Array) -> None:
        self._committed[lanes] += 1

    def wait_for_copies(self, lanes: Array, most: Array | None) -> None:
        """Until at most ``most`` groups of these lanes are unfinished; None: until none is, committed or not."""
        waited = np.full(self._machine.lanes, -1, np.int32)
        waited[lanes] = self._committed[lanes] - most if most is not None else self._committed[lanes] + 1
        finished, self._copies = _parted(self._copies, waited)
        for copies in finished:
            self._filling[copies.cells] = False
            self._mark_written(copies.lanes, copies.cells)  # for others it is written only now

    # wgmma

    def multiply_from(self, lanes: Array, addresses: Array, length: int, size: int) -> Array:
        """Read for asynchronous products: ``length`` numbers of ``size`` bytes from each address.

        ``lanes``: for each address the first lane of the warp group that multiplies.
        """
        places = self._places(lanes, addresses, length * size)
        cells = self._cells(places, length * size)
        unset = self._writer[cells] == NOBODY
        if unset.any():
            self._fault_where(unset, Kind.UNINITIALISED, "a matrix product reads what nobody wrote", lanes, places)
        self._refuse_unfinished(lanes, cells, places, "a matrix product reads")
        self._refuse_race_with_writer(lanes, cells, places, "a matrix product reads", np.zeros(1, bool))
        block = self._machine.block_index[lanes][:, None]
        unfenced = self._write_step[cells] >= self._fence_step[block]
        if (unfenced & self._copied[cells]).any():
            # The manual asks for a fence here too, but Triton before 3.8 left it out, and its kernels ran.
            self._machine.note("a matrix product reads what cp.async wrote after the last fence.proxy.async")
            unfenced &= ~self._copied[cells]
        if unfenced.any():
            what = "a matrix product reads what was written after the last fence.proxy.async"
            self._fault_where(unfenced, Kind.MISSING_FENCE, what, lanes, places)
        np.add.at(self._multiplied, cells, 1)
        groups = self._products_committed[lanes] + 1
        self._products.append(_Copies(cells, lanes, groups))
        first = places // size
        return self._views[size][first[:, None] + np.arange(length)]

    def commit_products(self, lanes: Array) -> Array:
        """Returns the number of the group of each lane."""
        self._products_committed[lanes] += 1
        return self._products_committed[lanes]

    def wait_for_products(self, lanes: Array, most: int) -> None:
        """Until at most ``most`` groups of these lanes are unfinished."""
        waited = np.full(self._machine.lanes, -1, np.int32)
        waited[lanes] = self._products_committed[lanes] - most
        finished, self._products = _parted(self._products, waited)
        for products in finished:
            np.subtract.at(self._multiplied, products.cells, 1)
            # They have been read up to here: by all threads of the group, as far as others are concerned.
            _, _, phase, warp_phase = self._now(products.lanes)
            self._reader[products.cells] = SEVERAL
            self._reading_warp[products.cells] = SEVERAL
            self._read_phase[products.cells] = phase
            self._read_warp_phase[products.cells] = warp_phase


def _parted(copies: list[_Copies], waited: Array) -> tuple[list[_Copies], list[_Copies]]:
    """Those of groups that were waited for, ``waited`` being the last of each lane, and the others."""
    finished, left = [], []
    for one in copies:
        done = one.groups <= waited[one.lanes]
        if done.any():
            finished.append(one.of(done))
        if not done.all():
            left.append(one.of(~done))
    return finished, left


def _smallest_access(instructions: list[Instruction]) -> list[int]:
    """Bytes of the kernel's accesses to shared memory that are shorter than 4; [4] where there are none."""
    short = [4]
    for instruction in instructions:
        if "shared" in instruction.modifiers and instruction.opcode in ("ld", "st"):
            short.append(int("".join(c for c in instruction.kind if c.isdigit())) // 8)
    return short
