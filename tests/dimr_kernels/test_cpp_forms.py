"""The C++ forms for CPUs, called as operators: against the definitions in float64, with every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dimr_kernels.dispatch import extension_status
from dimr_kernels.ops.depthwise_conv import depthwise_conv2d_definition as depthwise_conv2d
from dimr_kernels.ops.geglu import geglu_packed_definition as geglu_packed
from dimr_kernels.ops.geglu import geglu_pair_definition as geglu_pair
from dimr_kernels.ops.td_group_norm import td_group_norm_definition
from dimr_kernels.ops.td_norm import td_norm_definition
from dimr_kernels.ops.time_gate import GateParameters
from dimr_kernels.ops.upsample import shuffle_norm_add_definition
from tests.support.parity import largest_error

if not extension_status().loaded:
    pytest.skip(f"the extension is missing: {extension_status().reason}", allow_module_level=True)

from dimr_kernels import _C

ops = torch.ops.dimr_kernels_cpp
F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
SETS = list(_C.cpu_capabilities())
VARIABLE = "DIMR_KERNELS_CPU_CAPABILITY"
Values = list[Tensor | None]


def td_norm(x: Tensor, residual: Tensor | None, t: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The definition with the operator's arguments, as the next two."""
    *gates, eps, rms = rest
    return td_norm_definition(x, residual, t, GateParameters.from_schema(gates), eps, rms)


def td_group_norm(x: Tensor, t: Tensor, num_groups: int, *rest: Any) -> Tensor:
    *gates, eps = rest
    return td_group_norm_definition(x, t, num_groups, GateParameters.from_schema(gates), eps)


def shuffle_norm_add(x: Tensor, y: Tensor, t: Tensor, upscale_factor: int, *rest: Any) -> Tensor:
    *gates, eps = rest
    return shuffle_norm_add_definition(x, y, t, upscale_factor, GateParameters.from_schema(gates), eps)


@pytest.fixture(params=SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _C.cpu_capability()
    _C.set_cpu_capability(request.param)
    yield request.param
    _C.set_cpu_capability(before)


@pytest.fixture
def every_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def by_autograd(function: Callable[..., Any], values: Values, grads: list[Tensor], dtype: torch.dtype | None) -> Values:
    """The outputs of ``function(*values)``, and the gradients of all values, computed in ``dtype`` if given."""
    leaves = [None if v is None else v.detach().to(dtype or v.dtype).requires_grad_() for v in values]
    outputs = function(*leaves)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    wanted = [leaf for leaf in leaves if leaf is not None]
    found = torch.autograd.grad(outputs, wanted, [g.to(out.dtype) for g, out in zip(grads, outputs, strict=True)])
    return [*(out.detach() for out in outputs), *found]


def errors(found: Values, function: Callable[..., Any], values: Values, grads: list[Tensor]) -> Tensor:
    """Return for each result the largest error, plain PyTorch's in the same dtypes, and a unit in the last place.

    The table is ``[results, 3]``. The unit is at least float32's, in which both compute where a parameter is float64.
    """
    truth = by_autograd(function, values, grads, F64)
    eager = by_autograd(function, values, grads, None)
    assert len(found) == len(truth)
    rows = []
    for i, (got, true, plain) in enumerate(zip(found, truth, eager, strict=True)):
        assert (got.shape, got.dtype) == (true.shape, plain.dtype), f"result {i}"
        assert torch.isfinite(got).all(), f"result {i} is not finite"
        place = max(torch.finfo(got.dtype).eps, torch.finfo(F32).eps) * true.abs().max().item()
        rows.append([largest_error(got, true), largest_error(plain, true), place])
    return torch.tensor(rows, dtype=F64)


def assert_small(found: Tensor) -> None:
    """Bound the error as ``tests.support.parity``: twice plain PyTorch's plus two units in the last place."""
    for i, (error, of_eager, place) in enumerate(found.tolist()):
        assert error <= 2 * of_eager + 2 * place, f"result {i}: {error:.3e}, eager {of_eager:.3e}, place {place:.3e}"


def assert_close(found: Values, function: Callable[..., Any], values: Values, grads: list[Tensor]) -> None:
    assert_small(errors(found, function, values, grads))


def strided(x: Tensor) -> Tensor:
    """The same numbers with whole rows and gaps between them."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 5), float("nan"), dtype=x.dtype)
    view = wide[..., 2:-3]
    view.copy_(x)
    return view


def scattered(x: Tensor) -> Tensor:
    """The same numbers with a last stride of 2."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"), dtype=x.dtype)
    view = wide[..., ::2]
    view.copy_(x)
    return view


