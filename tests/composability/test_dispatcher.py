"""A plain call of a fused operator bypasses torch's dispatcher; every mechanism that acts on operators sees it.

``tests/dimr_kernels/test_host_cost.py`` holds the plain call, dispatch modes, fake tensors, function modes, subclasses,
tracing and vmap. Here is the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import dimr_kernels as dk
from tests.support.dispatch import operators_called
from tests.support.operators import EXAMPLES

from .cells import DEVICE

FUSED = [name for name, example in EXAMPLES.items() if example.fused == "triton"]


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Record the names of this package's operators that reach the dispatcher."""
    names: list[str] = []
    original = torch._ops.OpOverload.__call__

    def call(overload: Any, /, *arguments: Any, **options: Any) -> Any:
        if overload.namespace == "dimr_kernels":
            names.append(overload._opname)
        return original(overload, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch._ops.OpOverload, "__call__", call)
        yield names


def geglu(h: Tensor) -> Tensor:
    with dk.use_backend("triton"):
        return dk.functional.geglu(h)


@pytest.fixture
def h() -> Tensor:
    return torch.randn(3, 8, device=DEVICE)


def _functionalized(h: Tensor) -> Tensor:
    return torch.func.functionalize(geglu)(h)


def _wrapped_parameter(h: Tensor) -> Tensor:
    class Subclass(Tensor):
        pass

    return geglu(nn.Parameter(h.as_subclass(Subclass)))


def _dual_level(h: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return geglu(h)


def _negated(h: Tensor) -> Tensor:
    return geglu(torch.complex(torch.zeros_like(h), -h).conj().imag)


def _below_autograd(h: Tensor) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return geglu(h.requires_grad_())


WATCHED = [
    lambda h: torch.func.grad(lambda h: geglu(h).sum())(h),
    lambda h: torch.func.vmap(lambda h: geglu(h))(h),
    _functionalized,
    _wrapped_parameter,
    _dual_level,
    _negated,
    _below_autograd,
]


@pytest.mark.parametrize("call", WATCHED)
def test_reaches_the_dispatcher(call, h, monkeypatch):
    with counted(monkeypatch) as names:
        geglu(h)
        assert names == []
        call(h)
        assert "geglu_packed" in names


@pytest.mark.parametrize("name", FUSED)
def test_views_of_negated_memory(name):
    """Test every argument: ``z.conj().imag`` is a view whose sign differs from its memory's."""
    example = EXAMPLES[name]
    inputs = {key: x.detach() for key, x in example.make_inputs(DEVICE, torch.float32).items()}
    with dk.use_backend("triton"):
        expected = example.function(**inputs)
        for key, x in inputs.items():
            negated = torch._neg_view(-x)
            assert negated.is_neg()
            found = example.function(**{**inputs, key: negated})
            torch.testing.assert_close(found, expected, msg=key)


def test_nothing_is_recorded_below_autograd(h):
    """Call below autograd, as a dispatch mode does that replaces another operator, whose gradient is recorded."""
    found = _below_autograd(h)
    assert not found.requires_grad


def test_a_mode_sees_the_backward(h):
    loss = geglu(h.requires_grad_()).sum()
    with operators_called(qualified=True) as called:
        loss.backward()
    assert "dimr_kernels::geglu_packed_backward" in called


def test_saved_tensor_hooks_see_what_is_kept(h):
    kept: list[torch.Size] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.shape)
        return x * 1

    h.requires_grad_()
    (expected,) = torch.autograd.grad(geglu(h).sum(), h)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = geglu(h).sum()
    (found,) = torch.autograd.grad(loss, h)
    assert h.shape in kept
    torch.testing.assert_close(found, expected)


def test_hooks_of_tensors_and_modules(h):
    seen: list[str] = []
    module = dk.GEGLU(8, 4).to(DEVICE)
    module.register_forward_hook(lambda *_: seen.append("forward"))
    module.register_full_backward_hook(lambda *_: seen.append("backward"))
    module.proj.weight.register_post_accumulate_grad_hook(lambda _: seen.append("gradient"))
    with dk.use_backend("triton"):
        out = module(h.requires_grad_())
    out.register_hook(lambda g: seen.append("output") or 2 * g)
    out.sum().backward()
    assert sorted(seen) == ["backward", "forward", "gradient", "output"]


def test_inside_another_operator(h):
    """Call our operator inside a third party's custom operator, which has its own gradient."""
    library = torch.library.Library("composability_test", "FRAGMENT")
    library.define("gated(Tensor h) -> Tensor")
    library.impl("gated", lambda h: geglu(h).clone(), "CompositeExplicitAutograd")
    torch.library.register_autograd(
        "composability_test::gated", lambda ctx, g: torch.cat([g, -g], -1), lib=library, setup_context=None
    )
    h.requires_grad_()
    torch.ops.composability_test.gated(h).sum().backward()
    torch.testing.assert_close(h.grad, torch.cat([torch.ones(3, 4), -torch.ones(3, 4)], -1).to(h))
    library._destroy()


def test_double_backward_through_torch_func(h):
    with pytest.raises(RuntimeError, match=r"geglu.*use_backend\('eager'\)"):
        torch.func.grad(lambda h: torch.func.grad(lambda h: geglu(h).sum())(h).sum())(h)
