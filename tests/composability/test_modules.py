"""State-dict hooks and parametrizations of modules; channels last."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from .cells import assert_same, each_cell, loss_of, outputs_of, plain_results, results_of


@each_cell("state_dict hooks")
def test_state_dict_hooks(cell):
    """Rename entries by hooks when saving and when loading."""
    module = cell.module()
    seen = []

    def rename(module, state, prefix, metadata):
        seen.append("out")
        for name in list(state):
            state["renamed." + name] = state.pop(name)

    def undo(module, state, prefix, *rest):
        seen.append("in")
        for name in list(state):
            state[name.removeprefix("renamed.")] = state.pop(name)

    module.register_state_dict_post_hook(rename)
    state = module.state_dict()
    assert all(name.startswith("renamed.") for name in state)
    other = cell.module()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.register_load_state_dict_pre_hook(undo)
    other.load_state_dict(state)
    assert seen == ["out", "in"]
    with cell.running():
        assert_same(results_of(other, other, cell.inputs()), plain_results(cell))


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x

    def right_inverse(self, x):
        return x / 2


@each_cell("parametrize")
def test_parametrize(cell):
    module = cell.module()
    expected = plain_results(cell)
    for child in list(module.modules()):
        for name in [name for name, _ in child.named_parameters(recurse=False)]:
            parametrize.register_parametrization(child, name, Doubled())
    with cell.running():
        outputs = outputs_of(module, cell.inputs())
        loss_of(outputs).backward()
    for i, out in enumerate(outputs):
        torch.testing.assert_close(out.detach(), expected[f"output {i}"])
    for name, parameter in module.named_parameters():
        plain = name.replace("parametrizations.", "").replace(".original", "")
        torch.testing.assert_close(parameter.grad, 2 * expected[plain], msg=plain)


@each_cell("channels_last")
def test_channels_last(cell):
    """Check that module and inputs in channels last give the same results."""
    module = cell.module().to(memory_format=torch.channels_last)
    inputs = tuple(
        x.detach().contiguous(memory_format=torch.channels_last).requires_grad_() if x.dim() == 4 else x
        for x in cell.inputs()
    )
    with cell.running():
        assert_same(results_of(module, module, inputs), plain_results(cell))
