"""Loads and stores."""

from __future__ import annotations

from ..machine import Action, Machine, Mask
from ..parsing import Address, Group, Instruction, Operand, Symbol
from ..values import BITS, DTYPES, UNSIGNED, Array
from .registry import instruction

# What only moves data sooner or keeps it longer.
HINTS = frozenset({"ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "weak", "L1::no_allocate", "L1::evict_first"})
HINTS |= {"L1::evict_last", "L1::evict_normal", "L1::evict_unchanged", "L2::cache_hint"}
SHARED = frozenset({"shared", "shared::cta"})


def is_shared(one: Instruction) -> bool:
    """Its space; generic addresses are not told apart here."""
    if SHARED & set(one.modifiers):
        return True
    if "global" not in one.modifiers:
        raise one.unsupported()
    return False


def members(operand: Operand) -> tuple[Operand, ...]:
    return operand.members if isinstance(operand, Group) else (operand,)


def full_addresses(machine: Machine, operand: Operand, lanes: Array, shared: bool) -> Array:
    """Compute the addresses that these lanes access."""
    return machine.full(machine.addresses(operand, "u32" if shared else "u64"))[lanes]


@instruction("ld")
def build_load(one: Instruction) -> Action:
    one.require(HINTS | SHARED | DTYPES.keys() | {"param", "global", "v2", "v4"})
    target, source = one.operands[:2]
    kind = one.kind
    if "param" in one.modifiers:
        return _load_parameter(one)
    shared = is_shared(one)
    targets = members(target)
    size, dtype = BITS[kind] // 8, DTYPES[kind]

    def run(machine: Machine, mask: Mask) -> None:
        lanes = machine.active_lanes(mask)
        addresses = full_addresses(machine, source, lanes, shared)
        if shared:
            found = machine.shared.load(lanes, addresses, len(targets), size)
        else:
            found = machine.global_memory.load(machine, lanes, addresses, len(targets), size)
        for part, values in zip(targets, found, strict=True):
            machine.write_lanes(part, values.view(dtype), lanes, mask)

    return run


def _load_parameter(one: Instruction) -> Action:
    target, source = one.operands
    if not isinstance(source, Address) or not isinstance(source.base, Symbol) or source.offset:
        raise one.unsupported()
    name, kind = source.base.name, one.kind

    def run(machine: Machine, mask: Mask) -> None:
        value = machine.parameters[name]
        machine.write(target, value.astype(UNSIGNED[BITS[kind]]).view(DTYPES[kind]), mask)

    return run


@instruction("st")
def build_store(one: Instruction) -> Action:
    one.require(HINTS | SHARED | DTYPES.keys() | {"global", "v2", "v4"})
    target, source = one.operands[:2]
    kind = one.kind
    shared = is_shared(one)
    sources = members(source)
    size = BITS[kind] // 8

    def run(machine: Machine, mask: Mask) -> None:
        lanes = machine.active_lanes(mask)
        addresses = full_addresses(machine, target, lanes, shared)
        values = [machine.full(machine.read(part, f"b{8 * size}"))[lanes] for part in sources]
        if shared:
            machine.shared.store(lanes, addresses, values, size)
        else:
            machine.global_memory.store(machine, lanes, addresses, values, size)

    return run
