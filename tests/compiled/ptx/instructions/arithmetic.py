"""Sums, products, quotients and functions of floats; sums and products of integers too, since they share opcodes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..faults import Kind
from ..machine import Action, Machine, Mask
from ..parsing import Instruction
from ..values import BITS, DTYPES, HALVES, INTEGERS, PAIRS, Array, divided, flush, fused_multiply_add, of_pairs
from .registry import instruction

Function = Callable[..., Array]
FLOATS = frozenset({"f32", "f64", *HALVES})
BINARY: dict[str, Function] = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


@instruction("add", "sub", "mul")
def build_binary(one: Instruction) -> Action:
    if one.kind not in FLOATS:
        return _integer_product(one) if one.opcode == "mul" else _integer_binary(one, BINARY[one.opcode])
    one.require(FLOATS | {"rn", "ftz"})
    return _floats(one, BINARY[one.opcode], 2)


def _integer_binary(one: Instruction, function: Function) -> Action:
    one.require(INTEGERS | PAIRS.keys())
    kind = one.kind
    target, a, b = one.operands
    if kind in PAIRS:

        def run_pairs(machine: Machine, mask: Mask) -> None:
            machine.write(target, of_pairs(function, kind, machine.read(a, "u32"), machine.read(b, "u32")), mask)

        return run_pairs

    def run(machine: Machine, mask: Mask) -> None:
        machine.write(target, function(machine.read(a, kind), machine.read(b, kind)), mask)

    return run


def _floats(one: Instruction, function: Function, operands: int) -> Action:
    """A function of float operands that rounds once, as numpy's do on float32."""
    kind = one.kind
    target, *sources = one.operands
    if len(sources) != operands:
        raise one.unsupported()
    if kind in HALVES:
        return _halves(one, lambda *x: function(*(part.astype(np.float64) for part in x)))
    flushed = "ftz" in one.modifiers

    def run(machine: Machine, mask: Mask) -> None:
        values = [machine.read(source, kind) for source in sources]
        if flushed:
            machine.write(target, flush(function(*map(flush, values))), mask)
        else:
            machine.write(target, function(*values), mask)

    return run


def _halves(one: Instruction, function: Function) -> Action:
    """A function of 16-bit floats, computed exactly or in float64 and rounded once."""
    kind = one.kind
    target, *sources = one.operands
    if "ftz" in one.modifiers:
        raise one.unsupported()

    def run(machine: Machine, mask: Mask) -> None:
        parts = zip(*(machine.read_halves(source, kind) for source in sources), strict=True)
        machine.write_halves(target, [function(*part) for part in parts], kind, mask)

    return run


def _integer_product(one: Instruction) -> Action:
    half, kind = one.modifiers[0], one.kind
    if half not in ("lo", "wide", "hi") or kind not in INTEGERS:
        raise one.unsupported()
    target, a, b = one.operands
    bits = BITS[kind]
    if half != "lo" and bits == 64:
        raise one.unsupported()
    wide = DTYPES[f"{kind[0]}{2 * bits}"] if half != "lo" else DTYPES[kind]

    def run(machine: Machine, mask: Mask) -> None:
        product: Array = machine.read(a, kind).astype(wide) * machine.read(b, kind).astype(wide)
        if half == "hi":
            product = (product >> wide(bits)).astype(DTYPES[kind])
        machine.write(target, product, mask)

    return run


@instruction("mad")
def build_mad(one: Instruction) -> Action:
    half, kind = one.modifiers[0], one.kind
    if half not in ("lo", "wide") or kind not in INTEGERS:
        raise one.unsupported()
    target, a, b, c = one.operands
    total = kind if half == "lo" else f"{kind[0]}{2 * BITS[kind]}"
    wide = DTYPES[total]

    def run(machine: Machine, mask: Mask) -> None:
        product: Array = machine.read(a, kind).astype(wide) * machine.read(b, kind).astype(wide)
        machine.write(target, product + machine.read(c, total), mask)

    return run


@instruction("fma")
def build_fma(one: Instruction) -> Action:
    one.require(FLOATS | {"rn", "ftz"})
    if one.kind == "f64":
        raise one.unsupported()
    if one.kind in HALVES:
        return _halves(one, _exact_enough_fma)
    return _floats(one, fused_multiply_add, 3)


def _exact_enough_fma(a: Array, b: Array, c: Array) -> Array:
    """16-bit products are exact in float64, and their sum with another is off by 2**-53 of it at most."""
    return a.astype(np.float64) * b + c


@instruction("div")
def build_div(one: Instruction) -> Action:
    kind = one.kind
    target, a, b = one.operands
    if kind in INTEGERS:
        one.require(INTEGERS)
        return _integer_quotient(one, divided)
    one.require({"f32", "rn", "full", "approx", "ftz"})
    if kind != "f32":
        raise one.unsupported()
    if "rn" in one.modifiers:
        return _floats(one, np.divide, 2)
    flushed = "ftz" in one.modifiers

    def run(machine: Machine, mask: Mask) -> None:
        x, y = machine.read(a, kind), machine.read(b, kind)
        if flushed:
            x, y = flush(x), flush(y)
        quotient = machine.approximation.ulps(x.astype(np.float64) / y, 2, x, y)
        machine.write(target, flush(quotient) if flushed else quotient, mask)

    return run