# ---- Depthwise convolution ----


def depthwise_cpp(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, grad: Tensor) -> Values:
    """``residual`` x itself: added to the taps."""
    K, itself = weight.shape[3], residual is x
    y = ops.depthwise_conv2d_cpp(x, weight, bias, None if itself else residual, itself)
    dtypes = weight.dtype, F32 if bias is None else bias.dtype
    dx, dweight, dbias = ops.depthwise_conv2d_cpp_backward(grad, x, weight, K, itself, *dtypes)
    found = [y, dx, dweight, None if bias is None else dbias, None if itself or residual is None else grad]
    return [v for v in found if v is not None]


def check_depthwise(B, H, W, C, K, dtype=F32, parameters=F32, residual="none", bias=True, layout=lambda x: x) -> None:
    torch.manual_seed(0)
    x, grad = layout(torch.randn(B, H, W, C).to(dtype)), layout(torch.randn(B, H, W, C).to(dtype))
    weight = torch.randn(C, 1, K, K).div(K).to(parameters)
    offset = torch.randn(C).to(parameters) if bias else None
    other = {"none": None, "itself": x, "other": layout(torch.randn(B, H, W, C).to(dtype))}[residual]
    found = depthwise_cpp(x, weight, offset, other, grad)
    if residual == "itself":
        assert_close(found, lambda x, w, b: depthwise_conv2d(x, w, b, x), [x, weight, offset], [grad])
    else:
        assert_close(found, depthwise_conv2d, [x, weight, offset, other], [grad])


@pytest.mark.parametrize("K", [3, 5, 7])
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("residual", ["none", "itself", "other"])
def test_depthwise(instruction_set, K, dtype, residual):
    check_depthwise(2, 5, 19, 21, K, dtype, F32 if residual == "none" else dtype, residual)


@pytest.mark.parametrize(
    ("B", "H", "W", "C", "K"),
    [(1, 1, 1, 1, 7), (1, 2, 3, 5, 7), (3, 7, 8, 16, 5), (1, 40, 9, 3, 7), (2, 3, 33, 40, 3), (1, 9, 16, 17, 7)],
)
def test_depthwise_sizes(instruction_set, B, H, W, C, K):
    check_depthwise(B, H, W, C, K, bias=False)


@pytest.mark.parametrize("layout", [strided, scattered])
def test_depthwise_strides(instruction_set, layout):
    check_depthwise(2, 4, 6, 20, 5, residual="other", layout=layout)


def test_depthwise_of_nothing():
    x, weight, bias = torch.empty(0, 4, 4, 8), torch.randn(8, 1, 3, 3), torch.randn(8)
    y, dx, dweight, dbias = depthwise_cpp(x, weight, bias, None, x)
    assert y.shape == dx.shape == x.shape
    assert not dweight.any()
    assert not dbias.any()


def test_depthwise_into_a_part():
    x, weight, bias = torch.randn(2, 5, 6, 20), torch.randn(20, 1, 7, 7), torch.randn(20)
    whole = torch.zeros(2, 5, 6, 50)
    ops.depthwise_conv2d_cpp_(x, weight, bias, True, whole[..., 10:30])
    assert torch.equal(whole[..., 10:30], ops.depthwise_conv2d_cpp(x, weight, bias, None, True))
    assert not whole[..., :10].any()
    assert not whole[..., 30:].any()


# ---- Time-dependent norms ----


def draw_gates(D: int, shift: bool, scalar: bool, dtype: torch.dtype) -> Values:
    """p1, p2, p3, p4, the scale's gate and the shift's."""
    width = 1 if scalar else D
    values: Values = [torch.randn(n).to(dtype) for n in (D, D, D, D, width, width, width, width)]
    if not shift:
        values[2] = values[3] = values[6] = values[7] = None
    return values


def check_norm(
    shape, rms=False, dtype=F32, parameters=F32, residual=None, shared=False, shift=True, scalar=False,
    layout=lambda x: x, mean=0.0, draws=1,
) -> None:  # fmt: skip
    """``residual``: its dtype. The worst of so many draws: of few numbers, all may be eager's lucky ones."""
    options = (rms, dtype, parameters, residual, shared, shift, scalar, layout, mean)
    assert_small(torch.stack([norm_errors(seed, shape, *options) for seed in range(draws)]).amax(0))


