"""``nn.LayerNorm`` on request: TD-LN that is constant in time."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import dimr_kernels as dk
from tests.support.dispatch import operators_called

from .comparing import assert_adopted_parity, computed
from .models import Case, basic_transformer_block

KINDS = {
    "affine": lambda: nn.LayerNorm(24, eps=1e-3),
    "no bias": lambda: nn.LayerNorm(24, bias=False),
    "not affine": lambda: nn.LayerNorm(24, elementwise_affine=False),
}


def drawn(norm: nn.Module) -> nn.Module:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_same_function_and_gradients(kind, dtype, backend):
    case = Case(drawn(KINDS[kind]()), (3 * torch.randn(2, 5, 24) + 1,), 1, {"layer_norm": True})
    assert_adopted_parity(case, dtype, backend)


def test_the_fused_form_runs():
    norm, x = KINDS["not affine"](), torch.randn(4, 24)
    dk.adopt(norm, layer_norm=True)
    with dk.use_backend("triton"), operators_called() as called:
        norm(x)
    assert called["td_norm"] == 1
    assert called["native_layer_norm"] == 0


@pytest.mark.parametrize("shape", [(24,), (0, 24), (3, 24)])
def test_shapes(shape):
    norm, x = drawn(KINDS["affine"]()), torch.randn(shape)
    expected = norm(x)
    dk.adopt(norm, layer_norm=True)
    for backend in ("auto", "triton"):
        with dk.use_backend(backend):
            torch.testing.assert_close(norm(x), expected)


def test_dtypes_that_torch_mixes():
    """Torch's own result has the input's dtype here; so has ours, by running torch's."""
    norm, x = KINDS["affine"](), torch.randn(2, 24).bfloat16()
    expected = norm(x)
    dk.adopt(norm, layer_norm=True)
    assert norm(x).dtype == expected.dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x.float()).dtype == KINDS["affine"]()(x.float()).dtype


def test_in_a_network():
    block = basic_transformer_block()
    case = Case(block, (torch.randn(2, 5, 16), None, torch.randn(2, 3, 12)), 4, {"layer_norm": True})
    report = assert_adopted_parity(case)
    assert [row.by for row in report.swapped].count("td_layer_norm, constant in time") == 3


def test_constants_made_in_inference_mode_can_be_differentiated():
    norm, x = nn.LayerNorm(29, elementwise_affine=False), torch.randn(2, 29, requires_grad=True)
    original = copy.deepcopy(norm)
    dk.adopt(norm, layer_norm=True)
    with torch.inference_mode():
        norm(x)
    torch.testing.assert_close(computed(norm, (x,)), computed(original, (x,)))


@pytest.fixture
def timm_norms():
    return pytest.importorskip("timm.layers.norm")


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_timms_own(timm_norms, backend):
    case = Case(drawn(timm_norms.LayerNorm(24)), (3 * torch.randn(2, 5, 24) + 1,), 1, {"layer_norm": True})
    assert_adopted_parity(case, backend=backend)


def test_timms_own_is_left_where_it_computes_something_else(timm_norms, monkeypatch):
    fast = timm_norms.LayerNorm(4)
    fast._fast_norm = True
    (left,) = dk.adopt(fast, layer_norm=True).left
    assert "timm's fast norm is set" in left.why
    original = timm_norms.LayerNorm.forward
    monkeypatch.setattr(timm_norms.LayerNorm, "forward", lambda norm, x: 2 * original(norm, x))
    (left,) = dk.adopt(timm_norms.LayerNorm(4), layer_norm=True).left
    assert left.why == "this version of its library computes something else"
