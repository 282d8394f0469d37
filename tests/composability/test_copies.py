"""Copies of a module by ``copy.deepcopy``, pickle and ``torch.save`` compute the same."""

from __future__ import annotations

import copy
import io
import pickle

import torch

from .cells import assert_same, each_cell, plain_results, results_of


def _check(cell, module):
    assert not {p.data_ptr() for p in module.parameters()} & {p.data_ptr() for p in cell.module().parameters()}
    with cell.running():
        found = results_of(module, module, cell.inputs())
    assert_same(found, plain_results(cell))


@each_cell("copy.deepcopy")
def test_deepcopy(cell):
    _check(cell, copy.deepcopy(cell.module()))


@each_cell("pickle")
def test_pickle(cell):
    _check(cell, pickle.loads(pickle.dumps(cell.module())))


@each_cell("torch.save of a module")
def test_torch_save(cell):
    file = io.BytesIO()
    torch.save(cell.module(), file)
    file.seek(0)
    _check(cell, torch.load(file, weights_only=False))
