from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch

import dimr_kernels as dk

from .shapes import BATCHES, PAPER, TARGET, TARGET_BATCH, Shapes, cascades
from .workload import Direction, Workload, random

R = 2


class Shuffle(NamedTuple):
    """``[batch, side, side, r*r*width]`` -> ``[batch, r*side, r*side, width]``, or channels first."""

    layout: str
    batch: int
    side: int
    width: int


def shuffles(names: tuple[str, ...], batch: int) -> list[Shuffle]:
    return [Shuffle(layout, batch, side, C) for side, _, C in cascades(names) for layout in ("nhwc", "nchw")]


SHAPES = Shapes(
    target=tuple(shuffles(TARGET, TARGET_BATCH)),
    sweep=tuple(shuffle for batch in BATCHES for shuffle in shuffles(PAPER, batch)),
    large=tuple(Shuffle(layout, *size) for size in ((1024, 16, 480), (512, 32, 240)) for layout in ("nhwc", "nchw")),
    # The cascades of XL/2R, M/3R and a small one.
    cpu=tuple(Shuffle(layout, 8, *size) for size in ((16, 480), (32, 192), (8, 96)) for layout in ("nhwc", "nchw")),
)


def workload(shape: Shuffle, dtype: torch.dtype, device: torch.device) -> Workload:
    layout, B, S, C = shape
    nhwc = layout == "nhwc"
    low = (B, S, S, R * R * C) if nhwc else (B, R * R * C, S, S)
    high = (B, R * S, R * S, C) if nhwc else (B, C, R * S, R * S)
    size = B * S * S * R * R * C * dtype.itemsize
    return Workload(
        operator="pixel_shuffle_add",
        shape=f"{B} x {S} x {S} x {R * R * C} {layout}",
        batch=B,
        width=C,
        fused="cuda",
        function=partial(dk.functional.pixel_shuffle_add, upscale_factor=R, layout=layout),
        make_inputs=lambda: {
            "x": random(*low, dtype=dtype, device=device),
            "y": random(*high, dtype=dtype, device=device),
        },
        batched=("x", "y"),
        directions={
            "forward": Direction(3 * size),  # x and y in, the sum out
            "backward": Direction(2 * size, ("x", "y")),  # the gradient in, dx out; dy is the gradient itself
        },
    )


def test_pixel_shuffle_add(measure, case):
    measure(case)
