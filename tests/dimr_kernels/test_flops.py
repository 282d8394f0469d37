"""Flops of each operator: those of its eager form, as torch counts them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import dimr_kernels as dk
from tests.support.operators import EXAMPLES

MULTIPLYING = ("depthwise_conv2d", "geglu_linear", "attention")


def counted(function, inputs: dict[str, Tensor], backend: str) -> int:
    with dk.use_backend(backend), FlopCounterMode(display=False) as counter:
        function(**inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_operator(name, device):
    example = EXAMPLES[name]
    inputs = example.make_inputs(device, torch.float32)
    eager = counted(example.function, inputs, "eager")
    assert (eager > 0) == (name in MULTIPLYING)
    if name != "attention":  # torch's own, which it counts on a CPU from 2.15 on: tests/dimr/test_flop_counter.py
        assert counted(example.function, inputs, example.fused) == eager


@pytest.mark.parametrize("needed", [("x", "weight"), ("x",), ("weight",)])
def test_depthwise_convolution_by_hand(needed, device):
    """torch's own count of the eager weight gradient is C times too large, for it ignores the groups."""
    once = 2 * 16 * 32 * 49
    leaves = {"x": torch.randn(1, 4, 4, 32, device=device), "weight": torch.randn(32, 1, 7, 7, device=device)}
    for name in needed:
        leaves[name].requires_grad_()
    for backend in ("eager", "triton"):
        with dk.use_backend(backend), FlopCounterMode(display=False) as counter:
            out = dk.functional.depthwise_conv2d(**leaves)
        assert counter.get_total_flops() == once
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == len(needed) * once
