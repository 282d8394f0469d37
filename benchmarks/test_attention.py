from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

import dimr_kernels as dk

from .conftest import DEVICE
from .workload import DIRECTIONS, Workload, random

# (batch, heads, tokens, head_dim): M/3R, XL (padded from 60) and G/2R at batch 64 on a GPU.
GPU_SHAPES = [(64, 12, 257, 64), (64, 16, 257, 64), (64, 16, 257, 72)]
SHAPES = GPU_SHAPES if DEVICE.type == "cuda" else [(4, 4, 65, 64)]
BACKENDS = ("auto", "flash_attn", "flash", "cudnn", "efficient", "math", "eager")


def attend(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    return dk.functional.attention(q, k, v, backend=backend)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention(measure, backend, shape, direction, device, dtype):
    B, heads, L, E = shape
    q = torch.randn(shape, device=device).to(dtype)
    try:
        attend(q, q, q, backend)
    except dk.BackendError as error:
        pytest.skip(str(error))
    size = B * heads * L * E * dtype.itemsize
    workload = Workload(
        operator="attention",
        fused="auto",
        function=partial(attend, backend=backend),
        make_inputs=lambda: {name: random(*shape, dtype=dtype, device=device) for name in ("q", "k", "v")},
        forward_bytes=4 * size,
        backward_bytes=8 * size,  # q, k, v, out and its gradient in, three gradients out
        flops=4 * B * heads * L * L * E,
    )
    measure(workload, backend, direction)
