from __future__ import annotations

from functools import partial

import torch

import dimr_kernels as dk

from .shapes import BATCHES, PAPER, TARGET, TARGET_BATCH, Image, Shapes, cascades
from .test_pixel_shuffle import R
from .test_td_norm import SCALE, SHIFT, gates
from .workload import Direction, Inputs, Workload, random


def shuffles(names: tuple[str, ...], batch: int) -> list[Image]:
    """Side before the shuffle and width after it."""
    return [Image(batch, side, C) for side, _, C in cascades(names)]


SHAPES = Shapes(
    target=tuple(shuffles(TARGET, TARGET_BATCH)),
    sweep=tuple(shuffle for batch in BATCHES for shuffle in shuffles(PAPER, batch)),
    large=(Image(1024, 16, 480), Image(512, 32, 240)),
    cpu=(Image(8, 16, 480),),
)


def workload(shape: Image, dtype: torch.dtype, device: torch.device) -> Workload:
    B, S, C = shape

    def make_inputs() -> Inputs:
        x = random(B, S, S, R * R * C, dtype=dtype, device=device)
        y = random(B, R * S, R * S, C, dtype=dtype, device=device)
        t = random(B, dtype=torch.float32, device=device)
        return {"x": x, "y": y, "t": t, **gates(SCALE + SHIFT, C, device)}

    size = B * S * S * R * R * C * dtype.itemsize
    gated, times = len(SCALE + SHIFT) * C * 4, B * 4
    return Workload(
        operator="shuffle_norm_add",
        shape=f"{B} x {S} x {S} x {R * R * C}",
        batch=B,
        width=C,
        fused="triton",
        function=partial(dk.functional.pixel_shuffle_td_norm_add, upscale_factor=R),
        make_inputs=make_inputs,
        batched=("x", "y", "t"),
        directions={
            "forward": Direction(3 * size + gated + times),  # x and y in, the sum out; parameters and t in
            # x and the gradient in, dx out (dy is the gradient itself); parameters in, their gradients out
            "backward": Direction(3 * size + 2 * gated + times, ("x", "y", *SCALE, *SHIFT)),
        },
    )


def test_shuffle_norm_add(measure, case):
    measure(case)
