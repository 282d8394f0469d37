"""``torch.compile``: the whole call in one graph, and one graph for every batch size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import dimr_kernels as dk
from tests.support.requirements import needs_inductor

from .cells import DEVICE, Cell, Results, assert_same, each_cell, leaves_of, loss_of, plain_results, results_of
from .subjects import SUBJECTS

OPERATORS = tuple(name for name in SUBJECTS if name != "DiMR")


class Together(nn.Module):
    """All subjects in one graph: compiling one after the other takes several times as long."""

    def __init__(self, cells: list[Cell]) -> None:
        super().__init__()
        self.parts = nn.ModuleList([cell.module() for cell in cells])
        self.backends = [cell.backend for cell in cells]

    def forward(self, *inputs: Any) -> list[Any]:
        outputs = []
        for part, backend, xs in zip(self.parts, self.backends, inputs, strict=True):
            with dk.use_backend(backend):
                outputs.append(part(*xs))
        return outputs


def _compiled_results(form: str) -> dict[str, Results]:
    """Outputs and gradients of every subject that runs here, from one compiled graph."""
    cells = [Cell("torch.compile", subject, form) for subject in OPERATORS]
    cells = [cell for cell in cells if cell.why_no_form() is None]
    together, inputs = Together(cells), [cell.inputs() for cell in cells]
    outputs = torch.compile(together, fullgraph=True)(*inputs)
    outputs = [out if isinstance(out, tuple) else (out,) for out in outputs]
    leaves = [leaves_of(part, xs) for part, xs in zip(together.parts, inputs, strict=True)]
    together_loss = torch.stack([loss_of(out) for out in outputs]).sum()
    gradients = iter(torch.autograd.grad(together_loss, [leaf for named in leaves for leaf in named.values()]))
    return {
        cell.subject: {f"output {i}": x.detach() for i, x in enumerate(out)} | {name: next(gradients) for name in named}
        for cell, out, named in zip(cells, outputs, leaves, strict=True)
    }


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """Subjects share one ``forward``, and a function is compiled anew only so often (``recompile_limit``)."""
    torch.compiler.reset()


@pytest.fixture(scope="module")
def compiled_eager() -> dict[str, Results]:
    return _compiled_results("eager")


@pytest.fixture(scope="module")
def compiled_fused() -> dict[str, Results]:
    return _compiled_results("fused")


@pytest.mark.slow
@needs_inductor
@each_cell("torch.compile", subjects=OPERATORS)
def test_compile(cell, request):
    found = request.getfixturevalue(f"compiled_{cell.form}")[cell.subject]
    assert_same(found, plain_results(cell), rtol=1e-4, atol=1e-5)


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
        results_of(compiled, module, cell.inputs(batch=7))  # no other size is 7: torch takes equal sizes for one
        graphs = counter.frame_count  # two where dynamo began again to make a constant of a number such as eps
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
