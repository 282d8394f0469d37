from __future__ import annotations

from typing import Any

import pytest
import torch

import dimr_kernels as dk

from .conftest import DEVICE
from .workload import DIRECTIONS, IMPLEMENTATIONS, Workload, random

# (batch, tokens, D): the branches of M/3R, XL/2R and XL/3R at batch 64 and the cascade's norm, on a GPU.
GPU_SHAPES = [(64, 257, 960), (64, 1024, 480), (64, 4096, 240), (64, 257, 768), (64, 1024, 384), (64, 256, 38400)]
SHAPES = GPU_SHAPES if DEVICE.type == "cuda" else [(8, 65, 192), (8, 256, 96)]


def layer_norm_inputs(batch: int, tokens: int, D: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    parameters = {f"p{i}": random(D, dtype=torch.float32, device=device) for i in range(1, 5)}
    gates = {
        f"{kind}_gate_{part}": random(D, dtype=torch.float32, device=device)
        for kind in ("scale", "shift")
        for part in ("weight", "offset")
    }
    x = random(batch, tokens, D, dtype=dtype, device=device)
    t = random(batch, dtype=torch.float32, device=device, grad=False)
    return {"x": x, "t": t, **parameters, **gates}


def rms_norm_inputs(*shape: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    inputs = layer_norm_inputs(*shape, dtype=dtype, device=device)
    return {name: inputs[name] for name in ("x", "t", "p1", "p2", "scale_gate_weight", "scale_gate_offset")}


def with_residual(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {"residual": torch.randn_like(inputs["x"]).requires_grad_()}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("norm", ["td_layer_norm", "td_rms_norm"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_td_norm(measure, implementation, shape, norm, residual, direction, device, dtype):
    make = layer_norm_inputs if norm == "td_layer_norm" else rms_norm_inputs
    size = shape[0] * shape[1] * shape[2] * dtype.itemsize

    def make_inputs() -> dict[str, Any]:
        inputs = make(*shape, dtype=dtype, device=device)
        return with_residual(inputs) if residual else inputs

    workload = Workload(
        operator=f"{norm}{'+residual' if residual else ''}",
        fused="triton",
        function=getattr(dk.functional, norm),
        make_inputs=make_inputs,
        forward_bytes=(4 if residual else 2) * size,  # x in, y out; the residual in and the sum out
        backward_bytes=(4 if residual else 3) * size,  # x and dy in, dx out; the sum's gradient in
    )
    measure(workload, implementation, direction)
