"""Threads: concurrent forwards and backwards, and a backward in another thread than its forward."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

import dimr_kernels as dk

from .cells import assert_same, each_cell, loss_of, outputs_of, plain_results, results_of


@each_cell("threads")
def test_threads(cell):
    module = cell.module()
    expected = plain_results(cell)

    inputs = [cell.inputs() for _ in range(4)]  # here, since all threads draw from one generator

    def run(tensors):
        with dk.use_backend(cell.backend):
            return results_of(module, module, tensors)

    with cell.running(), ThreadPoolExecutor(2) as pool:
        for found in pool.map(run, inputs):
            assert_same(found, expected)


@each_cell("backward in another thread")
def test_backward_elsewhere(cell):
    module, inputs = cell.module(), cell.inputs()
    expected = plain_results(cell)
    with cell.running():
        loss = loss_of(outputs_of(module, inputs))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(loss.backward).result()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])
