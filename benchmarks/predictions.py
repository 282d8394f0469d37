"""What each kernel should take, worked out before it was measured: a model, never a measurement.

A kernel takes as long as the slower of its memory traffic and its instructions, and a little for starting.
``benchmarks/NOTES.md`` explains the figures; ``python -m benchmarks.predictions`` prints its table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dimr_kernels.ops.time_gate import WIDEST_IN_REGISTERS

DTYPE, ITEM_BYTES = "bfloat16", 2


@dataclass(frozen=True)
class Machine:
    name: str
    """As it occurs in the device's name."""
    copy: float
    """Bytes per second, read and written, of a large copy; measured."""
    issue: float
    """Instructions per second, counted per lane: SMs x schedulers x lanes x clock."""
    matmul: float
    """FLOP per second of a large bfloat16 product; measured on an H100, and the H200 has the same chip."""


_ISSUE = 132 * 4 * 32 * 1.755e9
H100 = Machine("H100", 3.0e12, _ISSUE, 798e12)
H200 = Machine("H200", 4.3e12, _ISSUE, 798e12)
MACHINES = (H100, H200)

# Assumed: how near a good kernel comes to each ceiling, and what a kernel costs beyond them inside a CUDA graph.
MEMORY_EFFICIENCY = 0.92
NORM_BACKWARD_EFFICIENCY = 0.82
"""Of memory: two reductions across a row stand between its loads and its stores."""
TWO_PASS_EFFICIENCY = 0.85
"""Of memory: the second reading of a wide row, from L2, is not free."""
ISSUE_EFFICIENCY = 0.90
START_SECONDS = 1e-6
CUBLAS_EFFICIENCY = 0.85
TRITON_MATMUL_EFFICIENCY = 0.70
EPILOGUE_INSTRUCTIONS = 20.0
"""For each output of GeGLU at the end of a product's tile: 13 of them the gelu."""
HIDDEN_EPILOGUE = 0.5
"""Share of it that other tiles' products hide."""


@dataclass(frozen=True)
class Kernel:
    """What an operator does for each element of its main tensor, in one direction."""

    counted: int
    """Numbers moved, as the benchmarks count them: each input read once, each output written once."""
    instructions: float
    """For each element of a padded row: sm_90, bfloat16, most at width 384 (``python -m benchmarks.static``)."""
    block: int | None = None
    """A row is padded to a multiple of it; None: to a power of two. What is masked off is issued all the same."""
    fitted: bool = False
    """The block is halved until an eighth of the lanes is idle at most."""
    starts: int = 1
    """Kernels launched one after another."""
    moved: int | None = None
    """Numbers moved in truth, where they are more than those counted."""
    memory_efficiency: float = MEMORY_EFFICIENCY

    def padded(self, width: int) -> int:
        next_power = 1 << (width - 1).bit_length()
        block = next_power if self.block is None else min(self.block, next_power)
        while self.fitted and 7 * _multiple(width, block) > 8 * width:
            block //= 2
        return _multiple(width, block)


