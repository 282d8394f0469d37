from __future__ import annotations

from functools import partial

import pytest

import dimr_kernels as dk

from .conftest import DEVICE
from .workload import DIRECTIONS, IMPLEMENTATIONS, Workload, random

# (batch, height = width before the shuffle, channels after it): the cascades of XL/2R, XL/3R and M/3R.
GPU_SHAPES = [(64, 16, 480), (64, 32, 240), (64, 16, 384), (64, 32, 192)]
SHAPES = GPU_SHAPES if DEVICE.type == "cuda" else [(8, 16, 480), (8, 32, 192), (8, 8, 96)]
R = 2


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_pixel_shuffle_add(measure, implementation, shape, layout, direction, device, dtype):
    B, S, C = shape
    nhwc = layout == "nhwc"
    low = (B, S, S, R * R * C) if nhwc else (B, R * R * C, S, S)
    high = (B, R * S, R * S, C) if nhwc else (B, C, R * S, R * S)
    size = B * S * S * R * R * C * dtype.itemsize
    workload = Workload(
        operator=f"pixel_shuffle_add {layout}",
        fused="cuda",
        function=partial(dk.functional.pixel_shuffle_add, upscale_factor=R, layout=layout),
        make_inputs=lambda: {
            "x": random(*low, dtype=dtype, device=device),
            "y": random(*high, dtype=dtype, device=device),
        },
        forward_bytes=3 * size,
        backward_bytes=2 * size,  # the gradient in, dx out; dy is the gradient itself
    )
    measure(workload, implementation, direction)
