"""Mechanisms that need a GPU: CUDA graphs, streams, modules on several GPUs."""

from __future__ import annotations

import pytest
import torch

import dimr_kernels as dk

from .cells import DEVICE, Cell, assert_same, each_cell, outputs_of, plain_results, results_of
from .matrix import FORMS

pytestmark = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")


@each_cell("CUDA graphs")
def test_cuda_graphs(cell):
    """Replay a captured forward and backward on new values of its inputs."""
    module, inputs = cell.module(), cell.inputs()
    expected = plain_results(cell)
    with cell.running():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                results_of(module, module, inputs)
        torch.cuda.current_stream().wait_stream(stream)
        values = [x.detach().clone() for x in inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = results_of(module, module, inputs)
        with torch.no_grad():
            for x, value in zip(inputs, values, strict=True):
                x.zero_()
                x.copy_(value)
        graph.replay()
    assert_same(captured, expected, rtol=1e-4, atol=1e-5)


@each_cell("streams")
def test_streams(cell):
    """Check that work is queued on the current stream, the default one or another."""
    module, inputs = cell.module(), cell.inputs()
    expected = plain_results(cell)
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()
    found = []
    with cell.running():
        for stream in (first, second):
            with torch.cuda.stream(stream):
                late = tuple(torch.zeros_like(x) for x in inputs)
                torch.cuda._sleep(20_000_000)
                for x, value in zip(late, inputs, strict=True):
                    x.copy_(value.detach())
                    x.requires_grad_(value.requires_grad)
                found.append(results_of(module, module, late))
    torch.cuda.synchronize()
    for results in found:
        assert_same(results, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@each_cell("several GPUs")
def test_second_gpu(cell):
    """Use tensors of a GPU that is not the current one."""
    module = cell.module().to("cuda:1")
    inputs = tuple(x.detach().to("cuda:1").requires_grad_(x.requires_grad) for x in cell.inputs())
    with cell.running():
        found = results_of(module, module, inputs)
    expected = plain_results(cell)
    assert all(value.device.index == 1 for value in found.values())
    assert_same({name: value.to(DEVICE) for name, value in found.items()}, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("subject", ["TDLayerNorm + residual", "DepthwiseConv2d + residual", "pixel_shuffle_add"])
@pytest.mark.parametrize("form", FORMS)
def test_mixed_gpus_are_refused(subject, form):
    cell = Cell("several GPUs", subject, form)
    module, inputs = cell.module(), cell.inputs()
    with dk.use_backend(cell.backend), pytest.raises(ValueError, match="is on cuda"):
        outputs_of(module, (*inputs[:-1], inputs[-1].to("cuda:1")))
