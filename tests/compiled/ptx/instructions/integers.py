"""Bits, shifts, comparisons and choices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..machine import Action, Machine, Mask
from ..parsing import Group, Instruction
from ..values import BITS, DTYPES, HALVES, UNSIGNED, Array
from .registry import instruction

BITWISE: dict[str, Callable[..., Array]] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.bitwise_not,
}
COMPARISONS: dict[str, Callable[..., Array]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
UNTYPED = frozenset({"b16", "b32", "b64"})


@instruction("and", "or", "xor", "not")
def build_bitwise(one: Instruction) -> Action:
    one.require(UNTYPED | {"pred"})
    function, kind = BITWISE[one.opcode], one.kind
    target, *sources = one.operands

    def run(machine: Machine, mask: Mask) -> None:
        if kind == "pred":
            values = [machine.read_predicate(source) for source in sources]
        else:
            values = [machine.read(source, kind) for source in sources]
        machine.write(target, function(*values), mask)

    return run


@instruction("shl", "shr")
def build_shift(one: Instruction) -> Action:
    """By the width or more: all bits, or all but the sign, go."""
    kind = one.kind
    if kind not in DTYPES or len(one.modifiers) > 1:
        raise one.unsupported()
    target, value, amount = one.operands
    bits, dtype = BITS[kind], DTYPES[kind]
    signed = kind.startswith("s")

    def run(machine: Machine, mask: Mask) -> None:
        x, n = machine.read(value, kind), machine.read(amount, "u32")
        inside: Array = np.minimum(n, bits - 1).astype(dtype)
        shifted = x << inside if one.opcode == "shl" else x >> inside
        if not signed and (n >= bits).any():
            shifted = np.where(n >= bits, dtype(0), shifted)
        machine.write(target, shifted, mask)

    return run


@instruction("shf")
def build_funnel_shift(one: Instruction) -> Action:
    if one.modifiers not in (("l", "wrap", "b32"), ("r", "wrap", "b32"), ("l", "clamp", "b32"), ("r", "clamp", "b32")):
        raise one.unsupported()
    left, wrap = one.modifiers[0] == "l", one.modifiers[1] == "wrap"
    target, low, high, amount = one.operands

    def run(machine: Machine, mask: Mask) -> None:
        whole = machine.read(high, "u32").astype(np.uint64) << np.uint64(32) | machine.read(low, "u32")
        n = machine.read(amount, "u32")
        n = (n & np.uint32(31) if wrap else np.minimum(n, 32)).astype(np.uint64)
        shifted = (whole << n) >> np.uint64(32) if left else whole >> n
        machine.write(target, (shifted & np.uint64(0xFFFFFFFF)).astype(np.uint32), mask)

    return run


@instruction("bfe")
def build_bit_field(one: Instruction) -> Action:
    kind = one.kind
    one.require({"u32", "s32"})
    target, value, start, length = one.operands

    def run(machine: Machine, mask: Mask) -> None:
        x = machine.read(value, kind).astype(np.int64)
        first = np.minimum(machine.read(start, "u32") & np.uint32(255), 32).astype(np.int64)
        count = np.minimum(machine.read(length, "u32") & np.uint32(255), 32).astype(np.int64)
        if kind == "s32":  # a field past the top is filled with the sign
            whole = (x >> first) << (64 - count)
            field = np.where(count == 0, 0, whole >> (64 - np.maximum(count, 1)))
            machine.write(target, field.astype(np.int32), mask)
        else:
            machine.write(target, ((x >> first) & ((np.int64(1) << count) - 1)).astype(np.uint32), mask)

    return run


@instruction("prmt")
def build_permute(one: Instruction) -> Action:
    """Bytes of two registers, chosen by a nibble each; the nibble's top bit spreads the byte's sign."""
    if one.modifiers != ("b32",):
        raise one.unsupported()
    target, a, b, selector = one.operands

    def run(machine: Machine, mask: Mask) -> None:
        source = machine.read(a, "u32").astype(np.uint64) | machine.read(b, "u32").astype(np.uint64) << np.uint64(32)
        choice = machine.read(selector, "u32").astype(np.uint64)
        result = np.zeros(1, np.uint64)
        for i in range(4):
            nibble = (choice >> np.uint64(4 * i)) & np.uint64(15)
            byte = (source >> ((nibble & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
            sign = np.where(byte >= 128, np.uint64(255), np.uint64(0))
            result = result | np.where(nibble >= 8, sign, byte) << np.uint64(8 * i)
        machine.write(target, result.astype(np.uint32), mask)

    return run


@instruction("lop3")
def build_three_way(one: Instruction) -> Action:
    """Any function of three bits, given as a table of eight."""
    if one.modifiers != ("b32",):
        raise one.unsupported()
    target, a, b, c, table = one.operands

    def run(machine: Machine, mask: Mask) -> None:
        x, y, z = (machine.read(source, "u32") for source in (a, b, c))
        bits = int(machine.read(table, "u32")[0])
        result = np.zeros(1, np.uint32)
        for i in range(8):
            if bits >> i & 1:
                result = result | ((x if i & 4 else ~x) & (y if i & 2 else ~y) & (z if i & 1 else ~z))
        machine.write(target, result, mask)

    return run


@instruction("popc", "clz", "brev")
def build_count(one: Instruction) -> Action:
    if one.modifiers != ("b32",):
        raise one.unsupported()
    target, source = one.operands

    def run(machine: Machine, mask: Mask) -> None:
        x = machine.read(source, "u32")
        bits = (x[:, None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)  # [lanes, bits], the lowest first
        if one.opcode == "popc":
            result = bits.sum(1)
        elif one.opcode == "clz":
            result = np.where(x == 0, 32, bits[:, ::-1].argmax(1))
        else:
            result = (bits[:, ::-1].astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(1)
        machine.write(target, result.astype(np.uint32), mask)

    return run


def _compare(name: str, a: Array, b: Array) -> Array:
    """Compare floats: false where one is NaN, but for the forms that end in u."""
    if name in ("num", "nan"):
        return (np.isnan(a) | np.isnan(b)) ^ (name == "num")
    if len(name) == 3:
        return COMPARISONS[name[:2]](a, b) | np.isnan(a) | np.isnan(b)
    found = COMPARISONS[name](a, b)
    if name == "ne" and a.dtype.kind == "f":
        found = found & ~np.isnan(a) & ~np.isnan(b)
    return found


@instruction("setp")
def build_comparison(one: Instruction) -> Action:
    name, kind = one.modifiers[0], one.kind
    if len(one.modifiers) != 2 or (
        name not in COMPARISONS and name not in ("num", "nan") and name[:2] not in COMPARISONS
    ):
        raise one.unsupported()  # such as those combined with another predicate
    target, a, b = one.operands
    targets = target.members if isinstance(target, Group) else (target,)
    if kind in HALVES:
        if len(targets) != (2 if kind.endswith("x2") else 1):
            raise one.unsupported()

        def run_halves(machine: Machine, mask: Mask) -> None:
            for part, x, y in zip(targets, machine.read_halves(a, kind), machine.read_halves(b, kind), strict=True):
                machine.write(part, _compare(name, x, y), mask)

        return run_halves

    def run(machine: Machine, mask: Mask) -> None:
        holds = _compare(name, machine.read(a, kind), machine.read(b, kind))
        for part, value in zip(targets, (holds, ~holds), strict=False):
            machine.write(part, value, mask)

    return run


@instruction("selp")
def build_choice(one: Instruction) -> Action:
    kind = one.kind
    one.require(DTYPES.keys())  # type: ignore[arg-type]
    target, a, b, predicate = one.operands
    width = BITS[kind]

    def run(machine: Machine, mask: Mask) -> None:
        x, y = machine.read(a, kind), machine.read(b, kind)
        chosen = np.where(machine.read_predicate(predicate), x.view(UNSIGNED[width]), y.view(UNSIGNED[width]))
        machine.write(target, chosen, mask)

    return run
