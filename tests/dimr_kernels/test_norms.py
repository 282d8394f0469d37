"""The time-dependent norms as modules, and ``time_conditioning``."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import dimr_kernels as dk
from tests.support.parity import kernel_backends, skip_unless_it_runs

MODULES = (dk.TDLayerNorm, dk.TDRMSNorm)


def randomized(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize("t", [0.3, torch.tensor([-1.0, 0.2, 1.0])])
@pytest.mark.parametrize("gate", ["channel", "scalar"])
def test_from_layer_norm_computes_the_same(t, gate, device):
    norm = randomized(nn.LayerNorm(12, eps=1e-3)).to(device).eval()
    module = dk.TDLayerNorm.from_layer_norm(norm, gate=gate)
    x = torch.randn(3, 4, 12, device=device)
    t = t.to(device) if isinstance(t, torch.Tensor) else t
    assert module.eps == 1e-3
    assert not module.training
    for backend in ("eager", *kernel_backends(device)):
        with dk.use_backend(backend):
            torch.testing.assert_close(module(x, t), norm(x), rtol=2e-6, atol=2e-6)
    # The gates cannot matter while both ends are equal.
    with torch.no_grad():
        module.scale_gate_weight.normal_()
        module.shift_gate_offset.normal_()
    torch.testing.assert_close(module(x, t), norm(x), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("norm", "shift"),
    [(nn.LayerNorm(8, bias=False), False), (nn.LayerNorm(8, elementwise_affine=False), False), (nn.LayerNorm(8), True)],
)
def test_from_layer_norm_without_weight_or_bias(norm, shift):
    module = dk.TDLayerNorm.from_layer_norm(norm)
    x = torch.randn(2, 8)
    torch.testing.assert_close(module(x, 0.5), norm(x))
    assert (module.p3 is not None) == shift == ("shift_gate_weight" in dict(module.named_parameters()))


def test_from_layer_norm_copies_dtype_and_not_storage():
    norm = nn.LayerNorm(8, dtype=torch.bfloat16)
    module = dk.TDLayerNorm.from_layer_norm(norm)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        module.p1.zero_()
    assert (norm.weight == 1).all()
    assert (module.p2 == 1).all()


def test_new_modules_are_plain_norms(device):
    x = 3 * torch.randn(2, 5, 16, device=device) + 1
    layer, rms = dk.TDLayerNorm(16).to(device), dk.TDRMSNorm((16,)).to(device)
    torch.testing.assert_close(layer(x, 0.1), nn.functional.layer_norm(x, (16,)))
    torch.testing.assert_close(rms(x, 0.1), x / x.square().mean(-1, keepdim=True).sqrt())
    assert [n for n, _ in rms.named_parameters()] == ["p1", "p2", "scale_gate_weight", "scale_gate_offset"]
    assert [tuple(p.shape) for p in dk.TDRMSNorm(16, gate="scalar").parameters()] == [(16,), (16,), (1,), (1,)]


def test_from_rms_norm():
    exact = nn.RMSNorm(8, eps=0.0)
    nn.init.normal_(exact.weight)
    x = torch.randn(4, 8)
    torch.testing.assert_close(dk.TDRMSNorm.from_rms_norm(exact)(x, 0.0), exact(x))
    usual = nn.RMSNorm(8, eps=1e-6)
    with pytest.raises(ValueError, match="eps=1e-06 inside the root"):
        dk.TDRMSNorm.from_rms_norm(usual)
    torch.testing.assert_close(dk.TDRMSNorm.from_rms_norm(usual, eps=1e-8)(x, 0.0), usual(x), rtol=1e-4, atol=1e-5)


def test_residual_goes_through(device):
    module = randomized(dk.TDLayerNorm(8)).to(device)
    x, residual = torch.randn(2, 3, 8, device=device), torch.randn(2, 3, 8, device=device)
    y, total = module(x, 0.2, residual=residual)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(y, module(x + residual, 0.2))


@pytest.mark.parametrize("module", MODULES)
def test_conditioning_gives_the_timestep(module, device):
    norm = randomized(module(8)).to(device)
    x, t = torch.randn(2, 3, 8, device=device), torch.tensor([-0.5, 0.5], device=device)
    with dk.time_conditioning(t):
        torch.testing.assert_close(norm(x), norm(x, t))
        torch.testing.assert_close(norm(x, 0.1), norm(x, 0.1), msg="an argument wins over the block")
        with dk.time_conditioning(0.7):
            torch.testing.assert_close(norm(x), norm(x, 0.7))
        torch.testing.assert_close(norm(x), norm(x, t))
    with pytest.raises(ValueError, match=rf"{module.__name__}: no timestep.*time_conditioning"):
        norm(x)


def test_conditioning_ends_with_an_error_and_stays_in_its_thread():
    norm, failures = dk.TDRMSNorm(8), []
    with pytest.raises(ZeroDivisionError), dk.time_conditioning(0.5):
        raise ZeroDivisionError
    with dk.time_conditioning(0.5):

        def elsewhere() -> None:
            try:
                norm(torch.ones(1, 8))
            except ValueError as error:
                failures.append(str(error))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert len(failures) == 1
    assert "no timestep" in failures[0]


@pytest.mark.parametrize("t", [None, "0.5", [0.5]])
def test_conditioning_refuses_what_is_no_timestep(t):
    with pytest.raises(TypeError, match="time_conditioning: t must be a Tensor or a float"):
        dk.time_conditioning(t)


@pytest.mark.parametrize("backend", ["eager", "triton", "cpp"])
def test_conditioning_around_and_inside_compiled_code(backend, device):
    skip_unless_it_runs(backend, device)
    norm = randomized(dk.TDLayerNorm(8)).to(device)
    x = torch.randn(2, 3, 8, device=device)

    def inside(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with dk.time_conditioning(t):
            return norm(x)

    outside = torch.compile(norm, fullgraph=True, backend="aot_eager")
    inside = torch.compile(inside, fullgraph=True, backend="aot_eager")
    with dk.use_backend(backend):
        for value in ([-0.5, 0.5], [0.9, 0.1]):
            t = torch.tensor(value, device=device, requires_grad=True)
            expected = norm(x, t)
            with dk.time_conditioning(t):
                around = outside(x)
            for found in (around, inside(x, t)):
                torch.testing.assert_close(found, expected)
                torch.testing.assert_close(
                    torch.autograd.grad(found.square().sum(), t), torch.autograd.grad(norm(x, t).square().sum(), t)
                )
        with dk.time_conditioning(0.25):
            torch.testing.assert_close(outside(x), norm(x, 0.25))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: dk.TDLayerNorm((4, 8)), ValueError, r"TDLayerNorm: normalized_shape must be one.*\(4, 8\)"),
        (lambda: dk.TDRMSNorm(0), ValueError, "TDRMSNorm: normalized_shape must be one positive width, got 0"),
        (lambda: dk.TDLayerNorm(8, gate="head"), ValueError, "gate must be one of 'channel', 'scalar'; got 'head'"),
        (lambda: dk.TDLayerNorm.from_layer_norm(nn.LayerNorm((2, 8))), ValueError, r"one positive width, got \(2, 8\)"),
        (lambda: dk.TDLayerNorm(8)(torch.zeros(2, 7), 0.0), ValueError, r"p1 must have shape \[7\], got \[8\]"),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("module", MODULES)
def test_a_state_dict_comes_back(module):
    norm = randomized(module(8))
    again = module(8)
    again.load_state_dict(norm.state_dict())
    x = torch.randn(2, 8)
    torch.testing.assert_close(again(x, 0.3), norm(x, 0.3))
