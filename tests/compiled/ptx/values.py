"""Numbers as PTX sees them: types, 16-bit floats, rounding, and approximations within their documented bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

DTYPES: dict[str, type] = {
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8, "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "b64": np.uint64, "u64": np.uint64, "s64": np.int64,
    "f32": np.float32, "f64": np.float64,
}  # fmt: skip
BITS = {name: 8 * np.dtype(dtype).itemsize for name, dtype in DTYPES.items()}
UNSIGNED: dict[int, type] = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED: dict[int, type] = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
HALVES = ("f16", "bf16", "f16x2", "bf16x2")
PAIRS = {"u16x2": np.uint16, "s16x2": np.int16}
INTEGERS = frozenset(f"{letter}{bits}" for letter in "us" for bits in (16, 32, 64))
SMALLEST_NORMAL = np.float32(2.0**-126)


def of_pairs(function: Callable[..., Array], kind: str, *words: Array) -> Array:
    """Apply a function of 16-bit integers to both halves of 32-bit words."""
    halves = (np.ascontiguousarray(word).view(PAIRS[kind]).reshape(-1, 2) for word in words)
    return np.ascontiguousarray(function(*halves)).reshape(-1).view(np.uint32)


def flush(x: Array) -> Array:
    """Subnormal float32 numbers to zeros of their sign (``.ftz``)."""
    small = np.abs(x) < SMALLEST_NORMAL
    return np.where(small, np.copysign(np.float32(0), x), x) if small.any() else x


def unpack(bits: Array, kind: str) -> list[Array]:
    """16-bit floats as float32: one from a 16-bit register, two, the lower half first, from one of 32 bits."""
    parts = [bits] if not kind.endswith("x2") else [bits.astype(np.uint16), (bits >> np.uint32(16)).astype(np.uint16)]
    if kind.startswith("bf16"):
        return [(part.astype(np.uint32) << np.uint32(16)).view(np.float32) for part in parts]
    return [part.view(np.float16).astype(np.float32) for part in parts]


def pack(parts: list[Array], kind: str) -> Array:
    """The reverse of :func:`unpack`, from float32 or float64, rounded once to nearest even."""
    rounded = [to_half(part, kind.removesuffix("x2")) for part in parts]
    if len(rounded) == 1:
        return rounded[0]
    return rounded[0].astype(np.uint32) | rounded[1].astype(np.uint32) << np.uint32(16)


def to_half(x: Array, kind: str, mode: str = "rn") -> Array:
    """Bits of bf16 or f16, rounded to nearest even ("rn") or, bf16 only, towards zero ("rz")."""
    if kind == "f16":
        return np.where(np.isnan(x), np.uint16(0x7FFF), x.astype(np.float16).view(np.uint16))
    if x.dtype == np.float64:
        x = to_odd(x)
    bits = x.view(np.uint32)
    if mode == "rn":
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    else:
        rounded = bits >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def to_odd(x: Array) -> Array:
    """float64 to float32, inexact ones to the neighbour with an odd last bit: rounding that again rounds once."""
    nearest = x.astype(np.float32)
    back = nearest.astype(np.float64)
    inexact = (back != x) & np.isfinite(x)
    if not inexact.any():
        return nearest
    bits = nearest.view(np.uint32)
    truncated = bits - (np.abs(back) > np.abs(x)).astype(np.uint32)
    return np.where(inexact, truncated | np.uint32(1), bits).view(np.float32)


def fused_multiply_add(a: Array, b: Array, c: Array) -> Array:
    """``a * b + c`` of float32 numbers, rounded once.

    The product is exact in float64 and the sum is rounded there; rounding it again to float32 errs only where it lies
    half way between two float32 numbers, and there the lost part of the sum decides.
    """
    product = a.astype(np.float64) * b
    total = product + c
    doubtful = (total.view(np.uint64) & np.uint64(0xFFFFFFF)) == 0
    if doubtful.any():
        product, c = np.broadcast_to(product, total.shape)[doubtful], np.broadcast_to(c, total.shape)[doubtful]
        sums = total[doubtful]
        rest = sums - product
        lost = (product - (sums - rest)) + (c - rest)
        moved = np.nextafter(sums, np.where(lost > 0, np.inf, -np.inf))
        total[doubtful] = np.where((lost != 0) & np.isfinite(sums), moved, sums)
    return total.astype(np.float32)


def divided(a: Array, b: Array, dtype: Any) -> Array:
    """Integer quotients towards zero; ``b`` must not hold zeros."""
    quotient = a // b
    if np.dtype(dtype).kind == "i":
        quotient = quotient + ((quotient < 0) & (quotient * b != a))
    return quotient.astype(dtype)


class Approximation:
    """Results of approximate instructions: off by up to what the PTX manual allows, the same for the same operands.

    Hardware is off by less, in a way that is not documented. ``exact`` rounds to nearest instead.
    """

    def __init__(self, exact: bool = False) -> None:
        self.exact = exact

    def ulps(self, y: Array, most: float, *operands: Array) -> Array:
        """``y`` (float64) to float32 with an error of at most ``most`` units in the last place."""
        return self._moved(y, y, (most - 0.5) * 2.0**-24, operands)

    def relative(self, y: Array, most: float, *operands: Array) -> Array:
        """``y`` (float64) to float32 with an error of at most ``most`` of it."""
        return self._moved(y, y, most - 2.0**-24, operands)

    def absolute(self, y: Array, most: float, *operands: Array) -> Array:
        """``y`` (float64, at most 1) to float32 with an error of at most ``most``."""
        return self._moved(y, 1.0, most - 2.0**-25, operands)

    def _moved(self, y: Array, scale: Array | float, most: float, operands: tuple[Array, ...]) -> Array:
        """The rounding to float32 comes on top."""
        if self.exact:
            return y.astype(np.float32)
        return (y + scale * (most * self._fractions(operands))).astype(np.float32)

    @staticmethod
    def _fractions(operands: tuple[Array, ...]) -> Array:
        """In [-1, 1), from the operands' bits."""
        mixed = np.uint32(0x9E3779B9)
        for operand in operands:
            mixed = (operand.view(np.uint32) ^ mixed) * np.uint32(0x85EBCA6B)
            mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x9E3779B1)
        return mixed.view(np.int32) * 2.0**-31
