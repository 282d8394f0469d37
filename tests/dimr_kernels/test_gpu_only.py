"""Tests that need a GPU: capture in a CUDA graph, no host synchronisation, launches on a second GPU."""

from __future__ import annotations

import pytest
import torch

import dimr_kernels as dk
from tests.support.operators import EXAMPLES
from tests.support.parity import assert_parity

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.parametrize("name", EXAMPLES),
]


def run(name: str, inputs: dict) -> list[torch.Tensor]:
    example = EXAMPLES[name]
    with dk.use_backend(example.fused):
        outputs = example.function(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    leaves = [x for x in inputs.values() if x.requires_grad]
    return [*outputs, *torch.autograd.grad(outputs, leaves, [torch.ones_like(out) for out in outputs])]


def test_replays_from_a_cuda_graph(name, device):
    inputs = EXAMPLES[name].make_inputs(device, torch.float16)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(name, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(name, inputs)
    with torch.no_grad():
        for x in inputs.values():
            x.copy_(torch.randn_like(x))
    graph.replay()
    for found, expected in zip(captured, run(name, inputs), strict=True):
        torch.testing.assert_close(found, expected)


def test_never_waits_for_the_gpu(name, device):
    inputs = EXAMPLES[name].make_inputs(device, torch.float16)
    run(name, inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(name, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_second_gpu(name):
    inputs = EXAMPLES[name].make_inputs(torch.device("cuda:1"), torch.float16)
    assert_parity(EXAMPLES[name].function, inputs, EXAMPLES[name].fused)
