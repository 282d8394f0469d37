"""Operators that write into slots of a larger buffer, or in place: same values as the functional forms."""

from __future__ import annotations

import pytest
import torch

import dimr_kernels as dk
from dimr_kernels import functional as F
from dimr_kernels import inference
from dimr_kernels.ops import time_gate
from tests.support.parity import assert_parity, kernel_backends, skip_unless_it_runs

DTYPES = [torch.float32, torch.bfloat16]


def gates(D, shift=True, width=None):
    values = [torch.randn(D) for _ in range(4)] + [torch.randn(D if width is None else width) for _ in range(4)]
    return values if shift else [v if name in SCALE else None for name, v in zip(inference.GATES, values, strict=True)]


SCALE = ("p1", "p2", "scale_gate_weight", "scale_gate_offset")


def slot(buffer_like, slots=3, index=1, leading=0):
    """Return a view shaped like ``buffer_like [B, ..., D]`` into a larger buffer of NaN, and the buffer."""
    B, *inner, D = buffer_like.shape
    tokens = leading + torch.Size(inner).numel()
    buffer = buffer_like.new_full((B, tokens, slots * D), torch.nan)
    return buffer[:, leading:, index * D : (index + 1) * D].unflatten(1, inner), buffer


def assert_only_slot(buffer, slots=3, index=1, leading=0):
    D = buffer.shape[-1] // slots
    rest = torch.ones_like(buffer, dtype=torch.bool)
    rest[:, leading:, index * D : (index + 1) * D] = False
    assert buffer[rest].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rms", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_td_norm_writes_the_sum_into_its_slot(dtype, rms, shared, device):
    D, shift = 24, not rms

    def norm(x, residual, offset, t, **parameters):
        total, buffer = slot(x, leading=1)
        ordered = [parameters.get(name) for name in inference.GATES]
        y = inference.td_norm(x, t, ordered, 1e-5, rms, residual=residual, total=total, offset=offset)
        assert_only_slot(buffer, leading=1)
        assert y.is_contiguous()
        return y, total

    values = {name: v.to(device) for name, v in zip(inference.GATES, gates(D, shift), strict=True) if v is not None}
    x, residual = (torch.randn(2, 5, D).to(device, dtype) for _ in range(2))
    residual, _ = slot(residual)[0].copy_(residual), None
    t = torch.rand(1 if shared else 2, device=device)
    assert_parity(norm, {"x": x, "residual": residual, "offset": torch.randn(D, device=device), "t": t, **values})


@pytest.mark.parametrize("backend", ["eager", "triton", "cpp"])
def test_td_norm_is_the_functional_form(backend, device):
    """Check that the offset enters the norm and not the sum, with and without either."""
    skip_unless_it_runs(backend, device)
    x, residual, t, parameters = torch.randn(2, 3, 16), torch.randn(2, 3, 16), torch.rand(2), gates(16)
    x, residual, t, *parameters = (v.to(device) for v in (x, residual, t, *parameters))
    offset = torch.randn(16, device=device)
    with dk.use_backend(backend):
        y = inference.td_norm(x, t, parameters, 1e-5, False)
        torch.testing.assert_close(y, F.td_layer_norm(x, t, *parameters))
        total = torch.empty_like(x)
        y = inference.td_norm(x, t, parameters, 1e-5, False, residual, total, offset)
        torch.testing.assert_close(y, F.td_layer_norm(x + residual + offset, t, *parameters))
        torch.testing.assert_close(total, x + residual)


def test_td_norm_of_rows_too_wide_for_registers(device, monkeypatch):
    monkeypatch.setattr(time_gate, "WIDEST_IN_REGISTERS", 8)
    x, total, t, parameters = torch.randn(2, 3, 16), torch.empty(2, 3, 16), torch.rand(1), gates(16)
    x, total, t, *parameters = (v.to(device) for v in (x, total, t, *parameters))
    with dk.use_backend("triton"):
        y = inference.td_norm(x, t, parameters, 1e-5, False, residual=x, total=total, offset=parameters[0])
    torch.testing.assert_close(y, F.td_layer_norm(2 * x + parameters[0], t, *parameters))
    torch.testing.assert_close(total, 2 * x)


