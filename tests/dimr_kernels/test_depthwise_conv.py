from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dimr_kernels as dk
from dimr_kernels.functional import depthwise_conv2d
from tests.support.parity import assert_parity, far_apart, results_of, strided

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16


def make_inputs(
    shape: tuple[int, ...], K: int, device: torch.device, dtype: torch.dtype = FLOAT, weight_dtype: torch.dtype = FLOAT
) -> dict[str, Tensor]:
    C = shape[-1]
    shapes = {"x": shape, "weight": (C, 1, K, K), "bias": (C,), "residual": shape}
    dtypes = {"x": dtype, "weight": weight_dtype, "bias": weight_dtype, "residual": dtype}
    return {n: torch.randn(s, device=device).to(dtypes[n]).requires_grad_() for n, s in shapes.items()}


def add_input(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return depthwise_conv2d(x, weight, bias, residual=x)


@pytest.mark.parametrize("K", [3, 5, 7])
def test_matches_eager(K, device):
    assert_parity(depthwise_conv2d, make_inputs((1, 5, 6, 9), K, device))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 2, 3, 7), (1, 6, 2, 1), (0, 4, 5, 6)], ids=str)
def test_images_smaller_than_the_kernel(shape, device):
    assert_parity(depthwise_conv2d, make_inputs(shape, 7, device))


