from __future__ import annotations

import contextlib

import pytest
import torch

import dimr_kernels as dk
from dimr_kernels.functional import td_layer_norm, td_rms_norm
from dimr_kernels.ops import time_gate
from tests.support.parity import assert_parity, results_of, skip_unless_it_runs, strided
from tests.support.td_norms import COLLECTED_ULPS, GATES, NORMS, arguments


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("D", [1, 7, 192, pytest.param(480, marks=pytest.mark.slow)])
def test_matches_eager(norm, D, device):
    assert_parity(NORMS[norm], arguments(norm, (2, 3, D), device), ulps=COLLECTED_ULPS if D == 1 else 4)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("D", [240, 960, 1152])
def test_matches_eager_with_residual(norm, D, device):
    assert_parity(NORMS[norm], arguments(norm, (2, 9, D), device, residual=True), ulps=8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", NORMS)
def test_half_precision_with_float32_parameters(norm, dtype, device):
    assert_parity(NORMS[norm], arguments(norm, (2, 5, 48), device, dtype=dtype), ulps=4)


@pytest.mark.parametrize("parameter_dtype", [torch.float16, torch.bfloat16])
def test_parameters_of_another_dtype(parameter_dtype, device):
    inputs = arguments("layer", (2, 3, 24), device, dtype=torch.float32, parameter_dtype=parameter_dtype)
    assert_parity(td_layer_norm, inputs, ulps=COLLECTED_ULPS)


def test_float64_parameters_are_used_in_float32(device):
    inputs = arguments("layer", (2, 3, 24), device, parameter_dtype=torch.float64)
    fused, eager = (results_of(td_layer_norm, inputs, backend) for backend in ("triton", "eager"))
    assert fused["grad.p1"].dtype == torch.float64
    torch.testing.assert_close(fused, eager, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [(5, 24), (1, 2, 3, 2, 24), (1, 1), (24,)])
def test_any_rank(norm, shape, residual, device):
    inputs = arguments(norm, shape, device, shared=len(shape) == 1, residual=residual)
    assert_parity(NORMS[norm], inputs, ulps=COLLECTED_ULPS)


@pytest.mark.parametrize("backend", ["triton", "cpp"])
@pytest.mark.parametrize("D", [24, time_gate.WIDEST_IN_REGISTERS + 8])
def test_squares_that_overflow(D, backend, device):
    """An RMS norm divides by infinity where its sum of squares overflows: the result is zero, never NaN."""
    skip_unless_it_runs(backend, device)
    inputs = arguments("rms", (1, 2, D), device)
    inputs["x"] = torch.full_like(inputs["x"], 1e20)
    with torch.no_grad(), dk.use_backend(backend):
        assert not td_rms_norm(**inputs).any()


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [(0, 3, 24), (2, 0, 24)])
def test_empty_batch(shape, residual, device):
    inputs = arguments("layer", shape, device, shared=True, residual=residual)
    assert_parity(td_layer_norm, inputs)
    inputs["t"] = torch.zeros(shape[0], device=device, requires_grad=True)
    found = results_of(td_layer_norm, inputs, "triton")
    assert all((found[f"grad.{name}"] == 0).all() for name in GATES)


@pytest.mark.parametrize("norm", NORMS)
def test_empty_with_strides_of_its_own(norm, device):
    """Test empty tensors with other strides, which torch calls contiguous all the same."""
    inputs = arguments(norm, (0, 24), device, shared=True)
    inputs["x"] = torch.zeros(24, 0, device=device).t().requires_grad_()
    assert_parity(NORMS[norm], inputs)


def test_layer_norm_without_shift(device):
    inputs = arguments("rms", (2, 5, 24), device)
    assert_parity(lambda x, t, p1, p2, **gate: td_layer_norm(x, t, p1, p2, None, None, **gate, **NO_SHIFT_GATE), inputs)


NO_SHIFT_GATE = {"shift_gate_weight": None, "shift_gate_offset": None}


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "D"), [("layer", 38400), ("rms", 66816)])
def test_wide_rows(norm, D, device):
    assert_parity(NORMS[norm], arguments(norm, (2, 1, D), device, dtype=torch.float16), ulps=4)


