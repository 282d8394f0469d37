from __future__ import annotations

import pytest

import dimr_kernels as dk

from .conftest import DEVICE
from .workload import DIRECTIONS, IMPLEMENTATIONS, Workload, random

# (rows, D): the MLPs of XL/2R and XL/3R at batch 64 on a GPU.
SHAPES = [(64 * 257, 1920), (64 * 1024, 960), (64 * 4096, 480)] if DEVICE.type == "cuda" else [(1028, 192), (4096, 96)]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_geglu(measure, implementation, shape, direction, device, dtype):
    rows, D = shape
    size = rows * D * dtype.itemsize
    workload = Workload(
        operator="geglu",
        fused="triton",
        function=dk.functional.geglu,
        make_inputs=lambda: {"h": random(rows, 2 * D, dtype=dtype, device=device)},
        forward_bytes=3 * size,  # both halves in, one out
        backward_bytes=5 * size,  # both halves and the gradient in, both gradients out
    )
    measure(workload, implementation, direction)
