"""Hopper's matrix products: four warps multiply from shared memory while the kernel goes on.

Operands in shared memory are named by descriptors: where they start, how far their tiles lie apart, how bytes are
swizzled. Results are in the registers only when the group of products was waited for, so registers of one that is
under way may serve as the sums of the next and for nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ..machine import WARP, Action, Machine, Mask
from ..parsing import Group, Instruction, Number, Operand, Register
from ..values import Array, unpack
from .matrices import gather
from .memory import members
from .registry import instruction

GROUP = 4 * WARP
ROWS, DEPTH = 64, 16
SWIZZLED_BYTES = {1: 128, 2: 64, 3: 32}
FORM = re.compile(r"m64n(\d+)k16")


@dataclass
class Descriptor:
    """Description of matrices in shared memory, one for each warp group."""

    start: Array
    leading: Array
    stride: Array
    swizzled: int
    """Bytes of a row of a tile."""

    @classmethod
    def of(cls, one: Instruction, bits: Array) -> Descriptor:
        field = lambda first, count: ((bits >> np.uint64(first)) & np.uint64((1 << count) - 1)).astype(np.int64)  # noqa: E731
        mode, base = int(field(62, 2)[0]), field(49, 3)
        if mode not in SWIZZLED_BYTES or (field(62, 2) != mode).any() or base.any():
            raise one.unsupported()
        return cls(field(0, 14) * 16, field(16, 14) * 16, field(32, 14) * 16, SWIZZLED_BYTES[mode])

    def addresses(self, rows: int, along_depth: bool) -> Array:
        """``[groups, rows, 16]``: of element k of a row.

        A tile is 8 rows of ``swizzled`` bytes. ``along_depth``: its rows are the matrix's rows, and tiles of rows lie
        ``stride`` apart. Else its rows are values of k: tiles of k lie ``stride`` apart, those of rows ``leading``.
        """
        row, k = np.arange(rows)[:, None], np.arange(DEPTH)[None, :]
        first, leading, stride = (x[:, None, None] for x in (self.start, self.leading, self.stride))
        if along_depth:
            plain = first + row // 8 * stride + row % 8 * self.swizzled + 2 * k
        else:
            wide = self.swizzled // 2
            plain = first + row // wide * leading + k // 8 * stride + k % 8 * self.swizzled + 2 * (row % wide)
        # 16-byte pieces trade places by the number of the 128-byte line that they lie in.
        return plain ^ ((plain >> 7) & (self.swizzled // 16 - 1)) << 4


def _shared_matrix(
    machine: Machine, one: Instruction, operand: Operand, kind: str, groups: Array, rows: int, along_depth: bool
) -> Array:
    """``[groups, rows, 16]``"""
    descriptor = Descriptor.of(one, machine.full(machine.read(operand, "u64"))[groups[:, 0]])
    addresses = descriptor.addresses(rows, along_depth)
    bits = machine.shared.multiply_from(
        groups[:, 0].repeat(rows * DEPTH), addresses.reshape(-1).astype(np.uint32), 1, 2
    )
    return unpack(bits.reshape(addresses.shape), kind)[0]


def _register_matrix(machine: Machine, operand: Operand, kind: str, groups: Array) -> Array:
    """A's fragments, of four warps with 16 rows each: ``[groups, 64, 16]``."""
    matrix = np.zeros((len(groups), 4, 16, DEPTH), np.float32)
    warps = groups.reshape(-1, WARP)
    row, column = np.arange(WARP) // 4, 2 * (np.arange(WARP) % 4)
    for i, halves in enumerate(gather(machine, operand, f"{kind}x2", warps)):
        for j, half in enumerate(halves):
            part = half.reshape(len(groups), 4, WARP)
            matrix[:, :, row + 8 * (i % 2), column + j + 8 * (i // 2)] = part
    return matrix.reshape(len(groups), ROWS, DEPTH)


@instruction("wgmma")
def build_wgmma(one: Instruction) -> Action:
    name = one.modifiers[0]
    if name == "mma_async":
        return _product(one)
    one.require({"fence", "commit_group", "wait_group", "sync", "aligned"})
    if name == "fence":

        def run(machine: Machine, mask: Mask) -> None:
            machine.whole_warpgroups(mask, "wgmma.fence")
            machine.products.fence(machine.steps)

    elif name == "commit_group":

        def run(machine: Machine, mask: Mask) -> None:
            machine.shared.commit_products(machine.whole_warpgroups(mask, "wgmma.commit_group").reshape(-1))
            machine.products.commit()

    else:
        (most,) = one.operands
        if not isinstance(most, Number):
            raise one.unsupported()

        def run(machine: Machine, mask: Mask) -> None:
            lanes = machine.whole_warpgroups(mask, "wgmma.wait_group").reshape(-1)
            machine.shared.wait_for_products(lanes, int(most.bits))
            machine.products.wait(int(most.bits))

    return run


def _product(one: Instruction) -> Action:
    """D = A @ B + D: A ``[64, 16]``, B given as ``[N, 16]``, sums in float32."""
    _, _, _, shape, to, kind, b_kind = one.modifiers
    form = FORM.fullmatch(shape)
    if form is None or to != "f32" or kind != b_kind or kind not in ("f16", "bf16"):
        raise one.unsupported()
    target, a, b, scale, *immediates = one.operands
    flags = [int(number.bits) for number in immediates if isinstance(number, Number)]
    a_in_registers = isinstance(a, Group)
    if len(flags) != (3 if a_in_registers else 4) or flags[:2] != [1, 1]:
        raise one.unsupported()  # negated operands
    a_transposed, b_transposed = (False, *flags[2:]) if a_in_registers else flags[2:]
    columns = int(form[1])
    targets = members(target)
    accumulators = [part.index for part in targets if isinstance(part, Register)]
    inputs = [part.index for part in members(a) if isinstance(part, Register)] if a_in_registers else []
    row, column = np.arange(WARP) // 4, 2 * (np.arange(WARP) % 4)

    def run(machine: Machine, mask: Mask) -> None:
        groups = machine.whole_warpgroups(mask, "wgmma")
        machine.products.begin(machine, accumulators, inputs)
        if a_in_registers:
            left = _register_matrix(machine, a, kind, groups)
        else:
            left = _shared_matrix(machine, one, a, kind, groups, ROWS, not a_transposed)
        right = _shared_matrix(machine, one, b, kind, groups, columns, not b_transposed)
        found = np.matmul(left.astype(np.float64), right.astype(np.float64).swapaxes(1, 2))
        found = found.reshape(len(groups), 4, 16, columns)
        kept = machine.full(machine.read_predicate(scale))[groups[:, 0]][:, None, None]
        for i, part in enumerate(targets):
            term = found[:, :, row + 8 * (i // 2 % 2), column + 8 * (i // 4) + i % 2]  # [groups, 4, 32]
            before = machine.full(machine.read(part, "f32"))[groups.reshape(-1)].reshape(term.shape)
            sums = (np.where(kept, before.astype(np.float64), 0) + term).astype(np.float32)
            machine.write_lanes(part, sums.reshape(-1), groups.reshape(-1), mask)

    return run
