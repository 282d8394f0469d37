"""Mixed precision: autocast in both half precisions, and the scaler of gradients."""

from __future__ import annotations

import pytest
import torch

from .cells import DEVICE, assert_same, each_cell, loss_of, outputs_of, plain_results, results_of


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@each_cell("torch.autocast")
def test_autocast(cell, dtype):
    """Check that both forms agree on every dtype, and with float32 within the half precision's error."""
    module, inputs = cell.module(), cell.inputs()
    with cell.running(), torch.autocast(DEVICE.type, dtype):
        found = results_of(module, module, inputs)
    expected = plain_results(cell)
    for name, value in expected.items():
        if not name.startswith("output"):
            assert found[name].dtype == value.dtype, f"{name}: {found[name].dtype}"
    scale = 16 * torch.finfo(dtype).eps
    largest = {name: value.abs().max().item() for name, value in expected.items()}
    for name, value in expected.items():
        error = (found[name].float() - value).abs().max().item()
        assert error <= scale * max(largest[name], 1.0), f"{name}: {error}"


@each_cell("GradScaler")
def test_grad_scaler(cell):
    """Check that a step with scaled gradients moves the parameters as one without."""
    moved = []
    for scaling in (False, True):
        module, inputs = cell.module(), cell.inputs()
        tensors = [*module.parameters(), *(x for x in inputs if x.requires_grad)]
        optimizer = torch.optim.SGD(tensors, lr=0.01)
        scaler = torch.amp.GradScaler(DEVICE.type, init_scale=1024.0, enabled=scaling)
        with cell.running():
            scaler.scale(loss_of(outputs_of(module, inputs))).backward()
        scaler.step(optimizer)
        scaler.update()
        moved.append({str(i): tensor.detach() for i, tensor in enumerate(tensors)})
    assert_same(moved[1], moved[0])
