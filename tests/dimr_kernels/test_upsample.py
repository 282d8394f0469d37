from __future__ import annotations

from functools import partial
from unittest import mock

import pytest
import torch

import dimr_kernels as dk
from dimr_kernels.functional import pixel_shuffle_td_norm_add
from dimr_kernels.ops import time_gate, upsample
from tests.support import parity
from tests.support.parity import results_of, strided
from tests.support.td_norms import COLLECTED_ULPS

GATES = ("scale_gate_weight", "scale_gate_offset", "shift_gate_weight", "shift_gate_offset")
# The gradients of t and the parameters are sums of hundreds of terms, larger than the sum, in an order of their own.
assert_parity = partial(parity.assert_parity, ulps=8)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def inputs(
    C=8,
    r=2,
    B=2,
    H=3,
    W=2,
    dtype=torch.float32,
    device="cpu",
    y_dtype=None,
    gate_width=None,
    times=None,
    parameters=None,
):
    """Make arguments that all require a gradient; x has a mean of 0.5, as activations do."""

    def random(*shape, dtype=parameters or torch.float32, offset=0.0):
        return (torch.randn(shape, device=device) + offset).to(dtype).requires_grad_()

    arguments = {
        "x": random(B, H, W, r * r * C, dtype=dtype, offset=0.5),
        "y": random(B, r * H, r * W, C, dtype=y_dtype or dtype),
        "t": random(B if times is None else times, dtype=torch.float32),
    }
    arguments |= {name: random(C) for name in ("p1", "p2", "p3", "p4")}
    return arguments | {name: random(gate_width or C) for name in GATES}


def call(r=2, eps=1e-5):
    return lambda **arguments: pixel_shuffle_td_norm_add(upscale_factor=r, eps=eps, **arguments)


def test_eager_is_the_definition():
    arguments = {name: value.double().detach() for name, value in inputs(C=3).items()}
    t, x = arguments["t"].view(-1, 1), arguments["x"]
    torch_order = x.unflatten(-1, (4, 3)).transpose(-1, -2).flatten(-2)  # (r, r, C) -> (C, r, r)
    shuffled = torch.nn.functional.pixel_shuffle(torch_order.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    centred = shuffled - shuffled.mean(-1, keepdim=True)
    z = centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt()
    s, u = (
        torch.sigmoid(arguments[f"{n}_gate_weight"] * t + arguments[f"{n}_gate_offset"]) for n in ("scale", "shift")
    )
    gamma = s * arguments["p1"] + (1 - s) * arguments["p2"]
    beta = u * arguments["p3"] + (1 - u) * arguments["p4"]
    expected = arguments["y"] + z * gamma[:, None, None] + beta[:, None, None]
    torch.testing.assert_close(call(eps=0.1)(**arguments), expected)


@pytest.mark.parametrize("C", [1, 7, 192, 480])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_eager(C, dtype, device):
    assert_parity(call(), inputs(C, H=1, W=2, dtype=dtype, device=device))


@pytest.mark.parametrize("r", [1, 2, 3, 4])
def test_factors(r, device):
    assert_parity(call(r), inputs(5, r, B=2, H=2, W=3, device=device), ulps=COLLECTED_ULPS)  # of t's gradient


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 7), (1, 5, 1), (0, 2, 2), (2, 0, 3)])
def test_shapes(shape, device):
    B, H, W = shape
    assert_parity(call(), inputs(12, B=B, H=H, W=W, device=device))


def test_empty_with_strides_of_its_own(device):
    """Test empty tensors with other strides, which torch calls contiguous all the same."""
    arguments = inputs(12, B=0, device=device)
    arguments["x"] = torch.zeros(48, 2, 3, 0, device=device).permute(3, 2, 1, 0).requires_grad_()
    assert_parity(call(), arguments)


def test_several_programs_in_a_sample(device):
    """Use several chunks of rows with several tiles each, the last ones not full."""
    pytest.importorskip("triton")
    from dimr_kernels.launch import RowConfig, Samples, override_config
    from dimr_kernels.ops.upsample_triton import backward_config

    small = RowConfig(elements=32, min_programs=8, max_tiles=16, num_warps=4)
    with override_config("shuffle_norm_add_fwd", small), override_config("shuffle_norm_add_bwd", small):
        tiling = backward_config(12).tiling(Samples(2, 36, 12))
        assert tiling.iterations > 1
        assert 36 % tiling.rows_per_program
        assert_parity(call(), inputs(12, H=3, W=3, device=device))


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("gate_width", [1, 12])
def test_times_and_gates(times, gate_width, device):
    assert_parity(call(), inputs(12, times=times, gate_width=gate_width, device=device))


