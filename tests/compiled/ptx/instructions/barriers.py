"""Barriers and fences."""

from __future__ import annotations

from ..faults import Kind
from ..machine import Action, Machine, Mask
from ..parsing import Instruction, Number
from .registry import instruction
from .warps import refuse_absent


@instruction("bar", "barrier")
def build_barrier(one: Instruction) -> Action:
    if one.modifiers == ("warp", "sync"):
        member_mask = one.operands[0]

        def run_warps(machine: Machine, mask: Mask) -> None:
            refuse_absent(machine, member_mask, mask, "bar.warp.sync")
            machine.shared.warp_barrier(machine.whole_warps(mask, "bar.warp.sync"))

        return run_warps
    one.require({"cta", "sync", "aligned"})
    # Named barriers and those of a part of the block are for specialised warps, which no kernel here has.
    if "sync" not in one.modifiers or one.operands != (Number(one.operands[0].bits * 0),):  # type: ignore[union-attr]
        raise one.unsupported()

    def run(machine: Machine, mask: Mask) -> None:
        machine.shared.block_barrier(machine.whole_blocks(mask, "a barrier reached"))

    return run


@instruction("fence")
def build_fence(one: Instruction) -> Action:
    if one.modifiers not in (("proxy", "async", "shared::cta"), ("proxy", "async")):
        raise one.unsupported()

    def run(machine: Machine, mask: Mask) -> None:
        machine.shared.proxy_fence(machine.active_lanes(mask))

    return run


@instruction("trap")
def build_trap(one: Instruction) -> Action:
    def run(machine: Machine, mask: Mask) -> None:
        machine.fault(Kind.TRAP, "the kernel stopped itself", machine.active_lanes(mask))

    return run
