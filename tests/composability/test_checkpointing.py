"""Activation checkpointing: the reentrant and the other kind, and the one that selects operators."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from .cells import assert_same, each_cell, leaves_of, loss_of, outputs_of, plain_results, results_of


def _keep_fused(context: Any, operator: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    fused = operator.name().startswith("dimr_kernels::")
    return CheckpointPolicy.MUST_SAVE if fused else CheckpointPolicy.PREFER_RECOMPUTE


def _keep_others(context: Any, operator: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    fused = operator.name().startswith("dimr_kernels::")
    return CheckpointPolicy.PREFER_RECOMPUTE if fused else CheckpointPolicy.MUST_SAVE


@each_cell("checkpointing, reentrant")
def test_reentrant(cell):
    module, inputs = cell.module(), cell.inputs()
    with cell.running():
        outputs = outputs_of(partial(checkpoint, module, use_reentrant=True), inputs)
        loss_of(outputs).backward()
    found = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
    found |= {name: leaf.grad for name, leaf in leaves_of(module, inputs).items() if leaf.grad is not None}
    assert_same(found, plain_results(cell))


@each_cell("checkpointing, non-reentrant")
def test_non_reentrant(cell):
    module, inputs = cell.module(), cell.inputs()
    with cell.running():
        assert_same(results_of(partial(checkpoint, module, use_reentrant=False), module, inputs), plain_results(cell))


@pytest.mark.parametrize("policy", [_keep_fused, _keep_others])
@each_cell("checkpointing, selective")
def test_selective(cell, policy):
    module, inputs = cell.module(), cell.inputs()
    contexts = partial(create_selective_checkpoint_contexts, policy)
    with cell.running():
        run = partial(checkpoint, module, use_reentrant=False, context_fn=contexts)
        assert_same(results_of(run, module, inputs), plain_results(cell))
