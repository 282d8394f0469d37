"""Linear layers by oneDNN: outputs and gradients against float64, and the calls that stay with torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dimr_kernels as dk
from dimr_kernels.functional import apply_linear, linear
from dimr_kernels.ops import linear as module
from tests.support.parity import largest_error

if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
    pytest.skip("this torch has no oneDNN", allow_module_level=True)

SHAPES = [((4, 64, 96), 200), ((300, 40), 17), ((2, 3, 5, 7, 33), 130), ((2, 9, 1200), 1100), ((3, 1500, 20), 40)]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the products that oneDNN computes, as if it were the faster library for every size."""
    found = []
    original = module._product

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found.append((*x.shape, len(weight)))
        return original(x, weight, bias)

    monkeypatch.setattr(module, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(module, "SMALLEST_PRODUCT", 1)
    monkeypatch.setattr(module, "_product", counted)
    return found


def draw(shape: tuple[int, ...], N: int, bias: bool = True) -> list[Tensor | None]:
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(N, shape[-1])
    return [x, weight, torch.randn(N) if bias else None]


def results(function, values, grad: Tensor, dtype=torch.float32) -> list[Tensor]:
    leaves = [None if v is None else v.detach().to(dtype).requires_grad_(v.requires_grad) for v in values]
    y = function(*leaves)
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, wanted, grad.to(dtype))]


def assert_as_exact_as_torch(values, grad: Tensor) -> None:
    truth = results(F.linear, values, grad, torch.float64)
    for i, (ours, plain, true) in enumerate(
        zip(results(linear, values, grad), results(F.linear, values, grad), truth, strict=True)
    ):
        assert (ours.shape, ours.dtype) == (plain.shape, plain.dtype), f"result {i}"
        place = torch.finfo(torch.float32).eps * true.abs().max()
        assert largest_error(ours, true) <= 2 * largest_error(plain, true) + 2 * place, f"result {i}"


@pytest.mark.parametrize(("shape", "N"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients(products, shape, N, bias):
    values = [None if v is None else v.requires_grad_() for v in draw(shape, N, bias)]
    assert_as_exact_as_torch(values, torch.randn(*shape[:-1], N))
    assert len(products) == 3 or max(*shape, N) > 1000  # of the output, of x and of the weight; or more, of parts


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_one_gradient_alone(products, wanted):
    values = draw((4, 64, 96), 50)
    values[wanted].requires_grad_()
    assert_as_exact_as_torch(values, torch.randn(4, 64, 50))
    assert len(products) == (2 if wanted < 2 else 1)


@pytest.mark.parametrize(("shape", "N"), [((1028, 96), 384), ((2000, 1100), 64)])
def test_long_sums(products, shape, N):
    """The errors of sums over the rows and over a wide input, of large products, by the rule of all operators."""
    values = [v.requires_grad_() for v in draw(shape, N)]
    assert_as_exact_as_torch(values, torch.randn(shape[0], N))


def strided(x: Tensor) -> Tensor:
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 5), float("nan"))
    wide[..., 2:-3] = x
    return wide[..., 2:-3]


def scattered(x: Tensor) -> Tensor:
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))
    wide[..., ::2] = x
    return wide[..., ::2]


@pytest.mark.parametrize("layout", [strided, scattered, lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)])
def test_strides(products, layout):
    x, weight, bias = draw((4, 64, 96), 50)
    y = linear(layout(x), weight, bias)
    assert torch.equal(y, linear(x, weight, bias))
    weight.requires_grad_()
    grad = torch.randn(4, 64, 50)
    (truth,) = torch.autograd.grad(F.linear(x, weight, bias), weight, grad)
    (found,) = torch.autograd.grad(linear(layout(x), weight, bias), weight, layout(grad))
    assert largest_error(found, truth) <= 1e-6 * truth.abs().max()


def test_an_expanded_gradient(products):
    values = [v.requires_grad_() for v in draw((4, 64, 96), 50)]
    assert_as_exact_as_torch(values, torch.ones(()).expand(4, 64, 50))


def test_second_derivatives(products):
    x, weight, bias = (v.requires_grad_() for v in draw((64, 20), 30))

    def second(function) -> tuple[Tensor, ...]:
        dx, dweight = torch.autograd.grad(function(x, weight, bias).square().sum(), (x, weight), create_graph=True)
        return torch.autograd.grad(dx.square().sum() + dweight.square().sum(), (x, weight, bias))

    for ours, plain in zip(second(linear), second(F.linear), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4 * plain.abs().max().item())


