from __future__ import annotations

import torch

import dimr_kernels as dk

from .rivals import liger_geglu
from .shapes import BATCHES, PAPER, TARGET, TARGET_BATCH, Shapes, Tokens, mlps
from .workload import Direction, Workload, random

SHAPES = Shapes(
    target=tuple(Tokens(TARGET_BATCH, *mlp) for mlp in mlps(TARGET)),
    sweep=tuple(Tokens(batch, *mlp) for mlp in mlps(PAPER) for batch in BATCHES),
    large=(Tokens(1024, 1024, 960), Tokens(512, 4096, 480)),
    cpu=(Tokens(8, 257, 1920), Tokens(8, 1024, 960)),
)


def workload(shape: Tokens, dtype: torch.dtype, device: torch.device) -> Workload:
    B, L, D = shape
    size = B * L * D * dtype.itemsize
    return Workload(
        operator="geglu",
        shape=f"{B} x {L} x {D}",
        batch=B,
        width=D,
        fused="triton",
        function=dk.functional.geglu,
        make_inputs=lambda: {"h": random(B, L, 2 * D, dtype=dtype, device=device)},
        batched=("h",),
        directions={
            "forward": Direction(3 * size),  # both halves in, one out
            "backward": Direction(5 * size, ("h",)),  # both halves and the gradient in, both gradients out
        },
        rivals={"liger": liger_geglu((B, L, D), dtype, device)},
    )


def test_geglu(measure, case):
    measure(case)
