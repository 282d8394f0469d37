from __future__ import annotations

from functools import partial
from typing import Any

import pytest

import dimr_kernels as dk

from .conftest import DEVICE
from .test_pixel_shuffle import R
from .test_td_norm import layer_norm_inputs
from .workload import DIRECTIONS, IMPLEMENTATIONS, Workload, random

GPU_SHAPES = [(64, 16, 480), (64, 32, 240), (64, 16, 384), (64, 32, 192)]
SHAPES = GPU_SHAPES if DEVICE.type == "cuda" else [(4, 8, 192), (4, 16, 96)]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_shuffle_norm_add(measure, implementation, shape, direction, device, dtype):
    B, S, C = shape
    size = B * S * S * R * R * C * dtype.itemsize

    def make_inputs() -> dict[str, Any]:
        x = random(B, S, S, R * R * C, dtype=dtype, device=device)
        y = random(B, R * S, R * S, C, dtype=dtype, device=device)
        return layer_norm_inputs(B, 1, C, dtype, device) | {"x": x, "y": y}

    workload = Workload(
        operator="pixel_shuffle_td_norm_add",
        fused="triton",
        function=partial(dk.functional.pixel_shuffle_td_norm_add, upscale_factor=R),
        make_inputs=make_inputs,
        forward_bytes=3 * size,
        backward_bytes=3 * size,  # x and the gradient in, dx out; dy is the gradient itself
    )
    measure(workload, implementation, direction)