@pytest.mark.parametrize("t", [0.25, torch.tensor(-1.0)])
def test_one_time_for_all(t, device):
    arguments = {name: value.detach() for name, value in inputs(12, device=device).items()}
    del arguments["t"]
    with dk.use_backend("triton"):
        shared = call()(t=t, **arguments)
        each = call()(t=torch.full((2,), float(t), device=device), **arguments)
    torch.testing.assert_close(shared, each)


@pytest.mark.parametrize(
    ("dtype", "y_dtype", "parameters"),
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float32, torch.bfloat16),
    ],
)
def test_mixed_dtypes(dtype, y_dtype, parameters, device):
    arguments = inputs(12, dtype=dtype, y_dtype=y_dtype, parameters=parameters, device=device)
    assert_parity(call(), arguments)
    found = results_of(call(), arguments, "triton")
    assert found["out.0"].dtype == torch.promote_types(dtype, y_dtype)
    assert all(found[f"grad.{name}"].dtype == value.dtype for name, value in arguments.items())


def channels_first(x):
    """Copy to a view of an NCHW tensor."""
    return x.detach().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1).requires_grad_()


def padded(x):
    """Copy to a view with gaps between rows of pixels, between pixels and between samples."""
    wide = torch.zeros(*(size + 1 for size in x.shape), device=x.device)
    view = wide[tuple(slice(0, size) for size in x.shape)]
    view.copy_(x.detach())
    return view.requires_grad_()


@pytest.mark.parametrize("view", [strided, channels_first, padded])
def test_strided_inputs(view, device):
    arguments = inputs(12, device=device)
    arguments |= {name: view(arguments[name]) for name in ("x", "y")}
    assert not arguments["x"].is_contiguous()
    assert_parity(call(), arguments)


def test_pixels_apart_are_not_copied(device):
    from dimr_kernels.launch import with_rows

    arguments = inputs(3, H=3, W=4, device=device)
    for name in ("x", "y"):
        B, H, W, C = arguments[name].shape
        arguments[name] = torch.randn(B, H, W, C + 4, device=device)[..., :C].requires_grad_()
        assert with_rows(arguments[name]).data_ptr() == arguments[name].data_ptr()
    assert_parity(call(), arguments)


def test_strided_gradient(device):
    arguments = inputs(12, device=device)

    def transposed(**arguments):
        return call()(**arguments).transpose(1, 3)

    assert_parity(transposed, arguments)
    assert_parity(lambda **arguments: call()(**arguments).sum(), arguments)


@pytest.mark.parametrize("needs", [("x",), ("y",), ("t",), ("p2", "shift_gate_offset"), ("x", "p3"), ()])
def test_gradients_of_some_inputs(needs, device):
    arguments = {name: x.detach().requires_grad_(name in needs) for name, x in inputs(12, device=device).items()}
    assert_parity(call(), arguments)


def test_large_mean(device):
    arguments = inputs(192, device=device)
    arguments["x"] = (arguments["x"].detach() + 1000).requires_grad_()
    assert_parity(call(), arguments)


def test_constant_rows_stay_finite(device):
    arguments = inputs(12, device=device)
    arguments["x"] = torch.full_like(arguments["x"], 3.0, requires_grad=True)
    assert_parity(call(), arguments)


def test_rows_too_wide_for_registers(device):
    arguments = {name: value.detach() for name, value in inputs(8, device=device).items()}
    with dk.use_backend("triton"):
        expected = call()(**arguments)
        with (
            mock.patch.object(time_gate, "WIDEST_IN_REGISTERS", 7),
            mock.patch.dict(
                upsample.shuffle_norm_add_ops, triton=mock.Mock(side_effect=AssertionError("not composed"))
            ),
        ):
            torch.testing.assert_close(call()(**arguments), expected)


