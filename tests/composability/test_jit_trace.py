"""``torch.jit.trace``, which records what the dispatcher sees."""

from __future__ import annotations

import warnings

import torch

from .cells import assert_same, each_cell, plain_results, results_of


@each_cell("torch.jit.trace")
def test_jit_trace(cell):
    """Run the trace on other inputs than those it was recorded with."""
    module = cell.module()
    made_with = tuple(torch.rand_like(x) if x.is_floating_point() else x for x in cell.inputs())
    with cell.running(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(module, made_with, check_trace=False)
        assert_same(results_of(traced, module, cell.inputs()), plain_results(cell))
