"""``torch.export``: the exported program computes the same for other batch sizes, saved and loaded too."""

from __future__ import annotations

import io

import pytest
import torch
from torch.export import Dim

from .cells import Cell, assert_same, each_cell, outputs_of, plain_results


def _export(cell: Cell, strict: bool) -> torch.export.ExportedProgram:
    inputs = tuple(x.detach() for x in cell.inputs())
    shapes = tuple({0: Dim.DYNAMIC} for _ in inputs)
    signature = (shapes,) if type(cell.module()).__name__ == "Call" else shapes
    return torch.export.export(cell.module(), inputs, dynamic_shapes=signature, strict=strict)


def _check(cell: Cell, program: torch.export.ExportedProgram) -> None:
    for batch in (2, 3):
        with torch.no_grad():
            found = outputs_of(program.module(), [x.detach() for x in cell.inputs(batch)])
        expected = plain_results(cell, batch)
        assert_same(
            {f"output {i}": out.detach() for i, out in enumerate(found)},
            {name: value for name, value in expected.items() if name.startswith("output")},
        )


@each_cell("torch.export")
def test_export(cell):
    with cell.running():
        program = _export(cell, strict=False)
        _check(cell, program)
        fused = [node for node in program.graph.nodes if "dimr_kernels" in str(node.target)]
        assert bool(fused) == (cell.form != "eager" and cell.subject != "SelfAttention")


@pytest.mark.slow
@each_cell("torch.export, strict=True")
def test_strict_export(cell):
    with cell.running():
        _check(cell, _export(cell, strict=True))


@pytest.mark.slow
@each_cell("torch.export, saved and loaded")
def test_saved(cell):
    file = io.BytesIO()
    with cell.running():
        torch.export.save(_export(cell, strict=False), file)
        file.seek(0)
        _check(cell, torch.export.load(file))
