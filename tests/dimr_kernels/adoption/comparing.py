"""Comparison of a network before and after adoption."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import dimr_kernels as dk

from .models import Case

SLACK = 8.0
"""Units in the last place: sums that nearly cancel, as gradients of norms, are a matter of luck in either form."""


def computed(model: nn.Module, inputs: tuple[Any, ...], autocast: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return outputs and gradients of one call, with random numbers and cotangents from fixed seeds."""
    leaves = [_leaf(value) for value in inputs]
    model.zero_grad()
    torch.manual_seed(3)
    with torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
        outputs = [value for value in tree_leaves(model(*leaves)) if isinstance(value, Tensor)]
    found = {f"out.{i}": output.detach() for i, output in enumerate(outputs)}
    generator = torch.Generator().manual_seed(1)
    sum((output * torch.randn(output.shape, generator=generator).to(output)).sum() for output in outputs).backward()
    found |= {f"grad.{name}": parameter.grad for name, parameter in model.named_parameters()}
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            found[f"grad of input {i}"] = leaf.grad
    return {name: value for name, value in found.items() if value is not None}


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().clone().requires_grad_()
    return value


def cast(inputs: Any, dtype: torch.dtype) -> Any:
    return tree_map(lambda value: value.to(dtype) if isinstance(value, Tensor) else value, inputs)


def assert_adopted_parity(
    case: Case, dtype: torch.dtype = torch.float32, backend: str = "auto", autocast: torch.dtype | None = None
) -> dk.AdoptionReport:
    """Check that the error against float64 is at most twice that of the original network in the same dtype."""
    inputs = cast(case.inputs, dtype)
    model = case.model.to(dtype)
    truth = computed(copy.deepcopy(model).double(), cast(inputs, torch.float64))
    before = computed(copy.deepcopy(model), inputs, autocast)
    report = dk.adopt(model, **case.keywords)
    assert len(report.swapped) == case.swapped, str(report)
    with dk.use_backend(backend):
        after = computed(model, inputs, autocast)
    assert after.keys() == before.keys() == truth.keys()
    for name, true in truth.items():
        assert after[name].dtype == before[name].dtype, name
        assert torch.isfinite(after[name]).all(), name
        allowed = 2 * error_of(before[name], true) + SLACK * torch.finfo(autocast or dtype).eps
        error = error_of(after[name], true)
        assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"
    return report


def error_of(value: Tensor, truth: Tensor) -> float:
    """Return the error relative to the norm over all elements; the largest error of a whole network is noise."""
    return ((value.double() - truth).norm() / truth.norm().clamp(min=1e-30)).item()
