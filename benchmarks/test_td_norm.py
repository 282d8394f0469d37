from __future__ import annotations

from typing import Any, NamedTuple

import torch

import dimr_kernels as dk

from .rivals import norm_rivals
from .shapes import BATCHES, PAPER, TARGET, TARGET_BATCH, Shapes, branches, cascades
from .workload import Direction, Workload, random

SCALE = ("p1", "p2", "scale_gate_weight", "scale_gate_offset")
SHIFT = ("p3", "p4", "shift_gate_weight", "shift_gate_offset")


class Norm(NamedTuple):
    """``x [batch, tokens, width]``"""

    operator: str
    batch: int
    tokens: int
    width: int


def norms(names: tuple[str, ...], batch: int) -> list[Norm]:
    """Layer norms at the width of every branch and cascade, RMS norms where a model has them in its blocks."""
    everywhere = branches(names)
    rms = branches(names, norm="td_rms")
    found = [Norm("td_layer_norm", batch, *size) for size in everywhere]
    found += [Norm("td_layer_norm", batch, side * side, width) for side, width, _ in cascades(names)]
    found += [Norm("td_rms_norm", batch, *size) for size in rms]
    found += [Norm("td_layer_norm_residual", batch, *size) for size in everywhere]
    return found + [Norm("td_rms_norm_residual", batch, *size) for size in rms]


OPERATORS = ("td_layer_norm", "td_rms_norm", "td_layer_norm_residual", "td_rms_norm_residual")
CASCADE_WIDTH = 38400  # of XL's first branch, the only cascade that a target speaks of
SHAPES = Shapes(
    target=tuple(norm for norm in norms(TARGET, TARGET_BATCH) if norm.width in (CASCADE_WIDTH, *range(2048))),
    sweep=tuple(norm for batch in BATCHES for norm in norms(PAPER, batch)),
    large=tuple(Norm(op, *size) for op in OPERATORS for size in ((1024, 1024, 480), (512, 4096, 240))),
    cpu=tuple(Norm(op, *size) for op in OPERATORS for size in ((8, 257, 960), (8, 1024, 480))),
)


def gates(names: tuple[str, ...], D: int, device: torch.device) -> dict[str, Any]:
    return {name: random(D, dtype=torch.float32, device=device) for name in names}


def workload(shape: Norm, dtype: torch.dtype, device: torch.device) -> Workload:
    operator, B, L, D = shape
    residual = operator.endswith("_residual")
    norm = operator.removesuffix("_residual")
    parameters = SCALE if norm == "td_rms_norm" else SCALE + SHIFT

    def make_inputs() -> dict[str, Any]:
        x = random(B, L, D, dtype=dtype, device=device)
        t = random(B, dtype=torch.float32, device=device)
        inputs = {"x": x, "t": t, **gates(parameters, D, device)}
        return inputs | {"residual": random(B, L, D, dtype=dtype, device=device)} if residual else inputs

    size = B * L * D * dtype.itemsize
    gated, times = len(parameters) * D * 4, B * 4
    rows = ("x", "residual") if residual else ("x",)
    return Workload(
        operator=operator,
        shape=f"{B} x {L} x {D}",
        batch=B,
        width=D,
        fused="triton",
        function=getattr(dk.functional, norm),
        make_inputs=make_inputs,
        batched=(*rows, "t"),
        directions={
            # x in, y out; the residual in and the sum out; parameters and t in.
            "forward": Direction((4 if residual else 2) * size + gated + times),
            # x (or the sum) and y's gradient in, dx out, the sum's gradient in; parameters in, their gradients out.
            "backward": Direction((4 if residual else 3) * size + 2 * gated + times, (*rows, *parameters)),
        },
        rivals=norm_rivals(norm.removeprefix("td_"), (B, L, D), dtype, device, residual),
    )


def test_td_norm(measure, case):
    measure(case)