@pytest.mark.parametrize("norm", NORMS)
def test_wide_rows_with_residual_and_one_timestep(norm, device, monkeypatch):
    """Run the wide form at a width that is quick in the interpreter."""
    inputs = arguments(norm, (2, 5, 77), device, residual=True, shared=True, offset=100.0)
    with small_blocks(monkeypatch):
        assert_parity(NORMS[norm], inputs, ulps=COLLECTED_ULPS)
        assert_parity(NORMS[norm], arguments(norm, (3, 5, 64), device), ulps=4)


def small_blocks(monkeypatch) -> contextlib.ExitStack:
    pytest.importorskip("triton")
    from dimr_kernels.launch import RowConfig, override_config
    from dimr_kernels.ops import norm_triton, td_norm_triton  # noqa: F401  (which defines the kernels)

    monkeypatch.setattr(time_gate, "WIDEST_IN_REGISTERS", 16)
    monkeypatch.setattr(norm_triton, "TABLE_BLOCK", 32)
    configs = {
        "td_norm_fwd_wide": RowConfig(elements=64, columns=16, num_warps=4),
        "td_norm_bwd_wide": RowConfig(elements=2048, columns=16, min_programs=1024, max_tiles=32, num_warps=4),
        "td_norm_bwd_wide_sums": RowConfig(elements=64, columns=32, num_warps=4),
    }
    stack = contextlib.ExitStack()
    for kernel, config in configs.items():
        stack.enter_context(override_config(kernel, config))
    return stack


def test_several_tiles_per_program(device):
    """Use programs that loop over several tiles, and chunks that end in the middle of a tile."""
    pytest.importorskip("triton")
    from dimr_kernels.launch import RowConfig, override_config
    from dimr_kernels.ops import td_norm_triton  # noqa: F401  (which defines the kernels)

    config = RowConfig(elements=64, min_programs=4, max_tiles=16, num_warps=4)
    for shared in (False, True):
        inputs = arguments("layer", (2, 21, 24), device, residual=True, shared=shared)
        with override_config("td_norm_fwd", config), override_config("td_norm_bwd", config):
            assert_parity(td_layer_norm, inputs, ulps=COLLECTED_ULPS)


@pytest.mark.parametrize(("wide", "offset"), [(False, 1e3), (False, -1e4), (True, -1e4)])
def test_a_large_mean_does_not_cancel(wide, offset, device, monkeypatch):
    inputs = arguments("layer", (2, 3, 100), device, offset=offset)
    truth = results_of(td_layer_norm, inputs, "eager", torch.float64)
    with small_blocks(monkeypatch) if wide else contextlib.nullcontext():
        fused = results_of(td_layer_norm, inputs, "triton")
        assert_parity(td_layer_norm, inputs, ulps=abs(offset))
    # The mean has an error of about eps * |mean|, at a standard deviation of 1.
    allowed = 8 * torch.finfo(torch.float32).eps * abs(offset)
    assert (fused["out.0"].double() - truth["out.0"]).abs().max() < allowed * truth["out.0"].abs().max()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_rows(norm, value, device):
    inputs = arguments(norm, (2, 2, 24), device)
    with torch.no_grad():
        inputs["x"][0, 1] = value
    assert_parity(NORMS[norm], inputs, ulps=COLLECTED_ULPS)


@pytest.mark.parametrize("used", [0, 1])
def test_one_of_two_outputs_used(used, device):
    inputs = arguments("rms", (2, 3, 24), device, residual=True)
    inputs["t"].requires_grad_(False)
    if used == 1:
        inputs = {name: v.detach() if name not in ("x", "residual") else v for name, v in inputs.items()}
    assert_parity(lambda **inputs: td_rms_norm(**inputs)[used], inputs, ulps=4)


def test_residual_of_another_dtype(device):
    inputs = arguments("layer", (2, 3, 24), device, dtype=torch.float16)
    inputs["residual"] = torch.randn(2, 3, 24, device=device, requires_grad=True)
    y, total = td_layer_norm(**inputs)
    assert (y.dtype, total.dtype) == (torch.float16, torch.float32)
    assert_parity(td_layer_norm, inputs, ulps=4)


@pytest.mark.parametrize("residual", [False, True])
def test_strided_inputs(residual, device):
    inputs = arguments("layer", (2, 6, 24), device, residual=residual)
    assert_parity(td_layer_norm, {**inputs, "x": strided(inputs["x"])}, ulps=4)
    rows = torch.randn(2, 2, 3, 40, device=device)[..., 5:29].requires_grad_()  # gaps between rows
    swapped = torch.randn(6, 2, 24, device=device).transpose(0, 1).requires_grad_()
    for x in (rows, swapped):
        other = {**inputs, "x": x}
        if residual:
            other["residual"] = torch.randn(x.shape, device=device, requires_grad=True)
        assert_parity(td_layer_norm, other, ulps=4)
    one = {**inputs, "x": swapped, "t": torch.tensor(0.4, device=device, requires_grad=True)}
    assert_parity(td_layer_norm, one, ulps=COLLECTED_ULPS)