def _multiple(width: int, block: int) -> int:
    return -(-width // block) * block


KERNELS = {
    ("td_layer_norm", "forward"): Kernel(2, 21.5),
    ("td_layer_norm", "backward"): Kernel(3, 26.9, starts=2, memory_efficiency=NORM_BACKWARD_EFFICIENCY),
    ("td_rms_norm", "forward"): Kernel(2, 18.3),
    ("td_rms_norm", "backward"): Kernel(3, 24.5, starts=2, memory_efficiency=NORM_BACKWARD_EFFICIENCY),
    ("td_layer_norm_residual", "forward"): Kernel(4, 23.9),
    ("td_layer_norm_residual", "backward"): Kernel(4, 26.9, starts=2, memory_efficiency=NORM_BACKWARD_EFFICIENCY),
    ("td_rms_norm_residual", "forward"): Kernel(4, 18.3),
    ("td_rms_norm_residual", "backward"): Kernel(4, 24.5, starts=2, memory_efficiency=NORM_BACKWARD_EFFICIENCY),
    ("td_group_norm", "forward"): Kernel(2, 10.5 + 10.4, block=1024, starts=3, moved=3),
    ("td_group_norm", "backward"): Kernel(3, 10.1 + 14.3, block=1024, starts=4, moved=5),
    ("geglu", "forward"): Kernel(3, 19.9, block=1024, fitted=True),
    ("geglu", "backward"): Kernel(5, 33.6, block=1024, fitted=True),
    ("depthwise_conv7x7", "forward"): Kernel(2, 59.6, block=32, starts=2),
    ("depthwise_conv7x7", "input_gradient"): Kernel(2, 59.6, block=32, starts=2),
    ("depthwise_conv7x7", "weight_gradient"): Kernel(2, 68.1, block=32, starts=2),
    ("depthwise_conv3x3", "forward"): Kernel(2, 14.4, block=32, starts=2),
    ("depthwise_conv3x3", "input_gradient"): Kernel(2, 14.4, block=32, starts=2),
    ("depthwise_conv3x3", "weight_gradient"): Kernel(2, 21.6, block=32, starts=2),
    ("pixel_shuffle_add", "forward"): Kernel(3, 0, block=1),
    ("pixel_shuffle_add", "backward"): Kernel(2, 0, block=1),
    ("shuffle_norm_add", "forward"): Kernel(3, 29.2),
    ("shuffle_norm_add", "backward"): Kernel(3, 29.7, starts=2, memory_efficiency=NORM_BACKWARD_EFFICIENCY),
}
# Rows too wide for registers: gamma and beta from a table; backward reads x and the gradient in each of two kernels.
WIDE_KERNELS = {
    ("td_layer_norm", "forward"): Kernel(2, 23.6, block=4096, starts=2, memory_efficiency=TWO_PASS_EFFICIENCY),
    ("td_layer_norm", "backward"): Kernel(
        3, 21.7 + 14.3, block=2048, starts=4, moved=5, memory_efficiency=NORM_BACKWARD_EFFICIENCY
    ),
}

# The branches of XL/2R, XL/3R and M/3R at batch 64: (rows, width) of a norm; an MLP is twice as wide.
SEQUENCES = ((64 * 257, 960), (64 * 1024, 480), (64 * 4096, 240), (64 * 257, 768), (64 * 1024, 384), (64 * 4096, 192))
CASCADE = (64 * 256, 38400)
UNET = ((64 * 64 * 64, 320), (64 * 32 * 32, 640), (64 * 16 * 16, 1280))
IMAGES = ((64 * 32 * 32, 480), (64 * 64 * 64, 240), (64 * 32 * 32, 384), (64 * 64 * 64, 192))


@dataclass(frozen=True)
class Prediction:
    seconds: float
    fraction_of_copy: float
    bound_by: Literal["memory", "instructions"]


def predict(operator: str, direction: str, moved_bytes: float, width: int, machine: Machine) -> Prediction | None:
    """``moved_bytes`` as the benchmarks count them, bfloat16. ``None`` where there is no model of the operator."""
    kernels = WIDE_KERNELS if width > WIDEST_IN_REGISTERS else KERNELS
    kernel = kernels.get((operator, direction))
    if kernel is None:
        return None
    elements = moved_bytes / (kernel.counted * ITEM_BYTES)
    memory = elements * (kernel.moved or kernel.counted) * ITEM_BYTES / (machine.copy * kernel.memory_efficiency)
    issued = elements * kernel.padded(width) / width * kernel.instructions
    instructions = issued / (machine.issue * ISSUE_EFFICIENCY)
    seconds = max(memory, instructions) + kernel.starts * START_SECONDS
    fraction = moved_bytes / machine.copy / seconds
    return Prediction(seconds, fraction, "memory" if memory >= instructions else "instructions")


def predict_for(device: str, operator: str, direction: str, moved_bytes: float, width: int) -> Prediction | None:
    """The same for the machine that a device's name tells of; ``None`` for others."""
    machine = next((machine for machine in MACHINES if machine.name in device.split()), None)
    return None if machine is None else predict(operator, direction, moved_bytes, width, machine)


def geglu_linear_seconds(rows: int, dim: int, hidden: int, machine: Machine) -> tuple[float, float]:
    """``[rows, dim] -> [rows, hidden]``, forward: in one kernel; and as cuBLAS, then one elementwise kernel."""
    flops = 2 * rows * dim * 2 * hidden
    bandwidth = machine.copy * MEMORY_EFFICIENCY
    epilogue = rows * hidden * EPILOGUE_INSTRUCTIONS / (machine.issue * ISSUE_EFFICIENCY)
    fused = max(
        flops / (machine.matmul * TRITON_MATMUL_EFFICIENCY) + (1 - HIDDEN_EPILOGUE) * epilogue,
        rows * (dim + hidden) * ITEM_BYTES / bandwidth,
    )
    product = max(flops / (machine.matmul * CUBLAS_EFFICIENCY), rows * (dim + 2 * hidden) * ITEM_BYTES / bandwidth)
    gate = predict("geglu", "forward", rows * hidden * 3 * ITEM_BYTES, hidden, machine)
    assert gate is not None
    return fused + START_SECONDS, product + START_SECONDS + gate.seconds


def target_shapes(operator: str) -> tuple[tuple[int, int], ...]:
    """(rows or pixels, width) of one element count each, at batch 64."""
    if operator == "geglu":
        return tuple((rows, 2 * width) for rows, width in SEQUENCES)
    if operator == "td_group_norm":
        return UNET
    return SEQUENCES if operator.startswith("td_") else IMAGES


def table() -> Iterator[tuple[str, ...]]:
    """Operator, direction, H100, H200 (least and most over the target shapes), bound on an H100."""
    for operator, direction in KERNELS:
        yield _line(operator, direction, target_shapes(operator))
    for operator, direction in WIDE_KERNELS:
        yield _line(operator, direction, (CASCADE,))
    for rows, width in SEQUENCES:
        ratios = (slow / fast for fast, slow in (geglu_linear_seconds(rows, width, 2 * width, m) for m in MACHINES))
        yield f"geglu_linear, {width} wide", "forward", *(f"{ratio:.2f}x" for ratio in ratios), "matmul"


def _line(operator: str, direction: str, shapes: tuple[tuple[int, int], ...]) -> tuple[str, ...]:
    counted = KERNELS[operator, direction].counted * ITEM_BYTES
    cells, bounds = [], ""
    for machine in MACHINES:
        found = [predict(operator, direction, rows * width * counted, width, machine) for rows, width in shapes]
        fractions = sorted(p.fraction_of_copy for p in found if p is not None)
        cells.append("-".join(dict.fromkeys(f"{100 * f:.0f}" for f in (fractions[0], fractions[-1]))) + "%")
        bounds = bounds or ", ".join(sorted({p.bound_by for p in found if p is not None}))
    name = operator if shapes != (CASCADE,) else f"{operator}, 38400 wide"
    return name, direction, *cells, bounds


def main() -> None:
    for line in table():
        sys.stdout.write("| " + " | ".join(line) + " |\n")


if __name__ == "__main__":
    main()
