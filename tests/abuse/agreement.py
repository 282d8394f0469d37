"""Fused against eager and float64, where an input may hold anything: infinities and NaN spread as eager spreads them.

An element is right where it equals eager's, or the float64 result rounded to its dtype (NaN equals NaN), or lies within
``allowed`` of the float64 result. That is one number for each output and each gradient, with maxima over the elements
that are finite in eager and in float64:

    allowed = 2 * max|eager - float64| + ULPS * max(eps * max|float64|, the dtype's smallest denormal)

(of bfloat16 in the interpreter: its smallest normal), as in ``tests.support.parity``. Where some element misses it,
either the problem amplifies rounding (sums that cancel, a variance near zero), or eager was lucky. ``AMPLIFIED`` times
the larger of two numbers is added, each the largest of five draws, where every element of every floating tensor among
the inputs, the outputs and the cotangents is multiplied by a random factor in ``[1 - e, 1 + e]``:

- how far any element of the float64 result moves, where e is the eps of ``intermediate``;
- how far any element of eager's result is from float64's, where e is twice the eps of each tensor's own dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.support.parity import ULPS, Function, Inputs, results_of

AMPLIFIED = 4.0
DRAWS = 5
# Triton's interpreter casts float32 to bfloat16 by its own arithmetic, which is wrong for denormals.
WRONG_DENORMALS = None if torch.cuda.is_available() else torch.bfloat16


def assert_agrees(
    function: Function,
    inputs: Inputs,
    backend: str = "triton",
    intermediate: torch.dtype = torch.float32,
    floor: float = 0.0,
) -> None:
    """``intermediate``: the coarsest dtype that anything between inputs and outputs is rounded to.

    ``floor``: an absolute error that the operator states, allowed everywhere.
    """
    reference = results_of(function, inputs, "eager", torch.float64)
    eager = results_of(function, inputs, "eager")
    fused = results_of(function, inputs, backend)
    assert fused.keys() == reference.keys()
    excused = None
    for name, truth in reference.items():
        got, same_dtype = fused[name], eager[name]
        assert got.shape == truth.shape, f"{name}: shape {tuple(got.shape)}, wanted {tuple(truth.shape)}"
        assert got.dtype == same_dtype.dtype, f"{name}: {got.dtype}, eager gives {same_dtype.dtype}"
        allowed = floor + _allowed(same_dtype, truth, got.dtype)
        if _wrong(got, same_dtype, truth, allowed).any():
            excused = _sensitivity(function, inputs, reference, intermediate) if excused is None else excused
            allowed = allowed + AMPLIFIED * excused[name]
        wrong = _wrong(got, same_dtype, truth, allowed)
        assert not wrong.any(), (
            f"{name}: {int(wrong.sum())} of {wrong.numel()} elements differ, such as {got[wrong][:3].tolist()}; eager "
            f"{same_dtype[wrong][:3].tolist()}, float64 {truth[wrong][:3].tolist()}, allowed {float(allowed):.3e}"
        )


def _allowed(eager: Tensor, truth: Tensor, dtype: torch.dtype) -> float:
    """Return the largest error allowed, judged by the elements that are finite in both."""
    finite = eager.isfinite() & truth.isfinite()
    if not finite.any():
        return 0.0
    error = (eager[finite].double() - truth[finite]).abs().max().item()
    info = torch.finfo(dtype)
    tiny = info.smallest_normal if dtype == WRONG_DENORMALS else info.smallest_normal * info.eps
    return 2 * error + ULPS * max(info.eps * truth[finite].abs().max().item(), tiny)


def _wrong(got: Tensor, eager: Tensor, truth: Tensor, allowed: float) -> Tensor:
    """Mark elements that are neither near the float64 result nor the infinity or NaN that it or eager has."""
    near = (got.double() - truth).abs() <= allowed
    return ~(near | _same(got, eager) | _same(got, truth.to(got.dtype)))


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())


def _sensitivity(
    function: Function, inputs: Inputs, reference: dict[str, Tensor], intermediate: torch.dtype
) -> dict[str, float]:
    """Return how far rounding of the inputs and intermediates alone can move each result."""
    generator = torch.Generator().manual_seed(2)

    def shaken(x: Any, dtype: torch.dtype | None = None) -> Any:
        """Perturb by the eps of ``intermediate`` in float64, or by twice the eps of ``dtype`` in that dtype."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        eps = torch.finfo(intermediate).eps if dtype is None else 2 * torch.finfo(dtype).eps
        noise = 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1
        factor = 1 + eps * noise.to(x.device)
        return (x.detach().double() * factor).to(dtype or torch.float64).requires_grad_(x.requires_grad)

    def shaken_function(**arguments: Any) -> tuple[Tensor, ...]:
        outputs = function(**arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(out * (shaken(torch.ones_like(out))).detach() for out in outputs)

    def differences(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> Iterator[tuple[str, float]]:
        for name, truth in wanted.items():
            difference = (found[name].double() - truth).abs()
            difference = difference[difference.isfinite()]
            yield name, difference.max().item() if difference.numel() else 0.0

    largest = dict.fromkeys(reference, 0.0)
    for _ in range(DRAWS):
        moved = results_of(shaken_function, {name: shaken(x) for name, x in inputs.items()}, "eager", torch.float64)
        near = {name: shaken(x, x.dtype) if isinstance(x, Tensor) else x for name, x in inputs.items()}
        eager, truth = results_of(function, near, "eager"), results_of(function, near, "eager", torch.float64)
        for name, difference in (*differences(moved, reference), *differences(eager, truth)):
            largest[name] = max(largest[name], difference)
    return largest
