"""Forward-mode automatic differentiation: tangents are propagated, or an error is raised."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from .cells import each_cell, outputs_of


@pytest.mark.parametrize("recorded", [True, False])
@each_cell("forward-mode AD")
def test_forward_mode(cell, recorded):
    """``no_grad`` does not stop torch's tangents, so it must not lose them here."""
    module, inputs = cell.module(), cell.inputs()
    with cell.running(), torch.set_grad_enabled(recorded), forward_ad.dual_level():
        direction = torch.linspace(-1, 2, inputs[0].numel(), device=inputs[0].device).sin().reshape(inputs[0].shape)
        x = forward_ad.make_dual(inputs[0].detach(), direction)
        out = outputs_of(module, (x, *inputs[1:]))[0]
        tangent = forward_ad.unpack_dual(out).tangent
        assert tangent is not None
        assert tangent.abs().max() > 0
