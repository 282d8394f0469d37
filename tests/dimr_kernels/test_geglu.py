from __future__ import annotations

import pytest
import torch

import dimr_kernels as dk
from dimr_kernels.functional import geglu
from tests.support.parity import assert_parity, strided

WIDTHS = (1, 7, 192, 240, 480, 960)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def packed(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return (2 * torch.randn(shape, device=device)).to(dtype).requires_grad_()


@pytest.mark.parametrize("D", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_packed_matches_eager(D, dtype, approximate, device):
    h = packed((2, 3, 2 * D), dtype, device)
    assert_parity(lambda h: geglu(h, approximate=approximate), {"h": h})


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["first", "last"])
def test_widest(gate, device):
    assert_parity(lambda h: geglu(h, gate=gate), {"h": packed((3, 2 * 38400), torch.bfloat16, device)})


@pytest.mark.parametrize("shape", [(5, 48), (48,), (1, 2, 3, 48), (0, 48), (4, 0)])
def test_shapes_and_gate_last(shape, device):
    assert_parity(lambda h: geglu(h, gate="last"), {"h": packed(shape, torch.float32, device)})


def test_gate_order_is_what_it_says(device):
    h = packed((4, 20), torch.float32, device)
    expected = torch.nn.functional.gelu(h[:, 10:]) * h[:, :10]
    with dk.use_backend("triton"):
        torch.testing.assert_close(geglu(h, gate="last"), expected)


@pytest.mark.parametrize("D", [7, 96])
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True), (False, False)])
def test_two_tensors(D, needs, device):
    gate, value = (torch.randn(6, D, device=device, requires_grad=need) for need in needs)
    assert_parity(lambda h, value: geglu(h, value), {"h": gate, "value": value})


def test_strided_inputs(device):
    h = strided(packed((5, 2, 96), torch.float32, device))
    assert not h.is_contiguous()
    assert_parity(geglu, {"h": h})
    gate, value = packed((5, 192), torch.float32, device).chunk(2, dim=-1)
    assert_parity(geglu, {"h": gate.detach().requires_grad_(), "value": value.detach().t().contiguous().t()})


def test_extreme_values_stay_finite(device):
    h = torch.tensor([[-1e4, -30.0, 0.0, 30.0, 1e4, 1.0, 1.0, 1.0, 1.0, 1.0]], device=device, requires_grad=True)
    for approximate in ("none", "tanh"):
        assert_parity(lambda h, a=approximate: geglu(h, approximate=a), {"h": h})


def test_double_backward_says_so(device):
    h = packed((2, 8), torch.float32, device)
    with dk.use_backend("triton"):
        (g,) = torch.autograd.grad(geglu(h).sum(), h, create_graph=True)
        with pytest.raises(RuntimeError, match=r"geglu.*use_backend\('eager'\)"):
            g.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"h": torch.zeros(2, 5)}, ValueError, r"even last dimension.*\[2, 5\]"),
        ({"h": torch.zeros(2, 4), "approximate": "erf"}, ValueError, "approximate.*'erf'"),
        ({"h": torch.zeros(2, 4), "gate": "left"}, ValueError, "gate.*'left'"),
        ({"h": torch.zeros(2, 4, dtype=torch.int64)}, TypeError, "h must have a floating-point dtype.*int64"),
        ({"h": torch.zeros(2, 4), "value": torch.zeros(2, 3)}, ValueError, r"value.*\[2, 4\].*\[2, 3\]"),
        ({"h": torch.zeros(2, 4), "value": torch.zeros(2, 4).half()}, TypeError, "value has dtype torch.float16"),
        ({"h": torch.zeros(())}, ValueError, "scalar"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        geglu(**arguments)


def test_modules(device):
    x = torch.randn(3, 5, 12, device=device)
    module = dk.GEGLU(12, 20).to(device)
    gate, value = module.proj(x).chunk(2, dim=-1)
    torch.testing.assert_close(module(x), torch.nn.functional.gelu(gate) * value)
    assert dk.GEGLUMLP(12, 24).to(device)(x).shape == x.shape