def test_the_same_bits_twice(products):
    values = [v.requires_grad_() for v in draw((4, 300, 96), 50)]
    grad = torch.randn(4, 300, 50)
    for first, again in zip(results(linear, values, grad), results(linear, values, grad), strict=True):
        assert torch.equal(first, again)


def test_addition_in_place(products):
    x, weight, _ = draw((64, 20), 30)
    wide = torch.randn(64, 50)
    wanted = wide.clone()
    wanted[:, 10:40] += x @ weight.t()
    dk.inference.linear_add_(wide[:, 10:40], x, weight)
    torch.testing.assert_close(wide, wanted)
    assert products == [(64, 20, 30)]
    with dk.use_backend("eager"):
        dk.inference.linear_add_(wide[:, 10:40], x, weight)
    assert len(products) == 1


def test_calls_that_stay_with_torch(products):
    x, weight, bias = draw((64, 20), 30)
    with dk.use_backend("eager"):
        linear(x, weight, bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        linear(x, weight, bias)
    for dtype in (torch.bfloat16, torch.float64):
        linear(x.to(dtype), weight.to(dtype), bias.to(dtype))
    linear(x[0], weight, bias)
    linear(x, weight[:, ::2].repeat_interleave(2, 1).t().contiguous().t(), bias)
    linear(x.to("meta"), weight.to("meta"), bias.to("meta"))
    torch.func.vmap(lambda row: linear(row, weight, bias))(x)
    torch.func.grad(lambda weight: linear(x, weight, bias).sum())(weight)
    torch.func.jvp(lambda x: linear(x, weight, bias), (x,), (x,))
    assert products == []
    linear(x, weight, bias)
    assert len(products) == 1


def test_compiled_code_stays_with_torch():
    x, weight, bias = draw((512, 128), 128)
    assert x.numel() * len(weight) > module.SMALLEST_PRODUCT
    targets = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        targets.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch.compile(lambda *v: linear(*v), fullgraph=True, backend=backend)(x, weight, bias)
    assert targets == [torch._C._nn.linear]


def test_small_products_stay_with_torch(products, monkeypatch):
    monkeypatch.setattr(module, "SMALLEST_PRODUCT", 64 * 20 * 30 + 1)
    x, weight, bias = draw((64, 20), 30)
    linear(x, weight, bias)
    assert products == []
    linear(torch.cat([x, x]), weight, bias)
    assert products == [(128, 20, 30)]


def test_errors_are_torchs_own(products):
    x, weight, bias = draw((64, 20), 30)
    for wrong in ((x[:, 1:], weight, bias), (x, weight, bias[1:]), (x, weight[0, 0], bias)):
        with pytest.raises(RuntimeError) as plain:
            F.linear(*wrong)
        with pytest.raises(RuntimeError) as ours:
            linear(*wrong)
        assert str(ours.value) == str(plain.value)


@pytest.mark.parametrize(
    ("vendor", "capability", "wanted"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX2", False),
        ("GenuineIntel", "AVX512", False),
        (None, "AVX512", False),
        (None, "DEFAULT", False),
    ],
)
def test_the_choice_of_the_library(monkeypatch, vendor, capability, wanted):
    monkeypatch.setattr(module, "_cpu_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert module.onednn_is_faster.__wrapped__() is wanted


def test_a_layer_that_is_no_plain_linear_is_called(products):
    layer, x = nn.Linear(20, 30), torch.randn(64, 20)
    torch.testing.assert_close(apply_linear(layer, x), layer(x))
    assert len(products) == 1
    called = []
    layer.register_forward_hook(lambda *_: called.append(True))
    apply_linear(layer, x)
    assert called == [True]
    assert torch.equal(apply_linear(nn.Identity(), x), x)
    assert len(products) == 1


def test_modules_take_it(products):
    x = torch.randn(2, 64, 32)
    dk.GEGLUMLP(32, 64)(torch.randn(2, 2048, 32))
    assert len(products) == 2
    dk.SelfAttention(32, num_heads=2)(x)
    assert len(products) == 4
    dk.PixelShuffleUpsample(32, 8)(x.view(2, 8, 8, 32), torch.randn(2, 16, 16, 8), 0.5)
    assert len(products) == 5