def test_double_backward_says_so(device):
    inputs = arguments("layer", (2, 3, 8), device)
    with dk.use_backend("triton"):
        (g,) = torch.autograd.grad(td_layer_norm(**inputs).sum(), inputs["x"], create_graph=True)
        with pytest.raises(RuntimeError, match=r"td_norm.*use_backend\('eager'\)"):
            g.sum().backward()


@pytest.mark.parametrize("backend", ["eager", "triton", "cpp"])
def test_autocast_keeps_the_dtype(backend, device):
    skip_unless_it_runs(backend, device)
    inputs = arguments("layer", (2, 3, 24), device)
    with dk.use_backend(backend), torch.autocast(device.type, torch.bfloat16):
        assert td_layer_norm(**inputs).dtype == torch.float32
        assert td_layer_norm(**{**inputs, "x": inputs["x"].bfloat16()}).dtype == torch.bfloat16


def test_float64_takes_the_definition(device):
    inputs = arguments("rms", (2, 8), device, dtype=torch.float64, parameter_dtype=torch.float64)
    assert td_rms_norm(**inputs).dtype == torch.float64
    with dk.use_backend("triton"), pytest.raises(dk.BackendError, match=r"td_rms_norm.*float64"):
        td_rms_norm(**inputs)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": torch.zeros(())}, ValueError, r"x must have shape \[B, \.\.\., D\].*\[\]"),
        ({"x": torch.zeros(2, 3, 0)}, ValueError, r"D >= 1.*\[2, 3, 0\]"),
        ({"x": torch.zeros(2, 3, 8, dtype=torch.int32)}, TypeError, "x must have a floating-point dtype.*int32"),
        ({"x": [1.0]}, TypeError, "x must be a Tensor, got list"),
        ({"t": torch.zeros(3)}, ValueError, r"t must have shape \[B\] = \[2\].*\[3\]"),
        ({"t": torch.zeros(2, 1)}, ValueError, r"t must have shape .*\[2, 1\]"),
        ({"t": torch.zeros(2, dtype=torch.int64)}, TypeError, "t must have a floating-point dtype.*int64"),
        ({"t": torch.zeros(2, device="meta")}, ValueError, "t is on meta, x is on cpu"),
        ({"t": "soon"}, TypeError, "t must be a Tensor or a float, got str"),
        ({"t": float("nan")}, ValueError, "t is NaN"),
        ({"t": torch.tensor([0.5, float("nan")])}, ValueError, r"t holds NaN: \[0\.5, nan\]"),
        ({"p1": torch.zeros(7)}, ValueError, r"p1 must have shape \[8\], got \[7\]"),
        ({"p2": torch.zeros(1)}, ValueError, r"p2 must have shape \[8\], got \[1\]"),
        ({"p4": torch.zeros(8, dtype=torch.int8)}, TypeError, "p4 must have a floating-point dtype.*int8"),
        ({"p3": None}, ValueError, "p3, p4, shift_gate_weight and shift_gate_offset must all"),
        ({"scale_gate_weight": torch.zeros(2)}, ValueError, r"scale_gate_weight .*\[8\] .*or \[1\], got \[2\]"),
        ({"shift_gate_offset": torch.zeros(1)}, ValueError, r"shift_gate_offset must have shift_gate_weight's shape"),
        ({"scale_gate_weight": None}, TypeError, "scale_gate_weight must be a Tensor, got NoneType"),
        ({"residual": torch.zeros(2, 3, 7)}, ValueError, r"residual must have shape \[2, 3, 8\]"),
        ({"residual": torch.zeros(2, 3, 8).double()}, TypeError, "residual has dtype torch.float64"),
        ({"p1": torch.zeros(8, device="meta")}, ValueError, "p1 is on meta, x is on cpu"),
    ],
)
def test_bad_input_is_named(changed, error, message):
    inputs = arguments("layer", (2, 3, 8), torch.device("cpu"))
    with pytest.raises(error, match=message):
        td_layer_norm(**{**inputs, **changed})