def _integer_quotient(one: Instruction, function: Function) -> Action:
    kind = one.kind
    target, a, b = one.operands
    dtype = DTYPES[kind]

    def run(machine: Machine, mask: Mask) -> None:
        divisor = machine.read(b, kind)
        zero = divisor == 0
        if zero.any():
            lanes = machine.active_lanes(mask)
            strays = lanes[machine.full(zero)[lanes]]
            if len(strays):
                machine.fault(Kind.DIVISION_BY_ZERO, f"{one.opcode} by 0", strays)
            divisor = np.where(zero, dtype(1), divisor)
        machine.write(target, function(machine.read(a, kind), divisor, dtype), mask)

    return run


@instruction("rem")
def build_rem(one: Instruction) -> Action:
    one.require(INTEGERS)
    return _integer_quotient(one, lambda a, b, dtype: np.fmod(a, b).astype(dtype))


@instruction("min", "max")
def build_extremum(one: Instruction) -> Action:
    if one.kind not in FLOATS:
        return _integer_binary(one, np.minimum if one.opcode == "min" else np.maximum)
    one.require(FLOATS | {"NaN", "ftz"})
    if "NaN" in one.modifiers:
        return _floats(one, np.minimum if one.opcode == "min" else np.maximum, 2)
    return _floats(one, np.fmin if one.opcode == "min" else np.fmax, 2)


@instruction("abs", "neg")
def build_sign(one: Instruction) -> Action:
    function = np.abs if one.opcode == "abs" else np.negative
    one.require(FLOATS | INTEGERS | {"ftz"})
    if one.kind in FLOATS:
        return _floats(one, function, 1)
    target, source = one.operands
    kind = one.kind

    def run(machine: Machine, mask: Mask) -> None:
        machine.write(target, function(machine.read(source, kind)), mask)

    return run


def _approximate(one: Instruction, function: Callable[[Machine, Array], Array]) -> Action:
    target, source = one.operands
    if one.kind != "f32":
        raise one.unsupported()
    flushed = "ftz" in one.modifiers

    def run(machine: Machine, mask: Mask) -> None:
        x = machine.read(source, "f32")
        result = function(machine, flush(x) if flushed else x)
        machine.write(target, flush(result) if flushed else result, mask)

    return run


@instruction("sqrt", "rcp")
def build_root(one: Instruction) -> Action:
    one.require({"rn", "approx", "ftz", "f32"})
    function = np.sqrt if one.opcode == "sqrt" else np.reciprocal
    if "rn" in one.modifiers:
        return _floats(one, function, 1)
    if one.opcode == "sqrt":
        return _approximate(one, lambda m, x: m.approximation.relative(np.sqrt(x.astype(np.float64)), 2.0**-23, x))
    return _approximate(one, lambda m, x: m.approximation.ulps(1 / x.astype(np.float64), 1, x))


@instruction("rsqrt")
def build_rsqrt(one: Instruction) -> Action:
    one.require({"approx", "ftz", "f32"})
    return _approximate(one, lambda m, x: m.approximation.relative(1 / np.sqrt(x.astype(np.float64)), 2.0**-22.9, x))


@instruction("ex2")
def build_ex2(one: Instruction) -> Action:
    one.require({"approx", "ftz", "f32"})
    return _approximate(one, _ex2)


def _ex2(machine: Machine, x: Array) -> Array:
    y = machine.approximation.ulps(np.exp2(x.astype(np.float64)), 2, x)
    return np.where(x == 0, np.float32(1), y)  # the manual's table: exact there


@instruction("lg2")
def build_lg2(one: Instruction) -> Action:
    one.require({"approx", "ftz", "f32"})
    return _approximate(one, _lg2)


def _lg2(machine: Machine, x: Array) -> Array:
    y = np.log2(x.astype(np.float64))
    near_one = (x > 0.5) & (x < 2)
    absolute = machine.approximation.absolute(y, 2.0**-22, x)
    return np.where(near_one, absolute, machine.approximation.relative(y, 2.0**-22, x))


@instruction("sin", "cos")
def build_sine(one: Instruction) -> Action:
    one.require({"approx", "ftz", "f32"})
    function = np.sin if one.opcode == "sin" else np.cos
    # The bound holds in [-pi, pi]; hardware reduces other arguments less well.
    return _approximate(one, lambda m, x: m.approximation.absolute(function(x.astype(np.float64)), 2.0**-20.5, x))


@instruction("tanh")
def build_tanh(one: Instruction) -> Action:
    one.require({"approx", "f32"})
    return _approximate(one, lambda m, x: m.approximation.relative(np.tanh(x.astype(np.float64)), 2.0**-11, x))
