"""Operators with a torch that lacks the private names of the direct call: dispatcher path, equal results."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

import dimr_kernels as dk
from dimr_kernels import registration
from dimr_kernels.dispatch import unavailable_reason
from tests.support.operators import EXAMPLES, in_cpp
from tests.support.parity import results_of

NAMES = [
    "DispatchKey.BackendSelect",
    "DispatchKey.ADInplaceOrView",
    "DispatchKey.AutogradFunctionality",
    "DispatchKeySet",
    "_AutoDispatchBelowAutograd",
    "_dispatch_tls_is_dispatch_key_excluded",
    "_dispatch_tls_local_include_set",
    "_functorch.TransformType",
    "_functorch.get_interpreter_stack",
    "_is_torch_function_mode_enabled",
]


class Lacking:
    """Wrapper that hides one name of a module or class; ``a.b`` is the name ``b`` of ``a``."""

    def __init__(self, whole: Any, name: str) -> None:
        self.whole = whole
        self.first, _, self.rest = name.partition(".")

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.whole, name)
        if name != self.first:
            return found
        if self.rest:
            return Lacking(found, self.rest)
        raise AttributeError(name)


@pytest.mark.parametrize("name", NAMES)
def test_one_missing_name_is_enough(name):
    forward_mode = torch.autograd.forward_ad
    assert registration._bind_private_names(torch._C, forward_mode) is not None
    assert registration._bind_private_names(Lacking(torch._C, name), forward_mode) is None
    assert registration._bind_private_names(torch._C, Lacking(forward_mode, "_current_level")) is None


CALLS = EXAMPLES | in_cpp(EXAMPLES)


@pytest.fixture
def without_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the names, so that any use of one fails."""
    monkeypatch.setattr(registration, "_private", None)
    monkeypatch.setattr(registration, "_FAST_PATH", False)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", [name for name in CALLS if CALLS[name].fused != "auto"])
def test_the_same_bits(name, recorded, device, request):
    example = CALLS[name]
    if problem := unavailable_reason(example.fused, device):
        pytest.skip(problem)
    inputs = {k: v.requires_grad_(recorded) for k, v in example.make_inputs(device, torch.bfloat16).items()}
    with torch.set_grad_enabled(recorded):
        expected = results_of(example.function, inputs, example.fused)
        request.getfixturevalue("without_names")
        found = results_of(example.function, inputs, example.fused)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def _loss(h: torch.Tensor) -> torch.Tensor:
    with dk.use_backend("triton"):
        return dk.functional.geglu(h).square().sum()


def test_transforms(without_names, device):
    h = torch.randn(3, 8, device=device)
    (expected,) = torch.autograd.grad(_loss(h.requires_grad_()), h)
    torch.testing.assert_close(torch.func.grad(_loss)(h.detach()), expected)
    each = torch.func.vmap(torch.func.grad(_loss))(h.detach()[:, None])
    torch.testing.assert_close(each[:, 0], expected)


def test_forward_mode_is_refused(without_names, device):
    h = torch.randn(3, 8, device=device)
    with pytest.raises(RuntimeError, match="geglu_packed: it has no forward-mode derivative"):
        torch.func.jvp(_loss, (h,), (torch.ones_like(h),))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
        _loss(torch.autograd.forward_ad.make_dual(h, torch.ones_like(h)))


def test_double_backward_is_refused(without_names, device):
    h = torch.randn(3, 8, device=device, requires_grad=True)
    (gradient,) = torch.autograd.grad(_loss(h), h, create_graph=True)
    with pytest.raises(RuntimeError, match="its fused backward has no derivative"):
        gradient.sum().backward()


@pytest.mark.slow
def test_one_graph(without_names, device):
    h = torch.randn(3, 8, device=device, requires_grad=True)
    compiled = torch.compile(_loss, fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(function(h), h) for function in (compiled, _loss))
    torch.testing.assert_close(found, expected)


GRADIENTS = """
h = torch.randn(3, 8, requires_grad=True)
expected, = torch.autograd.grad(dk.functional.geglu(h).sum(), h)
with dk.use_backend("triton"):
    found, = torch.autograd.grad(dk.functional.geglu(h).sum(), h)
torch.testing.assert_close(found, expected)
assert not registration._FAST_PATH
"""
# Without it values are never read. torch's own autograd needs this name.
NO_VALUES = "assert not dk.checks.can_read_values(torch.ones(1))"


@pytest.mark.parametrize(
    ("name", "code"),
    [("_dispatch_tls_local_include_set", GRADIENTS), ("_are_functorch_transforms_active", NO_VALUES)],
)
def test_the_package_imports_without_a_name(name, code):
    pytest.importorskip("triton")
    imports = f"import torch\ndel torch._C.{name}\nimport dimr_kernels as dk\nfrom dimr_kernels import registration\n"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", imports + code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