def test_named_gates_are_taken_in_their_own_order(device):
    x, t, parameters = torch.randn(2, 3, 16, device=device), torch.rand(1, device=device), gates(16)
    parameters = [v.to(device) for v in parameters]
    named = time_gate.GateParameters(**dict(zip(inference.GATES, parameters, strict=True)))
    expected = inference.td_norm(x, t, parameters, 1e-5, False)
    assert torch.equal(inference.td_norm(x, t, named, 1e-5, False), expected)


def test_cascades_are_normalized_by_a_kernel(device, monkeypatch):
    """Include rows too wide for registers, which are only read."""
    monkeypatch.setattr(inference, "td_norm_into_definition", None)
    monkeypatch.setattr(time_gate, "WIDEST_IN_REGISTERS", 8)
    x, t, parameters = torch.randn(2, 3, 16, device=device), torch.rand(2, device=device), gates(16)
    parameters = [v.to(device) for v in parameters]
    with dk.use_backend("triton"):
        y = inference.td_norm(slot(x, leading=1)[0].copy_(x), t, parameters, 1e-5, False)
    torch.testing.assert_close(y, F.td_layer_norm(x, t, *parameters))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(5, 6), (3, 1)])
def test_depthwise_conv_writes_into_its_slot(dtype, size, device):
    def conv(x, weight, bias):
        out, buffer = slot(x)
        inference.depthwise_conv2d(x, weight, bias, out)
        assert_only_slot(buffer)
        return out

    x = torch.randn(2, *size, 16).to(device, dtype)
    weight, bias = torch.randn(16, 1, 3, 3).to(device, dtype), torch.randn(16).to(device, dtype)
    assert_parity(conv, {"x": slot(x)[0].copy_(x), "weight": weight, "bias": bias})
    with dk.use_backend("eager"):
        torch.testing.assert_close(conv(x, weight, bias), F.depthwise_conv2d(x, weight, bias, residual=x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared", [True, False])
def test_shuffle_norm_add_in_place(dtype, shared, device):
    def lift(x, y, t, **parameters):
        out, buffer = slot(y)
        out.copy_(y)
        inference.pixel_shuffle_td_norm_add_(out, x, t, 2, list(parameters.values()))
        assert_only_slot(buffer)
        return out

    x, y = torch.randn(2, 3, 2, 32).to(device, dtype), torch.randn(2, 6, 4, 8).to(device, dtype)
    t = torch.rand(1 if shared else 2, device=device)
    parameters = {name: v.to(device) for name, v in zip(inference.GATES, gates(8), strict=True)}
    assert_parity(lift, {"x": x, "y": y, "t": t, **parameters})
    with dk.use_backend("eager"):
        wanted = F.pixel_shuffle_td_norm_add(x, y, t, 2, **parameters)
        torch.testing.assert_close(lift(x, y, t, **parameters), wanted)


def test_operators_are_well_registered(device):
    """Check that schemas name the arguments written to, and that fakes match the kernels."""
    x, t, parameters = torch.randn(2, 3, 16, device=device), torch.rand(2, device=device), gates(16)
    parameters = [v.to(device) for v in parameters]
    image, taps = torch.randn(1, 3, 4, 8, device=device), torch.randn(8, 1, 3, 3, device=device)
    lifted, ops = torch.randn(2, 1, 2, 64, device=device), torch.ops.dimr_kernels
    with torch.no_grad():
        for name, arguments in (
            ("td_norm_into{}", (x, x.clone(), torch.empty_like(x), parameters[0], t, *parameters, 1e-5, False)),
            ("depthwise_conv2d_into{}", (image, taps, None, torch.empty_like(image))),
            ("shuffle_norm_add{}_", (lifted, torch.zeros(2, 2, 4, 16, device=device), t, 2, *parameters, 1e-5)),
        ):
            for backend in kernel_backends(device):
                op = getattr(ops, name.format("" if backend == "triton" else "_cpp")).default
                torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


def test_empty_batch(device):
    parameters = [v.to(device) for v in gates(8)]
    for backend in ("eager", *kernel_backends(device)):
        with dk.use_backend(backend):
            x, t = torch.empty(0, 4, 8, device=device), torch.ones(1, device=device)
            assert inference.td_norm(x, t, parameters, 1e-5, False, x, torch.empty_like(x)).shape == x.shape
            image = torch.empty(0, 2, 2, 8, device=device)
            inference.depthwise_conv2d(image, torch.ones(8, 1, 3, 3, device=device), None, torch.empty_like(image))
            inference.pixel_shuffle_td_norm_add_(image, image.new_empty(0, 1, 1, 32), t, 2, parameters)


X, T, IMAGE = torch.zeros(2, 3, 8), torch.zeros(2), torch.zeros(2, 4, 4, 8)
TAPS, LIFTED, GATES = torch.zeros(8, 1, 3, 3), torch.zeros(2, 2, 2, 32), [torch.zeros(8)] * 8


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: inference.td_norm(X[0, 0], T, GATES, 1e-5, False), ValueError, r"x must have shape \[B, ..., D\]"),
        (lambda: inference.td_norm(X, T, GATES[:7], 1e-5, False), ValueError, "gates must be p1, .* got 7 values"),
        (lambda: inference.td_norm(X, torch.zeros(3), GATES, 1e-5, False), ValueError, r"t must have shape \[2\] or"),
        (lambda: inference.td_norm(X, T, GATES, 1e-5, False, X[:, 1:], X), ValueError, "residual must have shape"),
        (
            lambda: inference.td_norm(X, T, GATES, 1e-5, False, X.half(), X),
            TypeError,
            "residual has dtype torch.float16",
        ),
        (lambda: inference.td_norm(X, T, GATES, 1e-5, False, total=X), ValueError, "residual and total must both be"),
        (lambda: inference.td_norm(X, T, GATES, 1e-5, False, offset=T), ValueError, r"offset must have shape \[8\]"),
        (
            lambda: inference.td_norm(X, T, GATES, 1e-5, False, X, torch.zeros(2, 8, 3).mT),
            ValueError,
            "total must have dense rows at equal distances within a sample",
        ),
        (
            lambda: inference.td_norm(X, T, [torch.nn.Parameter(torch.zeros(8))] * 8, 1e-5, False),
            RuntimeError,
            "has no gradient",
        ),
        (lambda: inference.depthwise_conv2d(IMAGE, TAPS, None, IMAGE[:, :2]), ValueError, "out must have shape"),
        (
            lambda: inference.depthwise_conv2d(IMAGE, TAPS, None, torch.zeros(2, 5, 4, 8)[:, :4]),
            ValueError,
            "out must have dense rows at equal distances in the batch",
        ),
        (lambda: inference.depthwise_conv2d(X, TAPS, None, X), ValueError, "x must have 4 dimensions"),
        (
            lambda: inference.pixel_shuffle_td_norm_add_(IMAGE, LIFTED, T, 2, [*GATES[:2], None, None] * 2),
            ValueError,
            "gates must have a shift",
        ),
        (lambda: inference.pixel_shuffle_td_norm_add_(X, LIFTED, T, 2, GATES), ValueError, "y must have shape"),
        (
            lambda: inference.pixel_shuffle_td_norm_add_(IMAGE.half(), LIFTED, T, 2, GATES),
            TypeError,
            "x has dtype torch.float32, y has torch.float16",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
