from __future__ import annotations

from functools import partial

import torch

import dimr_kernels as dk

from .shapes import TARGET_BATCH, Image, Shapes
from .test_td_norm import SCALE, SHIFT, gates
from .workload import Direction, Inputs, Workload, random

GROUPS = 32
# A latent diffusion U-Net's: side and width.
UNET = ((64, 320), (32, 640), (16, 1280))

SHAPES = Shapes(
    target=tuple(Image(TARGET_BATCH, *size) for size in UNET),
    sweep=tuple(Image(batch, *size) for batch in (1, 8, 64) for size in UNET),
    large=(Image(512, 64, 320),),
    cpu=(Image(8, 32, 480),),
)


def workload(shape: Image, dtype: torch.dtype, device: torch.device) -> Workload:
    B, S, C = shape

    def make_inputs() -> Inputs:
        x = random(B, S, S, C, dtype=dtype, device=device)
        return {"x": x, "t": random(B, dtype=torch.float32, device=device), **gates(SCALE + SHIFT, C, device)}

    size = B * S * S * C * dtype.itemsize
    gated, times = len(SCALE + SHIFT) * C * 4, B * 4
    return Workload(
        operator="td_group_norm",
        shape=f"{B} x {S} x {S} x {C}",
        batch=B,
        width=C,
        fused="triton",
        function=partial(dk.functional.td_group_norm, num_groups=GROUPS),
        make_inputs=make_inputs,
        batched=("x", "t"),
        directions={
            "forward": Direction(2 * size + gated + times),  # x in once at the least, the norm out; parameters and t in
            # x and the gradient in, dx out; parameters in, their gradients out
            "backward": Direction(3 * size + 2 * gated + times, ("x", *SCALE, *SHIFT)),
        },
    )


def test_td_group_norm(measure, case):
    measure(case)
