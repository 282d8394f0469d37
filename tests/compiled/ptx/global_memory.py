"""The tensors of a launch as a kernel sees them, and who touched what.

Each tensor has a range of addresses of its own, 2**40 bytes from the next, so that a stray access cannot fall into
another one. Blocks run in no order, so what one writes no other may touch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .faults import Kind
from .values import UNSIGNED, Array

if TYPE_CHECKING:
    from .machine import Machine

RANGE_BITS = 40
NOTHING_THERE = 0x7F << 48
LONGEST_ACCESS = 16
# Records of who touched a cell hold the number of a block, from 1. They start as zeros, which take no memory until they
# are touched: a tensor may be far larger than what a test fills of it.
NOBODY, SEVERAL = 0, -1


@dataclass(frozen=True)
class Span:
    """Place of a tensor in memory."""

    name: str
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""
    element_size: int

    @property
    def size(self) -> int:
        """In bytes, from the first element to the last."""
        if 0 in self.shape:
            return 0
        return (
            1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        ) * self.element_size

    def bytes_held(self) -> Array:
        """Offsets of the bytes that belong to an element."""
        offsets = np.zeros(1, np.int64)
        for n, stride in zip(self.shape, self.strides, strict=True):
            offsets = (offsets[:, None] + np.arange(n) * stride).reshape(-1)
        return (offsets[:, None] * self.element_size + np.arange(self.element_size)).reshape(-1)

    @property
    def dense(self) -> bool:
        return int(np.prod(self.shape)) * self.element_size >= self.size


@dataclass
class Region:
    """One tensor, or several that overlap."""

    spans: list[Span] = field(default_factory=list)
    real: int = 0
    """Address of its first byte in this process."""
    size: int = 0
    seen: int = 0
    """Address of the same byte in the kernel."""

    def __post_init__(self) -> None:
        self.views: dict[int, Array] = {}
        self.shift = 0
        self.held: Array | None = None
        self.writer = self.reader = np.zeros(0, np.int32)

    @property
    def name(self) -> str:
        return " and ".join(span.name for span in self.spans)

    def open(self, index: int, cell: int) -> None:
        """Map the memory; ``cell`` bytes share one record of who touched them."""
        self.seen = (index + 1) << RANGE_BITS | 1 << (RANGE_BITS - 1) | self.real % 4096
        self.shift = self.seen % LONGEST_ACCESS  # cells and views begin at a multiple of the longest access
        length = -(-(self.size + self.shift) // LONGEST_ACCESS) * LONGEST_ACCESS
        raw: Array = np.frombuffer((ctypes.c_uint8 * length).from_address(self.real - self.shift), np.uint8)  # type: ignore[call-overload]
        self.views = {size: raw.view(UNSIGNED[8 * size]) for size in (1, 2, 4, 8)}
        self.writer, self.reader = (np.zeros(length // cell, np.int32) for _ in range(2))
        if len(self.spans) > 1 or not self.spans[0].dense:
            self.held = np.zeros(self.size, bool)
            for span in self.spans:
                if span.dense:
                    self.held[span.address - self.real :][: span.size] = True
                else:
                    self.held[span.address - self.real + span.bytes_held()] = True


class GlobalMemory:
    def __init__(self, spans: Sequence[Span], cell: int) -> None:
        self._cell = cell
        self._regions: list[Region] = []
        for span in sorted((span for span in spans if span.size), key=lambda span: span.address):
            last = self._regions[-1] if self._regions else None
            if last is not None and span.address < last.real + last.size:
                last.spans.append(span)
                last.size = max(last.size, span.address + span.size - last.real)
            else:
                self._regions.append(Region([span], span.address, span.size))
        for index, region in enumerate(self._regions):
            region.open(index, cell)

    def seen(self, address: int) -> int:
        """The kernel's address for one of this process."""
        for region in self._regions:
            if region.real <= address < region.real + region.size:
                return region.seen + address - region.real
        return NOTHING_THERE + address % 4096  # of an empty tensor

    def load(self, machine: Machine, lanes: Array, addresses: Array, count: int, size: int) -> list[Array]:
        """``count`` unsigned numbers of ``size`` bytes, one after the other, for each lane."""
        parts = self._parts(machine, lanes, addresses)
        if len(parts) == 1:
            return self._load_from(parts[0][0], machine, lanes, addresses, count, size)
        found: list[Array] = [np.zeros(len(lanes), UNSIGNED[8 * size]) for _ in range(count)]
        for region, chosen in parts:
            loaded = self._load_from(region, machine, lanes[chosen], addresses[chosen], count, size)
            for whole, part in zip(found, loaded, strict=True):
                whole[chosen] = part
        return found

    def store(self, machine: Machine, lanes: Array, addresses: Array, values: list[Array], size: int) -> None:
        for region, chosen in self._parts(machine, lanes, addresses):
            self._store_into(region, machine, lanes[chosen], addresses[chosen], [v[chosen] for v in values], size)

    def _parts(self, machine: Machine, lanes: Array, addresses: Array) -> list[tuple[Region, Array | slice]]:
        """The region of each address."""
        index = (addresses >> np.uint64(RANGE_BITS)).astype(np.int64) - 1
        if (index == index[0]).all():
            chosen: list[tuple[int, Array | slice]] = [(int(index[0]), slice(None))]
        else:
            chosen = [(int(i), np.flatnonzero(index == i)) for i in np.unique(index)]
        for i, places in chosen:
            if not 0 <= i < len(self._regions):
                strays = lanes[places]
                address = int(addresses[places][0])
                machine.fault(Kind.OUT_OF_BOUNDS, "an address of no tensor of the launch", strays, address)
        return [(self._regions[i], places) for i, places in chosen]

    def _offsets(self, region: Region, machine: Machine, lanes: Array, addresses: Array, length: int) -> Array:
        """From where the region's views begin; checked."""
        offsets = addresses.astype(np.int64) - region.seen
        askew = (addresses & np.uint64(length - 1)) != 0
        if askew.any():
            strays, address = lanes[askew], int(addresses[askew][0])
            machine.fault(Kind.MISALIGNED, f"{length} bytes of {region.name}, not at a multiple", strays, address)
        outside = (offsets < 0) | (offsets > region.size - length)
        if outside.any():
            self._out_of_bounds(region, machine, lanes[outside], offsets[outside], length)
        if region.held is not None:
            between = ~region.held[offsets[:, None] + np.arange(length)].all(1)
            if between.any():
                self._out_of_bounds(region, machine, lanes[between], offsets[between], length)
        return offsets + region.shift

    def _out_of_bounds(self, region: Region, machine: Machine, lanes: Array, offsets: Array, length: int) -> None:
        first = int(offsets[0])
        what = f"{length} bytes at byte {first} of {region.name}, which has {region.size}"
        if 0 <= first <= region.size - length:
            what = f"{length} bytes at byte {first} of {region.name}, between its elements"
        machine.fault(Kind.OUT_OF_BOUNDS, what, lanes, region.seen + first)

    def _cells(self, offsets: Array, length: int) -> Array:
        """[lanes, cells of one access]"""
        return offsets[:, None] // self._cell + np.arange(-(-length // self._cell))

    def _load_from(
        self, region: Region, machine: Machine, lanes: Array, addresses: Array, count: int, size: int
    ) -> list[Array]:
        offsets = self._offsets(region, machine, lanes, addresses, count * size)
        block = machine.block[lanes][:, None] + 1
        cells = self._cells(offsets, count * size)
        writer = region.writer[cells]
        self._refuse_other(region, machine, lanes, block, writer, offsets, "reads what block {} wrote")
        reader = region.reader[cells]
        now = np.where((reader == NOBODY) | (reader == block), block, np.int32(SEVERAL))
        region.reader[cells] = now
        lost = region.reader[cells] != now
        if lost.any():
            region.reader[cells[lost]] = SEVERAL
        view, first = region.views[size], offsets // size
        return [view[first + k] for k in range(count)]

    def _store_into(
        self, region: Region, machine: Machine, lanes: Array, addresses: Array, values: list[Array], size: int
    ) -> None:
        offsets = self._offsets(region, machine, lanes, addresses, len(values) * size)
        block = machine.block[lanes][:, None] + 1
        cells = self._cells(offsets, len(values) * size)
        for touched, message in (
            (region.writer, "writes what block {} wrote"),
            (region.reader, "writes what block {} read"),
        ):
            self._refuse_other(region, machine, lanes, block, touched[cells], offsets, message)
        region.writer[cells] = np.broadcast_to(block, cells.shape)
        self._refuse_other(region, machine, lanes, block, region.writer[cells], offsets, "writes what block {} writes")
        view, first = region.views[size], offsets // size
        for k, value in enumerate(values):
            view[first + k] = value
            other = view[first + k] != value
            if other.any():
                where = f"byte {int(offsets[other][0]) - region.shift} of {region.name}"
                what = f"threads store different values at once, at {where}"
                machine.fault(Kind.RACE, what, lanes[other], int(addresses[other][0]))

    def _refuse_other(
        self, region: Region, machine: Machine, lanes: Array, block: Array, touched: Array, offsets: Array, message: str
    ) -> None:
        """A fault where another block touched these cells."""
        clash = (touched != block) & (touched != NOBODY)
        if not clash.any():
            return
        rows = clash.any(1)
        other = int(touched[clash][0])
        what = message.replace("block {}", "several blocks" if other == SEVERAL else f"block {other - 1}")
        offset = int(offsets[rows][0]) - region.shift
        machine.fault(
            Kind.BLOCK_RACE, f"a block {what}, at byte {offset} of {region.name}", lanes[rows], region.seen + offset
        )
