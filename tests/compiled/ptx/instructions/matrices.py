"""Matrix products of a warp, and the loads and stores of their fragments.

Lane ``4 * g + t`` of a warp holds, of a fragment's 8x8 tile of 16-bit numbers, columns ``2 * t`` and ``2 * t + 1`` of
row ``g``. Products and sums are computed in float64 and rounded once; how tensor cores round is not documented.
"""

from __future__ import annotations

import numpy as np

from ..machine import WARP, Action, Machine, Mask
from ..parsing import Instruction, Operand
from ..values import Array, unpack
from .memory import full_addresses, members
from .registry import instruction

ROW = np.arange(WARP) // 4
COLUMN = 2 * (np.arange(WARP) % 4)
MATRICES = {"x1": 1, "x2": 2, "x4": 4}


def _form(one: Instruction) -> tuple[int, bool]:
    """Read the number of matrices, and if they are transposed."""
    one.require({"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta", "b16"})
    return next(n for name, n in MATRICES.items() if name in one.modifiers), "trans" in one.modifiers


def _row_lanes(warps: Array, count: int) -> Array:
    """``[warps, matrices, 8]``: the lanes that give the addresses of the rows."""
    return warps[:, : 8 * count].reshape(-1, count, 8)


@instruction("ldmatrix")
def build_load_matrix(one: Instruction) -> Action:
    count, transposed = _form(one)
    target, source = one.operands
    targets = members(target)

    def run(machine: Machine, mask: Mask) -> None:
        warps = machine.whole_warps(mask, "ldmatrix")
        rows = _row_lanes(warps, count).reshape(-1)
        words = machine.shared.load(rows, full_addresses(machine, source, rows, True), 4, 4)
        tiles = np.ascontiguousarray(np.stack(words, 1)).view(np.uint16).reshape(-1, count, 8, 8)
        if transposed:
            tiles = tiles.swapaxes(2, 3)
        for i, part in enumerate(targets):
            pairs = np.stack([tiles[:, i, ROW, COLUMN], tiles[:, i, ROW, COLUMN + 1]], 2)  # [warps, 32, 2]
            machine.write_lanes(part, np.ascontiguousarray(pairs).view(np.uint32).reshape(-1), warps.reshape(-1), mask)

    return run


@instruction("stmatrix")
def build_store_matrix(one: Instruction) -> Action:
    count, transposed = _form(one)
    target, source = one.operands
    sources = members(source)

    def run(machine: Machine, mask: Mask) -> None:
        warps = machine.whole_warps(mask, "stmatrix")
        tiles = np.zeros((len(warps), count, 8, 8), np.uint16)
        for i, part in enumerate(sources):
            pairs = np.ascontiguousarray(machine.full(machine.read(part, "b32"))[warps]).view(np.uint16)
            tiles[:, i, ROW, COLUMN], tiles[:, i, ROW, COLUMN + 1] = pairs[:, 0::2], pairs[:, 1::2]
        if transposed:
            tiles = tiles.swapaxes(2, 3)
        words = np.ascontiguousarray(tiles).view(np.uint32).reshape(-1, 4)
        rows = _row_lanes(warps, count).reshape(-1)
        machine.shared.store(rows, full_addresses(machine, target, rows, True), [words[:, k] for k in range(4)], 4)

    return run


def gather(machine: Machine, operand: Operand, kind: str, warps: Array) -> list[list[Array]]:
    """16-bit numbers of each register of a fragment: ``[registers][2]`` of ``[warps, 32]`` float32."""
    return [
        [half.reshape(warps.shape) for half in unpack(machine.full(machine.read(part, "b32"))[warps.reshape(-1)], kind)]
        for part in members(operand)
    ]


@instruction("mma")
def build_product(one: Instruction) -> Action:
    """D = A @ B + C: A ``[16, K]``, B ``[K, 8]``, sums in float32."""
    forms = {("m16n8k16", "bf16"): 16, ("m16n8k16", "f16"): 16, ("m16n8k8", "bf16"): 8, ("m16n8k8", "f16"): 8}
    if len(one.modifiers) != 9 or one.modifiers[3:5] != ("row", "col"):
        raise one.unsupported()
    shape, (to, a_kind, b_kind, of) = one.modifiers[2], one.modifiers[5:]
    depth = forms.get((shape, a_kind))
    if depth is None or a_kind != b_kind or to != "f32" or of != "f32":
        raise one.unsupported()
    target, a, b, c = one.operands
    kind = f"{a_kind}x2"

    def run(machine: Machine, mask: Mask) -> None:
        warps = machine.whole_warps(mask, "mma")
        left, right = np.zeros((len(warps), 16, depth)), np.zeros((len(warps), depth, 8))
        sums = np.zeros((len(warps), 16, 8))
        for i, halves in enumerate(gather(machine, a, kind, warps)):
            for j, half in enumerate(halves):
                left[:, ROW + 8 * (i % 2), COLUMN + j + 8 * (i // 2)] = half
        for i, halves in enumerate(gather(machine, b, kind, warps)):
            for j, half in enumerate(halves):
                right[:, COLUMN + j + 8 * i, ROW] = half
        for i, part in enumerate(members(c)):
            values = machine.full(machine.read(part, "f32"))[warps.reshape(-1)].reshape(warps.shape)
            sums[:, ROW + 8 * (i // 2), COLUMN + i % 2] = values
        sums = (sums + left @ right).astype(np.float32)
        for i, part in enumerate(members(target)):
            found = sums[:, ROW + 8 * (i // 2), COLUMN + i % 2]
            machine.write_lanes(part, np.ascontiguousarray(found).reshape(-1), warps.reshape(-1), mask)

    return run
