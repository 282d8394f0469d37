"""Exchanges and votes between the lanes of a warp."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..faults import Kind
from ..machine import WARP, Action, Machine, Mask
from ..parsing import Group, Instruction, Number, Operand
from ..values import DTYPES, Array
from .registry import instruction


def refuse_absent(machine: Machine, member_mask: Operand, mask: Mask, what: str) -> None:
    """A fault where a lane that takes part is not in the mask, or one in the mask is not here."""
    if mask is None and isinstance(member_mask, Number) and int(member_mask.bits) & 0xFFFFFFFF == 0xFFFFFFFF:
        return
    here = np.ones(machine.lanes, bool) if mask is None else mask
    bits = np.uint32(1) << np.arange(WARP, dtype=np.uint32)
    present = (here.reshape(-1, WARP) * bits).sum(1, dtype=np.uint32).repeat(WARP)
    named = machine.full(machine.read(member_mask, "u32"))
    wrong = here & (((named & ~present) != 0) | ((named >> (machine.thread % WARP).astype(np.uint32)) & 1 == 0))
    if wrong.any():
        machine.fault(Kind.DIVERGENT_WARP, f"{what} by a part of those it names", np.flatnonzero(wrong))


@instruction("shfl")
def build_shuffle(one: Instruction) -> Action:
    how = one.modifiers[1]
    if one.modifiers[0] != "sync" or how not in ("bfly", "idx", "up", "down") or one.kind != "b32":
        raise one.unsupported()
    target, source, other, clamp, member_mask = one.operands
    targets = target.members if isinstance(target, Group) else (target,)

    def run(machine: Machine, mask: Mask) -> None:
        refuse_absent(machine, member_mask, mask, f"shfl.sync.{how}")
        lane = machine.thread % WARP
        distance, limits = machine.read(other, "s32") & 31, machine.read(clamp, "s32")
        segment, last = (limits >> 8) & 31, limits & 31
        first = lane & segment
        bound = first | (last & ~segment)
        if how == "bfly":
            wanted = lane ^ distance
        elif how == "idx":
            wanted = first | (distance & ~segment)
        else:
            wanted = lane - distance if how == "up" else lane + distance
        inside = wanted >= bound if how == "up" else wanted <= bound
        chosen = machine.lane - lane + np.where(inside, wanted, lane)
        machine.write(targets[0], machine.full(machine.read(source, "b32"))[chosen], mask)
        for predicate in targets[1:]:
            machine.write(predicate, machine.full(inside), mask)

    return run


@instruction("vote")
def build_vote(one: Instruction) -> Action:
    sync, how, kind = one.modifiers
    if sync != "sync" or (how, kind) not in (("all", "pred"), ("any", "pred"), ("ballot", "b32")):
        raise one.unsupported()
    target, predicate, member_mask = one.operands

    def run(machine: Machine, mask: Mask) -> None:
        refuse_absent(machine, member_mask, mask, f"vote.sync.{how}")
        here = np.ones(machine.lanes, bool) if mask is None else mask
        holds = machine.full(machine.read_predicate(predicate)).reshape(-1, WARP)
        here = here.reshape(-1, WARP)
        if how == "all":
            found = (holds | ~here).all(1)
        elif how == "any":
            found = (holds & here).any(1)
        else:
            bits = np.uint32(1) << np.arange(WARP, dtype=np.uint32)
            found = ((holds & here) * bits).sum(1, dtype=np.uint32)
        machine.write(target, found.repeat(WARP), mask)

    return run


REDUCTIONS: dict[str, Callable[[Array], Array]] = {
    "add": lambda x: x.sum(1, dtype=x.dtype),
    "min": lambda x: x.min(1),
    "max": lambda x: x.max(1),
    "and": lambda x: np.bitwise_and.reduce(x, 1),
    "or": lambda x: np.bitwise_or.reduce(x, 1),
    "xor": lambda x: np.bitwise_xor.reduce(x, 1),
}


@instruction("redux")
def build_reduction(one: Instruction) -> Action:
    sync, how, kind = one.modifiers
    if sync != "sync" or how not in REDUCTIONS or kind not in DTYPES:
        raise one.unsupported()
    target, source, member_mask = one.operands

    def run(machine: Machine, mask: Mask) -> None:
        refuse_absent(machine, member_mask, mask, f"redux.sync.{how}")
        machine.whole_warps(mask, "redux.sync")  # of a part of a warp: not written here
        values = machine.full(machine.read(source, kind)).reshape(-1, WARP)
        machine.write(target, REDUCTIONS[how](values).repeat(WARP), mask)

    return run
