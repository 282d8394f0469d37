"""Inference mode, default dtype and device, fake tensors, the meta device."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from .cells import DEVICE, assert_same, each_cell, outputs_of, plain_results, results_of
from .subjects import SUBJECTS


def _outputs(cell):
    return {name: value for name, value in plain_results(cell).items() if name.startswith("output")}


@each_cell("torch.inference_mode")
def test_inference_mode(cell):
    module, inputs = cell.module(), cell.inputs()
    with cell.running(), torch.inference_mode():
        found = outputs_of(module, inputs)
    assert all(out.is_inference() for out in found)
    assert_same({f"output {i}": out for i, out in enumerate(found)}, _outputs(cell))


@each_cell("tensors made in inference mode, used after it")
def test_tensors_of_inference_mode(cell):
    with torch.inference_mode():
        inputs = tuple(x.detach().clone() for x in cell.inputs())
    module = cell.module().requires_grad_(False)
    with cell.running():
        found = outputs_of(module, inputs)
    assert_same({f"output {i}": out for i, out in enumerate(found)}, _outputs(cell))


@each_cell("FakeTensorMode")
def test_fake_tensors(cell):
    module, real, expected = cell.module(), cell.inputs(), plain_results(cell)
    mode = FakeTensorMode()
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            child._parameters[name] = nn.Parameter(mode.from_tensor(parameter.detach()))
    inputs = tuple(mode.from_tensor(x) for x in real)
    with mode, cell.running():
        found = results_of(module, module, inputs)
    for name, value in expected.items():
        assert (found[name].shape, found[name].dtype, found[name].stride()) == (
            value.shape,
            value.dtype,
            value.stride(),
        ), name


@each_cell("meta device, to_empty")
def test_meta(cell):
    real = cell.module()
    with torch.device("meta"):
        module = SUBJECTS[cell.subject].make()
    assert all(p.is_meta for p in module.parameters())
    module = module.to_empty(device=DEVICE)
    module.load_state_dict(real.state_dict())
    with cell.running():
        assert_same(results_of(module, module, cell.inputs()), plain_results(cell))


@each_cell("set_default_dtype")
def test_default_dtype(cell):
    """Check that it affects new parameters only, not an operator's result."""
    module, inputs = cell.module(), cell.inputs()
    expected = plain_results(cell)
    torch.set_default_dtype(torch.float64)
    try:
        with cell.running():
            assert_same(results_of(module, module, inputs), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@each_cell("set_default_device")
def test_default_device(cell):
    module, inputs = cell.module(), cell.inputs()
    expected = plain_results(cell)
    torch.set_default_device("meta")
    try:
        with cell.running():
            assert_same(results_of(module, module, inputs), expected)
    finally:
        torch.set_default_device(None)
