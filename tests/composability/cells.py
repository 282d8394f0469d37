"""Cells of the matrix (a mechanism, a subject and one of its forms), and what every test does with one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dimr_kernels as dk
from dimr_kernels.dispatch import unavailable_reason

from .matrix import MATRIX
from .subjects import SUBJECTS

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Results = dict[str, Tensor]
TESTED: set[str] = set()
"""Mechanisms that a test asked for."""


@dataclass(frozen=True)
class Cell:
    mechanism: str
    subject: str
    form: str

    @property
    def backend(self) -> str:
        return SUBJECTS[self.subject].fused if self.form == "fused" else self.form

    def module(self) -> nn.Module:
        return SUBJECTS[self.subject].module().to(DEVICE)

    def inputs(self, batch: int = 2) -> tuple[Tensor, ...]:
        """Make the inputs; floating-point tensors require a gradient."""
        made = (x.to(DEVICE) for x in SUBJECTS[self.subject].inputs(batch))
        return tuple(x.requires_grad_() if x.is_floating_point() else x for x in made)

    def running(self) -> AbstractContextManager[None]:
        """Use the form's backend; where the matrix lists a refusal, require its error."""
        stack = contextlib.ExitStack()
        refusal = MATRIX[self.mechanism].refused.get((self.subject, self.form))
        if refusal is not None:
            stack.enter_context(pytest.raises(refusal.error, match=refusal.message))
        stack.enter_context(dk.use_backend(self.backend))
        return stack

    def missing_reason(self) -> str | None:
        """Explain why the form cannot run on this machine; None if it can."""
        if self.form == "eager" or self.backend == "auto":
            return None
        return unavailable_reason(self.backend, DEVICE)


def each_cell(mechanism: str) -> Callable[..., Any]:
    """Parametrize a test with ``cell``, one for each subject and form of the mechanism."""
    TESTED.add(mechanism)
    cells = [
        pytest.param(
            Cell(mechanism, subject, form),
            id=f"{subject}-{form}".replace(" ", ""),
            # Triton's interpreter takes seconds for a whole model.
            marks=[pytest.mark.slow] if (subject, form) == ("DiMR", "fused") else [],
        )
        for subject, form in MATRIX[mechanism].places()
    ]
    return pytest.mark.parametrize("cell", cells)


def outputs_of(function: Callable[..., Any], inputs: Iterable[Any]) -> tuple[Tensor, ...]:
    outputs = function(*inputs)
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def loss_of(outputs: Iterable[Tensor]) -> Tensor:
    """Reduce the outputs to a number to which every element contributes with a different factor."""
    return sum(
        (
            out.float()
            * torch.linspace(0.5, 1.5, out.numel(), dtype=torch.float32, device=out.device).reshape(out.shape)
        ).sum()
        for out in outputs
    )  # type: ignore[return-value]


def leaves_of(module: nn.Module, inputs: Iterable[Any]) -> dict[str, Tensor]:
    leaves = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    leaves |= {f"input {i}": x for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad}
    return leaves


def results_of(function: Callable[..., Any], module: nn.Module, inputs: tuple[Any, ...]) -> Results:
    """Return outputs and gradients of ``function(*inputs)``, which uses ``module``'s parameters."""
    outputs = outputs_of(function, inputs)
    leaves = leaves_of(module, inputs)
    gradients = torch.autograd.grad(loss_of(outputs), list(leaves.values()), allow_unused=True)
    found = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
    return found | {name: g for name, g in zip(leaves, gradients, strict=True) if g is not None}


def plain_results(cell: Cell, batch: int = 2) -> Results:
    """Return the results without any mechanism."""
    module = cell.module()
    with dk.use_backend(cell.backend):
        return results_of(module, module, cell.inputs(batch))


def assert_same(found: Results, expected: Results, **tolerances: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerances)