def norm_errors(seed, shape, rms, dtype, parameters, residual, shared, shift, scalar, layout, mean) -> Tensor:
    torch.manual_seed(seed)
    eps = 1e-8 if rms else 1e-5
    x = layout((torch.randn(shape) + mean).to(dtype))
    other = None if residual is None else layout(torch.randn(shape).to(residual))
    t = (torch.rand(1 if shared else shape[0]) * 2 - 1).to(parameters)
    gates = draw_gates(shape[-1], shift, scalar, parameters)
    values = [x, other, t, *gates]
    needs = [True, True, *(v is not None for v in gates)]
    y, *rest, stats = ops.td_norm_cpp(x, other, t, *gates, eps, rms, True)
    total = x if other is None else rest[0]
    dy = layout(torch.randn(shape).to(dtype))
    dtotal = None if other is None else layout(torch.randn(shape).to(total.dtype))
    dinput, *others = ops.td_norm_cpp_backward(dy, dtotal, total, stats, t, *gates, eps, rms, needs)
    found = [y, *rest, dinput.to(dtype)]
    if other is not None:
        found.append(dinput.to(residual))

    def function(*v: Any) -> Any:
        return td_norm(*v, eps, rms)[: 1 if other is None else 2]

    return errors([*found, *others], function, values, [dy] if other is None else [dy, dtotal])


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("residual", [None, F32, BF16, F16])
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_norm(instruction_set, rms, residual, dtype):
    check_norm((3, 11, 37), rms, dtype, residual=residual, shift=not rms)


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("D", [1, 2, 15, 16, 17, 100, 960, 4097])
def test_norm_widths(instruction_set, rms, D):
    check_norm((8, 5, D), rms, mean=3.0, draws=4)


@pytest.mark.parametrize("shape", [(2, 2, 38400), (1, 3, 66816)])
def test_norm_of_wide_rows(instruction_set, shape):
    check_norm(shape, dtype=BF16, residual=BF16)
    check_norm(shape, rms=True)


@pytest.mark.parametrize("parameters", [BF16, F16, F64])
def test_norm_parameters(instruction_set, parameters):
    check_norm((2, 9, 40), parameters=parameters)


@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_norm_gates(instruction_set, scalar, shared, shift):
    check_norm((4, 70, 24), shared=shared, shift=shift, scalar=scalar)


@pytest.mark.parametrize("layout", [strided, scattered, lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)])
def test_norm_strides(instruction_set, layout):
    check_norm((3, 4, 20), residual=F32, layout=layout)


@pytest.mark.parametrize("shape", [(300, 8), (5, 2, 3, 4, 8), (1, 700, 16)])
def test_norm_shapes(instruction_set, shape):
    check_norm(shape)


@pytest.mark.parametrize("rms", [False, True])
def test_norm_of_a_large_mean(instruction_set, rms):
    check_norm((8, 6, 500), rms, mean=1000.0)


def test_norm_of_zero_rows(instruction_set):
    x, one = torch.zeros(2, 3, 8), torch.ones(8)
    gates = [one, one, None, None, one, one, None, None]
    y, stats = ops.td_norm_cpp(x, None, torch.zeros(2), *gates, 1e-8, True, True)
    needs = [True, *[False] * 9]
    (dx,) = ops.td_norm_cpp_backward(torch.ones_like(x), None, x, stats, torch.zeros(2), *gates, 1e-8, True, needs)
    assert not y.any()
    assert torch.equal(dx, torch.full_like(dx, 1 / torch.tensor(1e-8).item()))  # dy / eps, and no projection


def test_norm_of_nothing():
    x, gates = torch.empty(0, 3, 8), draw_gates(8, True, False, F32)
    y, stats = ops.td_norm_cpp(x, None, torch.empty(0), *gates, 1e-5, False, True)
    found = ops.td_norm_cpp_backward(x, None, x, stats, torch.empty(0), *gates, 1e-5, False, [True] * 10)
    assert y.shape == found[0].shape == x.shape
    assert found[1].shape == (0,)
    assert not any(v.any() for v in found)