def test_double_backward_says_so(device):
    arguments = inputs(8, device=device)
    with dk.use_backend("triton"):
        (g,) = torch.autograd.grad(call()(**arguments).square().sum(), arguments["x"], create_graph=True)
        with pytest.raises(RuntimeError, match=r"pixel_shuffle_td_norm_add.*use_backend\('eager'\)"):
            g.sum().backward()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": torch.zeros(2, 3, 2)}, ValueError, r"x must have 4 dimensions \[B, H, W, C\]"),
        ({"x": torch.zeros(2, 3, 2, 30)}, ValueError, "multiple of 4 channels for upscale_factor 2, got 30"),
        ({"y": torch.zeros(2, 6, 4, 7)}, ValueError, r"y must have shape \[2, 6, 4, 8\], got \[2, 6, 4, 7\]"),
        ({"y": torch.zeros(2, 6, 4, 8).double()}, TypeError, "y has dtype torch.float64"),
        ({"x": torch.zeros(2, 3, 2, 32).long()}, TypeError, "x must have a floating-point dtype"),
        ({"x": torch.zeros(2, 3, 2, 0), "y": torch.zeros(2, 6, 4, 0)}, ValueError, "at least one channel"),
        ({"t": torch.zeros(3)}, ValueError, r"t must have shape \[B\] = \[2\]"),
        ({"t": float("nan")}, ValueError, "t is NaN"),
        ({"p3": torch.zeros(9)}, ValueError, r"p3 must have shape \[8\], got \[9\]"),
        ({"shift_gate_offset": torch.zeros(2)}, ValueError, r"shift_gate_offset must have shape \[8\]"),
        ({"upscale_factor": 0}, ValueError, "upscale_factor must be an integer of at least 1, got 0"),
        ({"p3": None}, TypeError, "p3 must be a Tensor"),
    ],
)
def test_bad_input_is_named(changed, error, message):
    with pytest.raises(error, match=message):
        pixel_shuffle_td_norm_add(**{"upscale_factor": 2, **inputs(), **changed})


def module(device):
    upsample = dk.PixelShuffleUpsample(12, 8).to(device)
    with torch.no_grad():
        for parameter in upsample.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return upsample


def test_module(device):
    upsample = module(device)
    x, y, t = torch.randn(2, 3, 2, 12, device=device), torch.randn(2, 6, 4, 8, device=device), torch.rand(2).to(device)
    h = dk.functional.pixel_shuffle_add(upsample.proj(upsample.norm_in(x, t)), None, 2)
    torch.testing.assert_close(upsample(x, y, t), y + upsample.norm_out(h, t))
    with dk.time_conditioning(t):
        torch.testing.assert_close(upsample(x, y), upsample(x, y, t))
    with pytest.raises(ValueError, match="PixelShuffleUpsample: no timestep"):
        upsample(x, y)


def test_module_refuses_no_factor():
    with pytest.raises(ValueError, match="upscale_factor must be at least 1, got 0"):
        dk.PixelShuffleUpsample(4, 4, upscale_factor=0)


def test_module_fused(device):
    upsample = module(device)
    arguments = {"x": torch.randn(2, 3, 2, 12, device=device, requires_grad=True)}
    arguments["y"] = torch.randn(2, 6, 4, 8, device=device, requires_grad=True)
    t = torch.rand(2, device=device)
    eager = results_of(lambda x, y: upsample(x, y, t), arguments, "eager")
    for name, value in results_of(lambda x, y: upsample(x, y, t), arguments, "triton").items():
        torch.testing.assert_close(value, eager[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_module_calls_a_modified_norm(backend):
    """Hooks and a forward of its own run, as do those of offloaders, which bring parameters in at a call."""
    upsample, x, y, t = dk.PixelShuffleUpsample(6, 4), torch.randn(2, 2, 2, 6), torch.randn(2, 4, 4, 4), 0.5
    with dk.use_backend(backend), torch.no_grad():
        plain = upsample(x, y, t)
        hook = upsample.norm_out.register_forward_hook(lambda module, args, out: 3 * out)
        torch.testing.assert_close(upsample(x, y, t), y + 3 * (plain - y))
        hook.remove()
        upsample.norm_out.register_forward_pre_hook(lambda *_: None)
        torch.testing.assert_close(upsample(x, y, t), plain)

        class Tripled(dk.TDLayerNorm):
            def forward(self, *arguments):
                return 3 * super().forward(*arguments)

        upsample.norm_out = Tripled(4)
        torch.testing.assert_close(upsample(x, y, t), y + 3 * (plain - y))
