"""Fused against eager and float64, where an input may hold anything: infinities and NaN spread as eager spreads them.

An element is right where it equals eager's, or the float64 result rounded to its dtype (NaN equals NaN), or lies within
``allowed`` of the float64 result. That is one number for each output and each gradient, with maxima over the elements
that are finite in eager and in float64:

    allowed = 2 * max|eager - float64| + ULPS * max(eps * max|float64|, the dtype's smallest denormal)

(of bfloat16 in the interpreter: its smallest normal), as in ``tests.support.parity``. Where some element misses it,
the problem itself may amplify rounding (sums that cancel, a variance near zero), and ``AMPLIFIED`` times ``moved`` is
added: the largest change of any element of that tensor in float64, in any of three draws, when every element of every
floating tensor among the inputs, of the outputs and of the cotangents is multiplied by a random factor in
``[1 - e, 1 + e]``, where e is the eps of ``intermediate``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.support.parity import ULPS, Function, Inputs, results_of

AMPLIFIED = 4.0
# Triton's interpreter casts float32 to bfloat16 by its own arithmetic, which is wrong for denormals.
WRONG_DENORMALS = None if torch.cuda.is_available() else torch.bfloat16


def assert_agrees(
    function: Function, inputs: Inputs, backend: str = "triton", intermediate: torch.dtype = torch.float32
) -> None:
    """``intermediate``: the coarsest dtype that anything between inputs and outputs is rounded to."""
    reference = results_of(function, inputs, "eager", torch.float64)
    eager = results_of(function, inputs, "eager")
    fused = results_of(function, inputs, backend)
    assert fused.keys() == reference.keys()
    moved = None
    for name, truth in reference.items():
        got, same_dtype = fused[name], eager[name]
        assert got.shape == truth.shape, f"{name}: shape {tuple(got.shape)}, wanted {tuple(truth.shape)}"
        assert got.dtype == same_dtype.dtype, f"{name}: {got.dtype}, eager gives {same_dtype.dtype}"
        allowed = _allowed(same_dtype, truth, got.dtype)
        if _wrong(got, same_dtype, truth, allowed).any():
            moved = _sensitivity(function, inputs, reference, intermediate) if moved is None else moved
            allowed = allowed + AMPLIFIED * moved[name]
        wrong = _wrong(got, same_dtype, truth, allowed)
        assert not wrong.any(), (
            f"{name}: {int(wrong.sum())} of {wrong.numel()} elements differ, such as {got[wrong][:3].tolist()}; eager "
            f"{same_dtype[wrong][:3].tolist()}, float64 {truth[wrong][:3].tolist()}, allowed {float(allowed):.3e}"
        )


def _allowed(eager: Tensor, truth: Tensor, dtype: torch.dtype) -> float:
    """From what is finite in both."""
    finite = eager.isfinite() & truth.isfinite()
    if not finite.any():
        return 0.0
    error = (eager[finite].double() - truth[finite]).abs().max().item()
    info = torch.finfo(dtype)
    tiny = info.smallest_normal if dtype == WRONG_DENORMALS else info.smallest_normal * info.eps
    return 2 * error + ULPS * max(info.eps * truth[finite].abs().max().item(), tiny)


def _wrong(got: Tensor, eager: Tensor, truth: Tensor, allowed: float) -> Tensor:
    """Neither near the float64 result, nor the infinity or NaN that it or eager has."""
    near = (got.double() - truth).abs() <= allowed
    return ~(near | _same(got, eager) | _same(got, truth.to(got.dtype)))


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())


def _sensitivity(
    function: Function, inputs: Inputs, reference: dict[str, Tensor], dtype: torch.dtype
) -> dict[str, float]:
    """How far results move for relative changes of inputs and cotangents by dtype's eps."""
    generator = torch.Generator().manual_seed(2)

    def shaken(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        noise = torch.rand(x.shape, generator=generator, dtype=torch.float64) - 0.5
        factor = 1 + 2 * torch.finfo(dtype).eps * noise.to(x.device)
        return (x.detach().double() * factor).requires_grad_(x.requires_grad)

    def shaken_function(**arguments: Any) -> tuple[Tensor, ...]:
        outputs = function(**arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(out * (shaken(torch.ones_like(out))).detach() for out in outputs)

    largest = dict.fromkeys(reference, 0.0)
    for _ in range(3):
        moved = results_of(shaken_function, {name: shaken(x) for name, x in inputs.items()}, "eager", torch.float64)
        for name, truth in reference.items():
            difference = (moved[name] - truth).abs()
            difference = difference[difference.isfinite()]
            if difference.numel():
                largest[name] = max(largest[name], difference.max().item())
    return largest
