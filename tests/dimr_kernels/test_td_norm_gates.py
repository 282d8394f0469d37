"""Gates of the time-dependent norms: values over timesteps, and gradients."""

from __future__ import annotations

import pytest
import torch

import dimr_kernels as dk
from dimr_kernels.functional import td_layer_norm, td_rms_norm
from tests.support.parity import assert_deterministic, assert_parity, kernel_backends, results_of, skip_unless_it_runs
from tests.support.td_norms import COLLECTED_ULPS, NORMS, arguments


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("gate", "shared"), [("scalar", False), ("channel", True), ("scalar", True)])
def test_scalar_gates_and_one_timestep_for_all(norm, gate, shared, device):
    inputs = arguments(norm, (3, 4, 24), device, gate=gate, shared=shared)
    assert_parity(NORMS[norm], inputs, ulps=COLLECTED_ULPS)


@pytest.mark.parametrize("gate", ["channel", "scalar"])
def test_many_partials(gate, device):
    """Use enough partials for several groups of rows, whose sums are added at the end."""
    pytest.importorskip("triton")
    from dimr_kernels.launch import RowConfig, override_config
    from dimr_kernels.ops.norm_triton import reduce_tiling

    inputs = arguments("layer", (6, 12), device, gate=gate, parameter_dtype=torch.float16)
    with override_config("time_gate_reduce", RowConfig(elements=16, columns=32, max_tiles=2, num_warps=4)):
        _, groups = reduce_tiling(6, 12)
        assert groups > 2
        assert_parity(td_layer_norm, inputs, ulps=4)
        assert_deterministic(td_layer_norm, inputs)


@pytest.mark.parametrize(
    "wanted",
    [("x",), ("residual",), ("p1",), ("scale_gate_offset",), ("shift_gate_weight", "x"), ("t",), ("t", "p4"), ()],
)
def test_gradients_of_a_subset(wanted, device):
    inputs = arguments("layer", (2, 3, 24), device, residual=True)
    for name, value in inputs.items():
        value.requires_grad_(name in wanted)
    sum_is_constant = not {"x", "residual"} & set(wanted)
    assert_parity(lambda **inputs: td_layer_norm(**inputs)[: 1 if sum_is_constant else 2], inputs, ulps=COLLECTED_ULPS)
    with dk.use_backend("triton"):
        y, total = td_layer_norm(**inputs)
    assert (y.requires_grad, total.requires_grad) == (bool(wanted), not sum_is_constant)


def test_strided_timesteps(device):
    inputs = arguments("layer", (3, 2, 24), device)
    inputs["t"] = torch.randn(6, device=device)[::2].requires_grad_()
    assert_parity(td_layer_norm, inputs, ulps=COLLECTED_ULPS)


@pytest.mark.parametrize("backend", ["eager", "triton", "cpp"])
def test_a_float_is_the_same_as_a_tensor(backend, device):
    skip_unless_it_runs(backend, device)
    inputs = arguments("layer", (2, 3, 24), device)
    with dk.use_backend(backend):
        expected = td_layer_norm(**{**inputs, "t": torch.full((2,), 0.3, device=device)})
        for t in (0.3, torch.tensor(0.3, device=device), torch.tensor([0.3], device=device)):
            torch.testing.assert_close(td_layer_norm(**{**inputs, "t": t}), expected)


@pytest.mark.parametrize("norm", NORMS)
def test_definition_by_hand(norm, device):
    inputs = {name: v.detach() for name, v in arguments(norm, (2, 3, 12), device).items()}
    x, t = inputs["x"].double(), inputs["t"].double()[:, None]
    s = torch.sigmoid(inputs["scale_gate_weight"] * t + inputs["scale_gate_offset"])
    gamma = s * inputs["p1"] + (1 - s) * inputs["p2"]
    if norm == "rms":
        expected = x / (x.square().mean(-1, keepdim=True).sqrt() + 0.5) * gamma[:, None]
    else:
        s = torch.sigmoid(inputs["shift_gate_weight"] * t + inputs["shift_gate_offset"])
        beta = s * inputs["p3"] + (1 - s) * inputs["p4"]
        deviation = (x.var(-1, correction=0, keepdim=True) + 0.5).sqrt()
        expected = (x - x.mean(-1, keepdim=True)) / deviation * gamma[:, None] + beta[:, None]
    for backend in ("eager", *kernel_backends(device)):
        with dk.use_backend(backend):
            torch.testing.assert_close(NORMS[norm](**inputs, eps=0.5), expected.float())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shared", [False, True])
def test_gradcheck_of_the_definition(norm, shared, device):
    inputs = arguments(norm, (2, 2, 5), device, shared=shared, residual=True)
    names, values = zip(*((n, v.detach().double().requires_grad_()) for n, v in inputs.items()), strict=True)
    check = torch.autograd.gradcheck if shared else torch.autograd.gradgradcheck
    assert check(lambda *v: NORMS[norm](**dict(zip(names, v, strict=True))), values, fast_mode=True)


@pytest.mark.parametrize("open_to", ["first", "second"])
def test_gradients_of_what_a_gate_has_nearly_shut_out(open_to, device):
    """Check gradients at a gate of 1e-4, which must not be computed as one minus the other's share."""
    offset = {"first": 9.2, "second": -9.2}[open_to]
    shut_out = {"first": "p2", "second": "p1"}[open_to]
    inputs = arguments("rms", (3, 4, 16), device)
    inputs["scale_gate_weight"] = torch.zeros(16, device=device, requires_grad=True)
    inputs["scale_gate_offset"] = torch.full((16,), offset, device=device, requires_grad=True)
    found = results_of(td_rms_norm, inputs, "triton")[f"grad.{shut_out}"]
    truth = results_of(td_rms_norm, inputs, "eager", torch.float64)[f"grad.{shut_out}"]
    assert (found.double() - truth).abs().max() < 1e-6 * truth.abs().max()
