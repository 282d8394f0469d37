from __future__ import annotations

import pytest

import dimr_kernels as dk

from .conftest import DEVICE
from .workload import DIRECTIONS, IMPLEMENTATIONS, Workload, random

# (batch, height = width, channels): the ConvNeXt branches of XL/2R, XL/3R and M/3R at batch 64 on a GPU.
GPU_SHAPES = [(64, 32, 480), (64, 64, 240), (64, 32, 384), (64, 64, 192)]
SHAPES = GPU_SHAPES if DEVICE.type == "cuda" else [(4, 16, 96), (4, 8, 192)]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kernel_size", [7, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_depthwise_conv(measure, implementation, shape, kernel_size, direction, device, dtype):
    B, S, C = shape
    size = B * S * S * C * dtype.itemsize
    workload = Workload(
        operator=f"depthwise_conv{kernel_size}x{kernel_size}",
        fused="triton",
        function=dk.functional.depthwise_conv2d,
        make_inputs=lambda: {
            "x": random(B, S, S, C, dtype=dtype, device=device),
            "weight": random(C, 1, kernel_size, kernel_size, dtype=dtype, device=device),
            "bias": random(C, dtype=dtype, device=device),
        },
        forward_bytes=2 * size,
        backward_bytes=5 * size,  # dx: the gradient in, dx out; dweight and dbias: x and the gradient in again
        flops=2 * kernel_size**2 * B * S * S * C,
    )
    measure(workload, implementation, direction)
