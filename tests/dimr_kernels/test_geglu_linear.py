from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import dimr_kernels as dk
from dimr_kernels.functional import geglu_linear
from tests.conftest import GPU
from tests.support.geglu_linear import layer, one_kernel, two_kernels
from tests.support.machine_code import compiled_kernels
from tests.support.parity import assert_parity, far_apart, strided

ONE_KERNEL_DTYPES = [
    torch.float16,
    pytest.param(
        torch.bfloat16, marks=pytest.mark.skipif(not GPU, reason="tl.dot on bfloat16 is wrong in the interpreter")
    ),
]


def backend_of(form: Callable[..., torch.Tensor]) -> str | None:
    """The one kernel is Triton's alone."""
    return "triton" if form is one_kernel else None


@pytest.mark.parametrize("dtype", ONE_KERNEL_DTYPES)
@pytest.mark.parametrize("size", [7, 24, 96, 240])
@pytest.mark.parametrize("M", [1, 65])
def test_one_kernel_matches_eager(M, size, dtype, device):
    assert_parity(one_kernel, layer(M, size, size, dtype, device), "triton")
    assert_parity(one_kernel, layer(M, 31, size, dtype, device), "triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [7, 240])
def test_two_kernels_match_eager(size, dtype, device):
    assert_parity(two_kernels, layer(65, size, 24, dtype, device))


@pytest.mark.parametrize("form", [one_kernel, two_kernels])
@pytest.mark.parametrize("gate", ["first", "last"])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("bias", [True, False])
def test_options(form, gate, approximate, bias, device):
    inputs = layer(5, 24, 20, torch.float16, device, bias)
    assert_parity(lambda **arguments: form(**arguments, gate=gate, approximate=approximate), inputs, backend_of(form))


def test_many_tiles_in_groups(device):
    """Use more tiles of rows than a group holds, a last group that is not full, and several tiles of columns."""
    assert_parity(one_kernel, layer(128 * 9 + 3, 16, 150, torch.float16, device), "triton")


def test_gate_order_is_what_it_says(device):
    inputs = layer(4, 16, 12, torch.float16, device)
    first, second = torch.nn.functional.linear(*inputs.values()).chunk(2, dim=-1)
    with dk.use_backend("triton"):
        found = one_kernel(**inputs, gate="last")
    torch.testing.assert_close(found, torch.nn.functional.gelu(second) * first, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("form", [one_kernel, two_kernels])
@pytest.mark.parametrize("shape", [(16,), (1, 2, 3, 16), (0, 16), (2, 0, 16)])
def test_shapes(form, shape, device):
    inputs = layer(1, 16, 12, torch.float16, device)
    assert_parity(form, inputs | {"x": torch.randn(shape, device=device).half().requires_grad_()}, backend_of(form))


@pytest.mark.parametrize(("K", "N"), [(0, 12), (16, 0)])
def test_empty_widths(K, N, device):
    assert_parity(one_kernel, backend="triton", inputs=layer(3, K or 1, N, torch.float16, device) | {
        "x": torch.randn(3, K, device=device).half(), "weight": torch.randn(2 * N, K, device=device).half(),
    })  # fmt: skip


def test_strided_inputs(device):
    inputs = layer(5, 24, 20, torch.float16, device)
    assert_parity(one_kernel, inputs | {"x": strided(inputs["x"]), "weight": strided(inputs["weight"])}, "triton")
    rows = torch.randn(5, 40, device=device).half()[:, 8:32]  # a unit last stride, gaps between rows
    columns = torch.randn(24, 40, device=device).half().t()
    assert_parity(one_kernel, {"x": rows.requires_grad_(), "weight": columns.requires_grad_()}, "triton")
    assert_parity(one_kernel, inputs | {"x": torch.randn(1, 24, device=device).half().expand(5, 24)}, "triton")


@pytest.mark.parametrize("argument", ["x", "weight"])
def test_offsets_beyond_32_bits(argument, device, tmp_path):
    inputs = {name: x.detach() for name, x in layer(4, 24, 2, torch.float16, device).items()}
    assert_parity(one_kernel, inputs | {argument: far_apart(inputs[argument], tmp_path)}, "triton")


@pytest.mark.parametrize("form", [one_kernel, two_kernels])
def test_bias_of_another_dtype(form, device):
    inputs = layer(5, 24, 20, torch.float16, device)
    inputs["bias"] = torch.randn(40, device=device, requires_grad=True)
    assert_parity(form, inputs, backend_of(form))


@pytest.mark.parametrize("form", [one_kernel, two_kernels])
def test_autocast(form, device):
    """Multiply float32 tensors in float16: eager's dtype and values, with float32 gradients."""
    inputs = layer(5, 24, 20, torch.float32, device)
    cotangent = torch.randn(5, 20, device=device)
    found = {}
    for backend in ("eager", "triton"):
        with dk.use_backend(backend), torch.autocast(device.type, torch.float16):
            out = form(**inputs)
        assert out.dtype == torch.float16
        found[backend] = (out, *torch.autograd.grad((out.float() * cotangent).sum(), list(inputs.values())))
    for fused, eager in zip(found["triton"], found["eager"], strict=True):
        assert fused.dtype == eager.dtype
        torch.testing.assert_close(fused, eager, rtol=4e-3, atol=4e-3 * eager.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_of_every_float16(approximate, device):
    """Bound the error by 0.51 units in the last place, for every float16."""
    values = torch.arange(-(2**15), 2**15, device=device).to(torch.int16).view(torch.float16)
    values = values[values.isfinite()]
    gate_alone = torch.tensor([[1.0], [0.0]], device=device).half()
    value_of_one = torch.tensor([0.0, 1.0], device=device)
    with dk.use_backend("triton"):
        found = one_kernel(values[:, None], gate_alone, value_of_one, approximate=approximate)[:, 0]
    truth = torch.nn.functional.gelu(values.double(), approximate=approximate)
    unit = torch.exp2(torch.floor(torch.log2(truth.abs().clamp(min=2**-14))) - 10)
    assert ((found.double() - truth).abs() / unit).max().item() <= 0.51


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_of_special_values(approximate, device):
    gates = torch.tensor([float("nan"), float("inf"), 1e30, -1e30, 0.0], device=device)
    x, weight = (torch.zeros(shape, dtype=torch.float16, device=device) for shape in ((1, 1), (10, 1)))
    with dk.use_backend("triton"):
        found = one_kernel(x, weight, torch.cat((gates, torch.full_like(gates, 1e-30))), approximate=approximate)[0]
    assert torch.isnan(found[0])
    assert found[1:].tolist() == [float("inf"), 1.0, 0.0, 0.0]


def test_double_backward_says_so(device):
    inputs = layer(3, 8, 6, torch.float16, device)
    with dk.use_backend("triton"):
        (g,) = torch.autograd.grad(one_kernel(**inputs).sum(), inputs["x"], create_graph=True)
        with pytest.raises(RuntimeError, match=r"geglu.*use_backend\('eager'\)"):
            g.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(2, 5)}, ValueError, r"x must have shape \[\.\.\., 4\].*\[6, 4\].*\[2, 5\]"),
        ({"x": torch.zeros(())}, ValueError, r"x must have shape \[\.\.\., 4\].*\[\]"),
        ({"x": torch.zeros(2, 4, dtype=torch.int64)}, TypeError, "x must have a floating-point dtype.*int64"),
        ({"x": [1.0]}, TypeError, "x must be a Tensor.*list"),
        ({"x": torch.zeros(2, 4).half()}, TypeError, "weight has dtype torch.float32, x has torch.float16"),
        ({"x": torch.zeros(2, 4, device="meta")}, ValueError, "weight is on cpu, x is on meta"),
        ({"weight": torch.zeros(5, 4)}, ValueError, r"weight.*even number of rows.*\[5, 4\]"),
        ({"weight": torch.zeros(6)}, ValueError, r"weight must have 2 dimensions \[2N, K\].*\[6\]"),
        ({"bias": torch.zeros(3)}, ValueError, r"bias must have shape \[6\], got \[3\]"),
        ({"approximate": "erf"}, ValueError, "approximate.*'erf'"),
        ({"gate": "left"}, ValueError, "gate.*'left'"),
        ({"form": "fused"}, ValueError, "form must be one of 'auto', 'one_kernel', 'two_kernels'; got 'fused'"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        geglu_linear(**{"x": torch.zeros(2, 4), "weight": torch.zeros(6, 4), **arguments})


@pytest.mark.parametrize("change", ["none", "hook", "subclass"])
def test_module_calls_a_projection_that_is_more_than_its_weights(change, device):
    """Call a projection that is replaced by an adapter or has hooks."""

    class Doubling(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x = torch.randn(3, 12, device=device)
    module = dk.GEGLU(12, 20, gate="last").to(device)
    if change == "subclass":
        module.proj.__class__ = Doubling
    elif change == "hook":
        module.proj.register_forward_hook(lambda module, arguments, h: 2 * h)
    value, gate = module.proj(x).chunk(2, dim=-1)
    torch.testing.assert_close(module(x), torch.nn.functional.gelu(gate) * value)


TENSOR_CORES = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}


@pytest.mark.slow
def test_machine_code_uses_tensor_cores_and_wide_copies():
    widths = {architecture: set() for architecture in TENSOR_CORES}
    for row in compiled_kernels("geglu_linear"):
        architecture = row["architecture"]
        where, instruction = f"{row['name']} sm_{architecture}", TENSOR_CORES[architecture]
        assert row["opcodes"].get(instruction, 0) > 0, f"{where}: no {instruction}"
        assert row["opcodes"]["LDGSTS"] == row["loads"]["16"], f"{where}: cp.async is not all 16 bytes wide"
        widths[architecture] |= set(row["name"].split("K=")[1].split(",")[0].split("|"))
    every_width = {"192", "240", "384", "480", "576", "768", "960", "1152"}
    assert widths == dict.fromkeys(TENSOR_CORES, every_width)


def kernels_run(monkeypatch, form, inputs):
    """Count the calls of the one-kernel operator in a call of ``geglu_linear``."""
    from dimr_kernels.ops import geglu as module

    calls = []
    real = module.geglu_linear_op
    monkeypatch.setattr(module, "geglu_linear_op", lambda *a: calls.append(1) or real(*a))
    with dk.use_backend("triton"):
        geglu_linear(**inputs, form=form)
    return len(calls)


@pytest.mark.parametrize("recorded", [False, True])
def test_auto_takes_two_kernels(device, monkeypatch, recorded):
    inputs = {name: x.detach().requires_grad_(recorded) for name, x in layer(5, 24, 20, torch.float16, device).items()}
    assert kernels_run(monkeypatch, "auto", inputs) == 0
    assert kernels_run(monkeypatch, "two_kernels", inputs) == 0
    assert kernels_run(monkeypatch, "one_kernel", inputs) == 1


def test_one_kernel_that_cannot_run_says_why(device):
    half = {name: x.detach() for name, x in layer(2, 8, 6, torch.float16, device).items()}
    wide = {name: x.float() for name, x in half.items()}
    with pytest.raises(dk.BackendError, match=r"'one_kernel'.*float16 or bfloat16, not torch.float32.*'two_kernels'"):
        one_kernel(**wide)
    with dk.use_backend("cuda"), pytest.raises(dk.BackendError, match=r"'one_kernel'.*'cuda'"):
        one_kernel(**half)
    meta = {name: x.to("meta") for name, x in half.items()}
    with pytest.raises(dk.BackendError, match=r"'one_kernel'.*needs a CUDA device.*'meta'"):
        one_kernel(**meta)


def test_eager_backend_is_the_definition_whatever_the_form(device):
    inputs = layer(2, 8, 6, torch.float32, device)
    with dk.use_backend("eager"):
        assert torch.equal(one_kernel(**inputs), two_kernels(**inputs))
