"""A fused operator against its eager definition in float64, forward and every gradient.

The tolerance: ``error(fused) <= 2 * error(eager in the same dtype) + ULPS * eps * max|reference|``, where the error is
the largest absolute difference from the float64 result and eps belongs to the compared tensor's dtype.

The eager result is one sample of what float32 makes of the definition, now and then a lucky one: a sum that cancels, a
gate's gradient over many rows. So where that bound is passed, the larger of its error and of a few runs of the
definition in float64 with every operation's result off by up to half a float32 unit in the last place takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import dimr_kernels as dk
from dimr_kernels.dispatch import unavailable_reason

# Two units in the last place at the largest magnitude: one for the order of float32 sums, one because Triton's
# interpreter truncates bfloat16 stores where hardware rounds (tests/dimr_kernels/test_interpreter.py).
ULPS = 2.0
ROUNDED_RUNS = 3

Inputs = Mapping[str, Any]
Results = dict[str, Tensor]
Function = Callable[..., Any]


def results_of(function: Function, inputs: Inputs, backend: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Outputs ("out.0", ...) and gradients ("grad.<argument>") for cotangents drawn from one fixed seed.

    ``dtype`` casts every floating input first. Tensors that require a gradient in ``inputs`` get one.
    """
    arguments: dict[str, Any] = {}
    leaves: dict[str, Tensor] = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            requires_grad = value.requires_grad
            value = value.detach() if dtype is None else value.detach().to(dtype)
            if requires_grad:
                leaves[name] = value.requires_grad_()
        arguments[name] = value
    with dk.use_backend(backend):
        outputs = function(**arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = {f"out.{i}": out.detach() for i, out in enumerate(outputs)}
    if leaves:
        followed = [out for out in outputs if out.requires_grad]
        gradients = torch.autograd.grad(followed, list(leaves.values()), _cotangents(outputs))
        found |= {f"grad.{name}": g for name, g in zip(leaves, gradients, strict=True)}
    return found


def _cotangents(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Draw one for each differentiable output, the same numbers in every dtype, which bfloat16 represents exactly."""
    generator = torch.Generator().manual_seed(1)
    drawn = [(out, torch.randn(out.shape, generator=generator).bfloat16()) for out in outputs]
    return [cotangent.to(out.device, out.dtype) for out, cotangent in drawn if out.requires_grad]


def kernel_backends(device: torch.device) -> list[str]:
    """Backends other than "eager" of the operators with Triton kernels: Triton, and C++ where it runs."""
    return [form for form in ("triton", "cpp") if form == "triton" or unavailable_reason(form, device) is None]


def skip_unless_it_runs(backend: str, device: torch.device) -> None:
    """Skip the test of a fused form that cannot run on this device."""
    if backend == "cpp" and (problem := unavailable_reason(backend, device)):
        pytest.skip(problem)


def assert_parity(function: Function, inputs: Inputs, backend: str | None = None, ulps: float = ULPS) -> None:
    """Run ``function(**inputs)`` fused, eager and in float64, and compare all that comes out.

    ``backend``: of the fused form; None for each of :func:`kernel_backends`.
    """
    reference = results_of(function, inputs, "eager", torch.float64)
    eager = results_of(function, inputs, "eager")
    (device,) = {x.device for x in inputs.values() if isinstance(x, Tensor)}

    @cache
    def rounded() -> list[Results]:
        return [_rounded_results(function, inputs, seed) for seed in range(ROUNDED_RUNS)]

    for fused in kernel_backends(device) if backend is None else [backend]:
        _assert_as_close(results_of(function, inputs, fused), eager, reference, rounded, ulps, fused)


def _assert_as_close(
    found: Results, eager: Results, reference: Results, rounded: Callable[[], list[Results]], ulps: float, backend: str
) -> None:
    for key, truth in reference.items():
        got, name = found[key], f"{backend}: {key}"
        assert got.shape == truth.shape, f"{name}: shape {tuple(got.shape)}, wanted {tuple(truth.shape)}"
        assert got.dtype == eager[key].dtype, f"{name}: {got.dtype}, eager gives {eager[key].dtype}"
        if truth.numel() == 0:
            continue
        assert torch.isfinite(got).all(), f"{name}: {(~torch.isfinite(got)).sum().item()} elements not finite"
        slack = ulps * torch.finfo(got.dtype).eps * truth.abs().max().item()
        expected, error = largest_error(eager[key], truth), largest_error(got, truth)
        if error > 2 * expected + slack:
            expected = max(expected, *(largest_error(run[key], truth) for run in rounded()))
        allowed = 2 * expected + slack
        assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"


class _Rounded(TorchDispatchMode):
    """The result of every operation on float64 is off by up to half a float32 unit in the last place, at random."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _in_steps():
            with self:
                return _in_steps()[func](*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        computes = func.namespace == "aten" and not func.is_view and not func._schema.is_mutable
        return tree_map(self._off, out) if computes else out

    def _off(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dtype != torch.float64:
            return x
        drawn = torch.rand(x.shape, generator=self._generator, dtype=x.dtype).to(x.device)
        return x * (1 + (drawn - 0.5) * torch.finfo(torch.float32).eps)


@cache
def _in_steps() -> dict[Any, Callable[..., Any]]:
    """Norms are one operation each; torch's definitions of them in smaller ones show the roundings within."""
    aten = torch.ops.aten
    names = [aten.native_layer_norm, aten.native_group_norm]
    return get_decompositions([*names, aten.native_layer_norm_backward, aten.native_group_norm_backward])


def _rounded_results(function: Function, inputs: Inputs, seed: int) -> Results:
    with _Rounded(seed):
        return results_of(function, inputs, "eager", torch.float64)


def largest_error(value: Tensor, truth: Tensor) -> float:
    return (value.double() - truth).abs().max().item()


def assert_deterministic(function: Function, inputs: Inputs, backend: str = "triton") -> None:
    """Check that two runs give the same bits."""
    first, second = (results_of(function, inputs, backend) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), f"{name}: two runs differ"


def strided(x: Tensor) -> Tensor:
    """Return the same values with a last stride of 2 and gaps between rows."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1] + 3, dtype=x.dtype, device=x.device)
    view = wide[..., : 2 * x.shape[-1] : 2]
    view.copy_(x.detach())
    return view.requires_grad_(x.requires_grad)


def far_apart(x: Tensor, folder: Path) -> Tensor:
    """Place entries of dimension 0 2**30 elements apart, with the same values: offsets pass 2**31 from the third on.

    On the CPU the memory is a sparse file. Zeros lie before it, where an offset that wrapped around would point.
    """
    distance, size = 2**30, 2**31 + x.shape[0] * 2**30
    if x.device.type == "cpu":
        base = torch.from_file(str(folder / "sparse"), shared=True, size=size, dtype=x.dtype)
    else:
        base = torch.zeros(size, dtype=x.dtype, device=x.device)
    view = base.as_strided(x.shape, (distance, *x[0].contiguous().stride()), storage_offset=2**31)
    view.copy_(x.detach())
    return view.requires_grad_(x.requires_grad)