def test_norm_gradients_that_are_wanted():
    x, t, gates = torch.randn(2, 3, 8), torch.rand(2), draw_gates(8, True, False, F32)
    y, stats = ops.td_norm_cpp(x, None, t, *gates, 1e-5, False, True)
    every = ops.td_norm_cpp_backward(y, None, x, stats, t, *gates, 1e-5, False, [True] * 10)
    for i in range(10):
        needs = [k == i for k in range(10)]
        (one,) = ops.td_norm_cpp_backward(y, None, x, stats, t, *gates, 1e-5, False, needs)
        assert torch.equal(one, every[i])


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_norm_into(instruction_set, dtype):
    x, residual = torch.randn(2, 5, 40).to(dtype), torch.randn(2, 5, 40).to(dtype)
    t, offset, gates = torch.rand(2), torch.randn(40), draw_gates(40, True, False, F32)
    whole = torch.zeros(2, 5, 60, dtype=dtype)
    y = ops.td_norm_cpp_into(x, residual, whole[..., 20:], offset, t, *gates, 1e-5, False)
    assert torch.equal(whole[..., 20:], x + residual)
    summed = whole[..., 20:].double() + offset
    truth = td_norm(summed, None, t.double(), *(v.double() for v in gates), 1e-5, False)[0]  # type: ignore[union-attr]
    assert largest_error(y, truth) <= 2 * torch.finfo(dtype).eps * truth.abs().max()
    assert not whole[..., :20].any()


# ---- The cascade's way up ----


def check_shuffle_norm_add(B, H, W, C, r, dtype=F32, other=F32, shared=False, layout=lambda x: x) -> None:
    torch.manual_seed(0)
    x, y = layout(torch.randn(B, H, W, r * r * C).to(dtype)), layout(torch.randn(B, r * H, r * W, C).to(other))
    t, gates = torch.rand(1 if shared else B), draw_gates(C, True, False, F32)
    out, stats = ops.shuffle_norm_add_cpp(x, y, t, r, *gates, 1e-5, True)
    grad = layout(torch.randn(out.shape).to(out.dtype))
    found = ops.shuffle_norm_add_cpp_backward(grad, x, stats, t, r, *gates, [True] * 10)
    results = [out, found[0], grad.to(other), *found[1:]]
    assert_close(results, lambda x, y, t, *g: shuffle_norm_add(x, y, t, r, *g, 1e-5), [x, y, t, *gates], [grad])
    if other == out.dtype:
        target = y.clone()
        ops.shuffle_norm_add_cpp_(x, target, t, r, *gates, 1e-5)
        assert torch.equal(target, out)


@pytest.mark.parametrize("r", [1, 2, 3])
@pytest.mark.parametrize(("dtype", "other"), [(F32, F32), (BF16, BF16), (BF16, F32), (F32, F16), (BF16, F16)])
def test_shuffle_norm_add(instruction_set, r, dtype, other):
    check_shuffle_norm_add(2, 3, 5, 19, r, dtype, other, shared=r == 1)


def test_shuffle_norm_add_strides(instruction_set):
    check_shuffle_norm_add(2, 3, 4, 24, 2, layout=strided)
    check_shuffle_norm_add(2, 3, 4, 24, 2, layout=scattered)


def test_shuffle_norm_add_of_nothing():
    x, y, gates = torch.empty(0, 2, 2, 32), torch.empty(0, 4, 4, 8), draw_gates(8, True, False, F32)
    out, stats = ops.shuffle_norm_add_cpp(x, y, torch.ones(1), 2, *gates, 1e-5, True)
    found = ops.shuffle_norm_add_cpp_backward(out, x, stats, torch.ones(1), 2, *gates, [True] * 10)
    assert out.shape == y.shape
    assert not any(v.any() for v in found)


# ---- Group norm ----


def check_group_norm(shape, groups, dtype=F32, parameters=F32, shared=False, shift=True, mean=0.0, layout=lambda x: x):
    torch.manual_seed(0)
    x, grad = layout((torch.randn(shape) + mean).to(dtype)), layout(torch.randn(shape).to(dtype))
    t, gates = torch.rand(1 if shared else shape[0]).to(parameters), draw_gates(shape[-1], shift, False, parameters)
    y, stats = ops.td_group_norm_cpp(x, t, groups, *gates, 1e-5)
    needs = [True, True, *(v is not None for v in gates)]
    found = ops.td_group_norm_cpp_backward(grad, x, stats, t, groups, *gates, needs)
    assert_close([y, *found], lambda x, t, *g: td_group_norm(x, t, groups, *g, 1e-5), [x, t, *gates], [grad])


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("groups", [1, 3, 21])
def test_group_norm(instruction_set, dtype, groups):
    check_group_norm((2, 5, 7, 21), groups, dtype, shift=groups != 3, shared=groups == 1)


