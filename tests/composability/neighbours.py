"""Shared by the tests with other libraries: the package or the reason to skip, and a comparison of predictions."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType

import pytest
import torch
from torch import Tensor


def require(*names: str) -> ModuleType:
    """Import the modules and return the first; skip the test with the reason where one cannot be imported."""
    modules = []
    for name in names:
        try:
            modules.append(importlib.import_module(name))
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision made for another build of torch
            pytest.skip(f"{name} cannot be imported: {error}")
    return modules[0]


def assert_close(found: Iterable[Tensor], wanted: Iterable[Tensor], tolerance: float = 2e-5) -> None:
    """Compare predictions relative to the largest value of each."""
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


def largest_change(found: Iterable[Tensor], wanted: Iterable[Tensor]) -> float:
    """Return the largest relative difference of any prediction."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True))
