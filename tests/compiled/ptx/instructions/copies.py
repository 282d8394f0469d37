"""cp.async: copies from global to shared memory that go on behind the kernel's back."""

from __future__ import annotations

import numpy as np

from ..machine import Action, Machine, Mask
from ..parsing import Instruction, Number
from .memory import full_addresses
from .registry import instruction

SIZES = (4, 8, 16)


@instruction("cp")
def build_copy(one: Instruction) -> Action:
    if one.modifiers[:1] != ("async",):
        raise one.unsupported()
    if one.modifiers[1:] == ("commit_group",):
        return lambda machine, mask: machine.shared.commit_copies(machine.active_lanes(mask))
    if one.modifiers[1:] == ("wait_group",):
        most = one.operands[0]
        return lambda machine, mask: machine.shared.wait_for_copies(
            machine.active_lanes(mask), machine.read(most, "s32")
        )
    if one.modifiers[1:] == ("wait_all",):
        return lambda machine, mask: machine.shared.wait_for_copies(machine.active_lanes(mask), None)
    return _copy(one)


def _copy(one: Instruction) -> Action:
    one.require({"async", "ca", "cg", "shared", "shared::cta", "global", "L2::128B", "L2::256B", "L2::cache_hint"})
    target, source, size, *rest = one.operands
    if not isinstance(size, Number) or int(size.bits) not in SIZES or len(rest) > 1:
        raise one.unsupported()
    length = int(size.bits)
    words = length // 4

    def run(machine: Machine, mask: Mask) -> None:
        lanes = machine.active_lanes(mask)
        values = [np.zeros(len(lanes), np.uint32) for _ in range(words)]
        # What lies beyond the given length is filled with zeros, and not read.
        given = machine.full(machine.read(rest[0], "u32"))[lanes] if rest else np.full(len(lanes), length)
        reading = np.flatnonzero(given)
        if not np.isin(given, (0, length)).all():
            raise one.unsupported()
        if len(reading):
            readers = lanes[reading]
            addresses = full_addresses(machine, source, readers, False)
            for value, found in zip(
                values, machine.global_memory.load(machine, readers, addresses, words, 4), strict=True
            ):
                value[reading] = found
        machine.shared.copy_into(lanes, full_addresses(machine, target, lanes, True), values, 4)

    return run
