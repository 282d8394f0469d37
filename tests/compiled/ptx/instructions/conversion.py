"""Moves and conversions between types."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..machine import Action, Machine, Mask
from ..parsing import Group, Instruction
from ..values import BITS, DTYPES, INTEGERS, UNSIGNED, Array, flush, pack, to_half, unpack
from .registry import instruction

ROUNDINGS: dict[str, Callable[[Array], Array]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
SHORT_FLOATS = ("f16", "bf16")


@instruction("mov", "cvta")
def build_move(one: Instruction) -> Action:
    if one.opcode == "cvta":
        one.require({"to", "global", "u64"})  # a generic address is the global one here
    elif len(one.modifiers) != 1:
        raise one.unsupported()
    target, source = one.operands
    kind = one.kind
    if kind == "pred":

        def run(machine: Machine, mask: Mask) -> None:
            machine.write(target, machine.read_predicate(source), mask)

    elif isinstance(source, Group):
        parts, total = source.members, UNSIGNED[BITS[kind]]
        width = BITS[kind] // len(parts)

        def run(machine: Machine, mask: Mask) -> None:
            packed: Array = np.zeros(1, total)
            for i, part in enumerate(parts):
                packed = packed | machine.read(part, f"u{width}").astype(total) << total(i * width)
            machine.write(target, packed, mask)

    elif isinstance(target, Group):
        parts, total = target.members, UNSIGNED[BITS[kind]]
        width = BITS[kind] // len(parts)

        def run(machine: Machine, mask: Mask) -> None:
            packed = machine.read(source, f"u{BITS[kind]}")
            for i, part in enumerate(parts):
                machine.write(part, (packed >> total(i * width)).astype(UNSIGNED[width]), mask)

    else:

        def run(machine: Machine, mask: Mask) -> None:
            machine.write(target, machine.read(source, kind), mask)

    return run


@instruction("cvt")
def build_conversion(one: Instruction) -> Action:
    *rounding, to, of = one.modifiers
    if to in ("f16x2", "bf16x2"):
        return _pair_from_floats(one, rounding, to)
    if of in INTEGERS | {"u8", "s8"} and to in INTEGERS | {"u8", "s8"}:
        return _between_integers(one, rounding, to, of)
    if to == "f32" and of in SHORT_FLOATS:
        return _from_half(one, rounding, of)
    if to in SHORT_FLOATS and of == "f32":
        return _to_half(one, rounding, to)
    if (rounding, to, of) in ((["rn"], "f32", "f64"), ([], "f64", "f32")):
        return _map(one, of, lambda x: x.astype(DTYPES[to]))
    if to in ("f32", "f64") and of in INTEGERS:
        return _from_integer(one, rounding, to, of)
    if to in INTEGERS and of == "f32":
        return _to_integer(one, rounding, to)
    if to == of == "f32" and rounding and rounding[0] in ROUNDINGS:
        function = ROUNDINGS[rounding[0]]
        return _map(one, "f32", function, "ftz" in rounding)
    raise one.unsupported()


def _map(one: Instruction, of: str, function: Callable[[Array], Array], flushed: bool = False) -> Action:
    target, source = one.operands

    def run(machine: Machine, mask: Mask) -> None:
        x = machine.read(source, of)
        machine.write(target, function(flush(x) if flushed else x), mask)

    return run


def _pair_from_floats(one: Instruction, rounding: list[str], to: str) -> Action:
    """The first operand becomes the upper half."""
    if rounding != ["rn"]:
        raise one.unsupported()
    target, high, low = one.operands

    def run(machine: Machine, mask: Mask) -> None:
        machine.write(target, pack([machine.read(low, "f32"), machine.read(high, "f32")], to), mask)

    return run


def _between_integers(one: Instruction, rounding: list[str], to: str, of: str) -> Action:
    """Extended by the source's sign; where the target's register is wider than its type, by the type's."""
    if rounding:
        raise one.unsupported()
    return _map(one, of, lambda x: x.astype(DTYPES[to]))


def _from_half(one: Instruction, rounding: list[str], of: str) -> Action:
    if rounding:
        raise one.unsupported()
    return _map(one, "b16", lambda bits: unpack(bits, of)[0])


def _to_half(one: Instruction, rounding: list[str], to: str) -> Action:
    if rounding not in (["rn"], ["rz"]) or (rounding == ["rz"] and to == "f16"):
        raise one.unsupported()
    return _map(one, "f32", lambda x: to_half(x, to, rounding[0]))


def _from_integer(one: Instruction, rounding: list[str], to: str, of: str) -> Action:
    if rounding != ["rn"]:
        raise one.unsupported()
    return _map(one, of, lambda x: x.astype(DTYPES[to]))


def _to_integer(one: Instruction, rounding: list[str], to: str) -> Action:
    """Clamped to the type's range; NaN becomes 0."""
    if not rounding or rounding[0] not in ROUNDINGS or not set(rounding[1:]) <= {"ftz", "sat"}:
        raise one.unsupported()
    dtype, function = DTYPES[to], ROUNDINGS[rounding[0]]
    limits = np.iinfo(dtype)

    def convert(x: Array) -> Array:
        rounded = function(x.astype(np.float64))
        inside = np.clip(np.nan_to_num(rounded, nan=0.0), float(limits.min), float(limits.max))
        found: Array = np.where(inside >= float(limits.max), 0, inside).astype(dtype)
        return np.where(inside >= float(limits.max), dtype(limits.max), found)

    return _map(one, "f32", convert, "ftz" in rounding)
