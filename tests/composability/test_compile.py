"""``torch.compile``: one graph for every batch size, and CUDA graphs.

``tests/dimr_kernels/test_every_operator.py`` compiles each operator whole, and all of them by Inductor.
"""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from .cells import DEVICE, assert_same, each_cell, plain_results, results_of


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """Reset the compiler: subjects share one ``forward``, and ``recompile_limit`` bounds its recompilations."""
    torch.compiler.reset()


@pytest.mark.slow
@each_cell("torch.compile, dynamic=True")
def test_one_graph_for_every_batch(cell):
    counter = CompileCounterWithBackend("aot_eager")
    module = cell.module()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    with cell.running():
        results_of(compiled, module, cell.inputs(batch=7))  # torch treats equal sizes as one; no other is 7
        graphs = counter.frame_count  # two if dynamo restarted to specialise a number such as eps
        found = results_of(compiled, module, cell.inputs(batch=5))
    assert_same(found, plain_results(cell, batch=5))
    assert counter.frame_count == graphs


@pytest.mark.skipif(DEVICE.type != "cuda", reason="on a CPU this mode records no CUDA graph")
@each_cell("torch.compile, mode='reduce-overhead'")
def test_reduce_overhead(cell):
    module, expected = cell.module(), plain_results(cell)
    compiled = torch.compile(module, mode="reduce-overhead", fullgraph=True)
    with cell.running():
        for _ in range(3):  # plain, recorded, replayed
            torch.compiler.cudagraph_mark_step_begin()
            found = {name: value.clone() for name, value in results_of(compiled, module, cell.inputs()).items()}
            assert_same(found, expected, rtol=1e-3, atol=1e-4)