@pytest.mark.parametrize("shape", [(1, 1, 4), (3, 8), (8, 20, 20, 32), (4, 9, 1024)])
def test_group_norm_shapes(instruction_set, shape):
    check_group_norm(shape, 2, mean=5.0)


def test_group_norm_strides_and_parameters(instruction_set):
    check_group_norm((2, 3, 4, 16), 4, layout=strided, parameters=BF16)
    check_group_norm((2, 3, 4, 16), 4, layout=scattered, parameters=F64)


def test_group_norm_of_nothing():
    x, gates = torch.empty(0, 4, 8), draw_gates(8, True, False, F32)
    y, stats = ops.td_group_norm_cpp(x, torch.ones(1), 2, *gates, 1e-5)
    found = ops.td_group_norm_cpp_backward(y, x, stats, torch.ones(1), 2, *gates, [True] * 10)
    assert y.shape == x.shape
    assert not any(v.any() for v in found)


# ---- GeGLU ----


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 38), (2, 130), (2, 2 * 4100)])
def test_geglu_packed(instruction_set, approximate, dtype, shape):
    torch.manual_seed(0)
    h, grad = (torch.randn(shape) * 3).to(dtype), torch.randn(*shape[:-1], shape[-1] // 2).to(dtype)
    for first in (True, False):
        for x in (h, strided(h), scattered(h)):
            found = [ops.geglu_packed_cpp(x, approximate, first)]
            found.append(ops.geglu_packed_cpp_backward(grad, x, approximate, first))
            assert_close(found, lambda h: geglu_packed(h, approximate, first), [h], [grad])  # noqa: B023


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_geglu_pair(instruction_set, approximate, dtype):
    torch.manual_seed(0)
    gate, value, grad = (torch.randn(4, 7, 33).mul(3).to(dtype) for _ in range(3))
    for layout in (lambda x: x, strided, scattered):
        a, b, g = layout(gate), layout(value), layout(grad)
        found = [ops.geglu_pair_cpp(a, b, approximate), *ops.geglu_pair_cpp_backward(g, a, b, approximate)]
        assert_close(found, lambda gate, value: geglu_pair(gate, value, approximate), [gate, value], [grad])


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_everywhere(instruction_set, approximate):
    """The functions' own errors, over all that they do not saturate at: as csrc/vec.h states them."""
    a = torch.linspace(-14, 14, 1_000_001)
    a, one = torch.cat([a, a / 1000]), torch.ones(2_000_002)
    leaf = a.double().requires_grad_()
    truth = torch.nn.functional.gelu(leaf, approximate=approximate)
    (slope,) = torch.autograd.grad(truth.sum(), leaf)
    dgate, dvalue = ops.geglu_pair_cpp_backward(one, a, one, approximate)
    half_place = torch.finfo(F32).eps / 2 * truth.detach().abs()
    for value in (ops.geglu_pair_cpp(a, one, approximate), dvalue):
        assert ((value - truth.detach()).abs() <= 2 * half_place + 1.2e-7).all()
    assert largest_error(dgate, slope) <= 3e-7


def test_geglu_of_what_is_not_finite(instruction_set):
    nan, inf = float("nan"), float("inf")
    gate = torch.tensor([nan, inf, -inf, -0.0, 1e30, -1e30])
    for approximate in ("none", "tanh"):
        y = ops.geglu_pair_cpp(gate, torch.ones(6), approximate)
        assert y[0].isnan()
        assert y[1] == inf
        assert y[4] == gate[4]
        assert y[[2, 3, 5]].abs().max() < 1e-30


def test_geglu_of_nothing():
    for shape in ((0, 8), (3, 0)):
        h = torch.empty(shape)
        y = ops.geglu_packed_cpp(h, "none", True)
        assert ops.geglu_packed_cpp_backward(y, h, "none", True).shape == shape


# ---- All of them ----


def test_every_16_bit_number_is_read_and_rounded_as_torch_does(instruction_set):
    """1 * gelu(x) of large x is x: what is read is written again; and sums are rounded to the nearest even."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    gates = [torch.ones(2**16), torch.ones(2**16), None, None, torch.ones(1), torch.ones(1), None, None]
    for dtype in (BF16, F16):
        x = every.view(dtype)[None]
        for other in (torch.zeros_like(x), x.flip(1), x * 2**-9, x.roll(1, 1)):
            _, total = ops.td_norm_cpp(x, other, torch.ones(1), *gates, 1e-5, False, False)
            wanted = (x.float() + other.float()).to(dtype)
            same = (total == wanted) | (total.isnan() & wanted.isnan())
            assert same.all(), (total[~same][:5], wanted[~same][:5])


def all_results(dtype: torch.dtype) -> dict[str, Tensor]:
    """Every operator once, forward and backward, on sizes that several threads share."""
    torch.manual_seed(0)
    B, H, C = 3, 20, 48
    x, grad, t = torch.randn(B, H, H, C).to(dtype), torch.randn(B, H, H, C).to(dtype), torch.rand(B)
    every = [True] * 10
    found: dict[str, Any] = {}
    for K in (3, 5, 7):
        weight = torch.randn(C, 1, K, K)
        found[f"depthwise {K}"] = ops.depthwise_conv2d_cpp(x, weight, t.new_ones(C), grad, False)
        found[f"depthwise {K} backward"] = ops.depthwise_conv2d_cpp_backward(grad, x, weight, K, True, F32, F32)
    for rms, scalar in ((False, False), (True, True)):
        gates = draw_gates(C, True, scalar, F32)
        y, total, stats = ops.td_norm_cpp(x, grad, t, *gates, 1e-5, rms, True)
        found[f"norm {rms}"] = [y, total, stats]
        found[f"norm {rms} backward"] = ops.td_norm_cpp_backward(grad, x, total, stats, t, *gates, 1e-5, rms, every)
    y, stats = ops.td_group_norm_cpp(x, t, 4, *gates, 1e-5)
    found["group norm"] = [y, stats]
    found["group norm backward"] = ops.td_group_norm_cpp_backward(grad, x, stats, t, 4, *gates, every)
    low = x.reshape(B, H // 2, H // 2, 4 * C)
    y, stats = ops.shuffle_norm_add_cpp(low, grad, t, 2, *gates, 1e-5, True)
    found["shuffle"] = [y, stats]
    found["shuffle backward"] = ops.shuffle_norm_add_cpp_backward(grad, low, stats, t, 2, *gates, every)
    h = torch.cat([x, grad], 3)
    for approximate in ("none", "tanh"):
        found[f"geglu {approximate}"] = ops.geglu_packed_cpp(h, approximate, True)
        found[f"geglu {approximate} backward"] = ops.geglu_packed_cpp_backward(grad, h, approximate, True)
        found[f"geglu pair {approximate}"] = ops.geglu_pair_cpp(x, grad, approximate)
        found[f"geglu pair {approximate} backward"] = ops.geglu_pair_cpp_backward(grad, x, grad, approximate)
    single = {name: [value] if isinstance(value, Tensor) else value for name, value in found.items()}
    return {f"{name}, result {i}": value for name, values in single.items() for i, value in enumerate(values)}


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_the_same_bits_with_any_number_of_threads(instruction_set, every_thread, dtype):
    torch.set_num_threads(1)
    first = all_results(dtype)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for name, value in all_results(dtype).items():
            assert torch.equal(value, first[name]), f"{name}, {threads} threads"


def test_nan_stays_nan(instruction_set):
    x, gates, t = torch.randn(2, 3, 4, 16), draw_gates(16, True, False, F32), torch.rand(2)
    x[1, 2, 3, 5] = float("nan")
    assert ops.td_norm_cpp(x, None, t, *gates, 1e-5, False, False)[0][1, 2, 3].isnan().all()
    assert ops.td_norm_cpp(x, None, t, *gates, 1e-5, True, False)[0][1, 2, 3].isnan().all()
    assert ops.td_group_norm_cpp(x, t, 2, *gates, 1e-5)[0][1, ..., :8].isnan().all()
    y = ops.depthwise_conv2d_cpp(x, torch.ones(16, 1, 3, 3), None, None, False)
    assert y[1, 1:, 2:, 5].isnan().all()
    assert not y[0].isnan().any()
    assert ops.geglu_packed_cpp(x, "none", True)[1, 2, 3, 5].isnan()


@pytest.mark.parametrize("name", [*SETS, "sse9"])
def test_the_environment_names_the_instruction_set(name):
    code = "import torch, dimr_kernels; from dimr_kernels import _C; print(_C.cpu_capability())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {VARIABLE: name}, check=False
    )
    if name in SETS:
        assert done.stdout.strip() == name
    else:
        assert done.returncode != 0
        assert f"{VARIABLE} must be baseline, avx2 or avx512, got 'sse9'" in done.stderr
