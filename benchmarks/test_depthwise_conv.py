from __future__ import annotations

from typing import NamedTuple

import torch

import dimr_kernels as dk

from .rivals import depthwise_rivals
from .shapes import BATCHES, PAPER, TARGET, TARGET_BATCH, Shapes, images
from .workload import Direction, Workload, random


class Convolution(NamedTuple):
    """``x [batch, side, side, width]``"""

    kernel_size: int
    batch: int
    side: int
    width: int


SHAPES = Shapes(
    target=tuple(Convolution(7, TARGET_BATCH, *image) for image in images(TARGET)),
    sweep=tuple(Convolution(K, batch, *image) for K in (7, 3) for image in images(PAPER) for batch in BATCHES),
    large=(Convolution(7, 1024, 32, 480), Convolution(7, 512, 64, 240)),
    cpu=(Convolution(7, 8, 32, 480), Convolution(7, 8, 14, 384), Convolution(3, 8, 16, 96)),
)


def workload(shape: Convolution, dtype: torch.dtype, device: torch.device) -> Workload:
    K, B, S, C = shape
    size = B * S * S * C * dtype.itemsize
    weight, bias = C * K * K * dtype.itemsize, C * dtype.itemsize
    flops = 2 * K * K * B * S * S * C
    return Workload(
        operator=f"depthwise_conv{K}x{K}",
        shape=f"{B} x {S} x {S} x {C}",
        batch=B,
        width=C,
        fused="triton",
        function=dk.functional.depthwise_conv2d,
        make_inputs=lambda: {
            "x": random(B, S, S, C, dtype=dtype, device=device),
            "weight": random(C, 1, K, K, dtype=dtype, device=device),
            "bias": random(C, dtype=dtype, device=device),
        },
        batched=("x",),
        directions={
            "forward": Direction(2 * size + weight + bias, flops=flops),
            "input_gradient": Direction(2 * size + weight, ("x",), flops),  # the gradient in, dx out
            # x and the gradient in, dweight and dbias out
            "weight_gradient": Direction(2 * size + weight + bias, ("weight", "bias"), flops),
        },
        rivals=depthwise_rivals(B, S, C, K, dtype, device),
    )


def test_depthwise_conv(measure, case):
    measure(case)
