"""``torch.compile``: the whole call in one graph, and one graph for every batch size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import dimr_kernels as dk
from tests.support.requirements import needs_inductor

from .cells import DEVICE, Cell, Results, assert_same, each_cell, plain_results, results_of
from .subjects import SUBJECTS

OPERATORS = tuple(name for name in SUBJECTS if name != "DiMR")


class Together(nn.Module):
    """All subjects in one graph: compiling one after the other takes several times as long."""

    def __init__(self, cells: list[Cell]) -> None:
        super().__init__()
        self.parts = nn.ModuleList([cell.module() for cell in cells])

    def forward(self, *inputs: Any) -> list[Any]:
        return [part(*xs) for part, xs in zip(self.parts, inputs, strict=True)]


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[Results]]:
    """For each form, outputs and gradients of every subject from one compiled graph; worked out when asked for."""
    return {}


def _compiled_results(cells: list[Cell]) -> dict[str, Results]:
    together, inputs = Together(cells), [cell.inputs() for cell in cells]
    outputs = torch.compile(together, fullgraph=True)(*inputs)
    return {
        cell.subject: results_of(lambda *_, out=out: out, part, xs)
        for cell, part, xs, out in zip(cells, together.parts, inputs, outputs, strict=True)
    }


@pytest.mark.slow
@needs_inductor
@each_cell("torch.compile", subjects=OPERATORS)
def test_compile(cell, compiled):
    if cell.form not in compiled:
        cells = [Cell(cell.mechanism, subject, cell.form) for subject in OPERATORS]
        with dk.use_backend("eager" if cell.form == "eager" else "auto"):
            compiled[cell.form] = _compiled_results(cells)
    assert_same(compiled[cell.form][cell.subject], plain_results(cell), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@each_cell("torch.compile", subjects=("DiMR",))
def test_compile_model(cell):
    module = cell.module()
    with cell.running():
        found = results_of(torch.compile(module, fullgraph=True, backend="aot_eager"), module, cell.inputs())
    assert_same(found, plain_results(cell))


@pytest.mark.slow
@each_cell("torch.compile, dynamic=True")
def test_one_graph_for_every_batch(cell):
    counter = CompileCounterWithBackend("aot_eager")
    module = cell.module()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    with cell.running():
        for batch in (2, 3, 5):
            found = results_of(compiled, module, cell.inputs(batch))
            assert_same(found, plain_results(cell, batch))
    assert counter.frame_count == 1


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
