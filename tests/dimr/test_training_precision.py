"""Training in bfloat16 with float32 weights: which casts and copies a step makes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import dimr_kernels as dk
from dimr.model.layers import ConvNeXtBlock, TransformerBlock
from tests.support.small_models import TINY, inputs, perturbed_model

COPIES = ("_to_copy", "clone", "copy_")


class Copies(TorchDispatchMode):
    """Counts casts and copies by operator, dtypes and shape."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, operator, types, arguments=(), kwargs=None):
        result = operator(*arguments, **(kwargs or {}))
        if operator._opname in COPIES:
            source = arguments[-1] if operator._opname == "copy_" else arguments[0]
            self.found[operator._opname, source.dtype, result.dtype, tuple(source.shape)] += 1
        return result


def casts_of_parameters(modules, source, target):
    """One for every parameter of the linear layers and ordinary convolutions."""
    layers = [m for module in modules for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    return Counter(("_to_copy", source, target, tuple(p.shape)) for m in layers for p in m.parameters())


@pytest.mark.parametrize(("kind", "shape"), [(TransformerBlock, (2, 5, 16)), (ConvNeXtBlock, (2, 4, 4, 12))])
def test_a_block_casts_its_weights_and_nothing_else(kind, shape):
    """No activation is cast or copied, forward or backward; each weight is cast once, and its gradient back."""
    block = kind(TINY, 0 if kind is TransformerBlock else 1)
    x = torch.randn(shape, dtype=torch.bfloat16, requires_grad=True)
    with dk.use_backend("triton"), torch.autocast("cpu", torch.bfloat16), Copies() as forward:
        y = block(x, torch.rand(2))
    assert y.dtype == torch.bfloat16
    assert forward.found == casts_of_parameters([block], torch.float32, torch.bfloat16)
    with Copies() as backward:
        y.backward(torch.randn_like(y))
    assert backward.found == casts_of_parameters([block], torch.bfloat16, torch.float32)


@pytest.mark.slow
def test_the_model_casts_its_weights_and_its_input():
    model, batch = perturbed_model(TINY), 2
    low, full = torch.bfloat16, torch.float32
    with dk.use_backend("triton"), torch.autocast("cpu", low), Copies() as copies:
        outputs = model(**inputs(TINY, batch))
    expected = casts_of_parameters([model], full, low)
    C = TINY.in_channels
    expected["_to_copy", full, low, (batch, 1, TINY.dims[0])] += 1  # the class token
    for D, size, p in zip(TINY.dims, TINY.resolutions, TINY.patch_sizes, strict=True):
        patches = (batch, size, size, C * p * p)
        expected["_to_copy", full, low, (size, size, D)] += 1  # positions
        expected["_to_copy", full, low, patches] += 1  # the image, once per branch
        # Each patch's pixels in a row; patches of one pixel are only transposed.
        expected[("clone", full, full, (batch, size, size, C, p, p)) if p > 1 else ("clone", low, low, patches)] += 1
        expected["clone", low, low, (batch, C, size, size)] += 1  # predictions, channels first
    assert {out.dtype for out in outputs} == {low}
    assert copies.found == +expected


def test_gradients_are_float32_and_close_to_those_of_float32():
    model = perturbed_model(TINY)
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs = model(**inputs(TINY))
        sum(out.float().square().mean() for out in outputs).backward()
        assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    exact, rounded = gradients
    assert (rounded - exact).norm() < 0.03 * exact.norm()