@pytest.mark.parametrize(
    ("shape", "K"),
    [
        ((1, 2, 18, 33), 3),
        ((1, 1, 1, 480), 3),
        pytest.param((1, 9, 8, 40), 7, marks=pytest.mark.slow),
        pytest.param((2, 3, 17, 33), 7, marks=pytest.mark.slow),
        pytest.param((1, 2, 2, 480), 7, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_many_tiles(shape, K, device):
    inputs = make_inputs(shape, K, device)
    del inputs["residual"]
    assert_parity(add_input, inputs)


@pytest.mark.parametrize(("shape", "K"), [((1, 3, 20, 3), 3), ((2, 3, 4, 3), 5), ((1, 2, 8, 3), 7)], ids=str)
def test_widths_that_the_columns_per_thread_divide(shape, K, device):
    assert_parity(depthwise_conv2d, make_inputs(shape, K, device))


@pytest.mark.parametrize("K", [3, pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtypes", [(BFLOAT, BFLOAT), (HALF, HALF), (BFLOAT, FLOAT), (FLOAT, BFLOAT)], ids=str)
def test_dtypes(K, dtypes, device):
    assert_parity(depthwise_conv2d, make_inputs((1, 4, 5, 10), K, device, *dtypes))


def test_one_program_walks_whole_images(device):
    """Give a program a whole image, and several images for the weight's gradient, as on a large batch."""
    pytest.importorskip("triton")
    from dimr_kernels.launch import override_config
    from dimr_kernels.ops.depthwise_conv_triton import ConvConfig

    few = ConvConfig(cols=2, groups=4, num_warps=1, resident_warps=1)
    with override_config("depthwise_conv_fwd", few), override_config("depthwise_conv_weight", few):
        assert_parity(depthwise_conv2d, make_inputs((3, 9, 2, 5), 3, device))


@pytest.mark.parametrize("K", [3, pytest.param(7, marks=pytest.mark.slow)])
def test_residual_that_is_the_input_equals_one_that_is_not(K, device):
    inputs = make_inputs((1, 4, 5, 6), K, device)
    x, weight, bias = (inputs[name].detach() for name in ("x", "weight", "bias"))
    with dk.use_backend("triton"):
        torch.testing.assert_close(add_input(x, weight, bias), depthwise_conv2d(x, weight, bias, x.clone()))
    assert_parity(add_input, {name: inputs[name] for name in ("x", "weight")})


@pytest.mark.parametrize("wanted", [(), ("x",), ("weight",), ("bias",), ("residual",), ("x", "bias")], ids=str)
def test_gradients_of_a_subset(wanted, device):
    inputs = make_inputs((1, 2, 3, 5), 3, device)
    together = results_of(depthwise_conv2d, inputs, "triton")
    alone = {name: x.detach().requires_grad_(name in wanted) for name, x in inputs.items()}
    found = results_of(depthwise_conv2d, alone, "triton")
    assert set(found) == {"out.0"} | {f"grad.{name}" for name in wanted}
    for name, value in found.items():
        torch.testing.assert_close(value, together[name])


def test_strided_inputs(device):
    inputs = make_inputs((2, 4, 5, 6), 3, device)
    gaps = {"x": strided(inputs["x"]), "bias": strided(inputs["bias"])}
    assert_parity(depthwise_conv2d, inputs | gaps)
    planes = torch.randn(2, 6, 4, 5, device=device).permute(0, 2, 3, 1).requires_grad_()
    wide = torch.randn(2, 6, 7, 16, device=device)
    part = wide[:, 1:5, 1:6, 3:9].requires_grad_()
    taps_first = inputs["weight"].detach().permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1).requires_grad_()
    assert_parity(depthwise_conv2d, inputs | {"x": part, "residual": planes, "weight": taps_first})


def test_offsets_beyond_32_bits(tmp_path, device):
    inputs = make_inputs((3, 2, 2, 3), 3, device, HALF)
    far = {"x": far_apart(inputs["x"], tmp_path), "residual": inputs["residual"].detach()}
    assert_parity(depthwise_conv2d, inputs | far)


def test_strided_gradient(device):
    inputs = make_inputs((2, 4, 5, 6), 3, device)
    assert_parity(lambda **inputs: depthwise_conv2d(**inputs).permute(0, 3, 1, 2).contiguous(), inputs)
    assert_parity(lambda **inputs: depthwise_conv2d(**inputs).sum((0, 3)), inputs)


@pytest.mark.parametrize("residual", [None, "x", "float32 for bfloat16 x"])
def test_autocast_casts_x_but_never_a_residual(residual, device):
    inputs = make_inputs((1, 2, 3, 5), 3, device)
    function = add_input if residual == "x" else depthwise_conv2d
    if residual in (None, "x"):
        del inputs["residual"]
    else:
        inputs["x"] = inputs["x"].detach().bfloat16().requires_grad_()
    with torch.autocast(device.type, BFLOAT):
        results = {backend: results_of(function, inputs, backend) for backend in ("eager", "triton")}
    for name, value in results["triton"].items():
        assert value.dtype == results["eager"][name].dtype
        torch.testing.assert_close(value, results["eager"][name], rtol=0.02, atol=0.1)
    assert results["triton"]["out.0"].dtype == (BFLOAT if residual is None else FLOAT)


@pytest.mark.parametrize("wanted", ["x", "weight"])
def test_double_backward_says_so(wanted, device):
    inputs = make_inputs((1, 2, 2, 3), 3, device)
    with dk.use_backend("triton"):
        (g,) = torch.autograd.grad(depthwise_conv2d(**inputs).square().sum(), inputs[wanted], create_graph=True)
        with pytest.raises(RuntimeError, match=r"depthwise_conv2d.*use_backend\('eager'\)"):
            g.sum().backward()


def zeros(*shape: int, dtype: torch.dtype = FLOAT) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": zeros(4, 4, 6)}, ValueError, r"x must have 4 dimensions \[B, H, W, C\].*\[4, 4, 6\]"),
        ({"x": zeros(1, 0, 4, 6)}, ValueError, r"x must have positive H, W and C.*\[1, 0, 4, 6\]"),
        ({"x": zeros(1, 4, 4, 6, dtype=torch.int64)}, TypeError, "x must have a floating-point dtype.*int64"),
        ({"weight": zeros(6, 3, 3)}, ValueError, r"weight must have 4 dimensions \[C, 1, K, K\].*\[6, 3, 3\]"),
        ({"weight": zeros(6, 1, 4, 4)}, ValueError, "kernel size must be one of 3, 5, 7; got 4"),
        ({"weight": zeros(6, 1, 9, 9)}, ValueError, "kernel size must be one of 3, 5, 7; got 9"),
        ({"weight": zeros(6, 1, 5, 3)}, ValueError, r"weight must have shape \[6, 1, 3, 3\], got \[6, 1, 5, 3\]"),
        (
            {"weight": zeros(4, 1, 3, 3)},
            ValueError,
            r"with the weight's 4 channels last, got \[B, C, H, W\] by the look",
        ),
        ({"weight": zeros(8, 1, 3, 3)}, ValueError, r"weight must have shape \[6, 1, 3, 3\], got \[8, 1, 3, 3\]"),
        ({"weight": None}, TypeError, "weight must be a Tensor, got NoneType"),
        ({"bias": zeros(5)}, ValueError, r"bias must have shape \[6\], got \[5\]"),
        ({"residual": zeros(1, 4, 5, 6)}, ValueError, r"residual must have shape \[1, 4, 4, 6\], got \[1, 4, 5, 6\]"),
        ({"residual": zeros(1, 4, 4, 6, dtype=HALF)}, TypeError, "residual has dtype torch.float16, x has .*float32"),
        ({"bias": zeros(6).to("meta")}, ValueError, "bias is on meta, x is on cpu"),
    ],
)
def test_bad_input_is_named(changed, error, message):
    arguments = {"x": zeros(1, 4, 4, 6), "weight": zeros(6, 1, 3, 3)} | changed
    with pytest.raises(error, match=f"depthwise_conv2d: .*{message}"):
        depthwise_conv2d(**arguments)


def test_module_is_torchs_convolution(device):
    torch.manual_seed(0)
    reference = torch.nn.Conv2d(6, 6, 5, padding=2, groups=6)
    torch.manual_seed(0)
    module = dk.DepthwiseConv2d(6, kernel_size=5)
    torch.testing.assert_close(module.state_dict(), reference.state_dict())
    module.load_state_dict(reference.state_dict())
    reference, module = reference.to(device), module.to(device)
    x = torch.randn(2, 4, 7, 6, device=device)
    expected = reference(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module(x, residual=x), expected + x)
    assert dk.DepthwiseConv2d(6, bias=False).bias is None
    with pytest.raises(ValueError, match="kernel_size must be 3, 5 or 7, got 4"):
        dk.DepthwiseConv2d(6, kernel_size=4)
