from __future__ import annotations

import importlib.machinery
import sys
import types
from dataclasses import replace
from unittest import mock

import pytest
import torch

import dimr_kernels as dk
from dimr_kernels.functional import attention
from dimr_kernels.ops import attention_backends as backends
from dimr_kernels.ops.attention_backends import RULES, Call, automatic
from tests.support.parity import assert_parity, results_of, strided

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SDPA = "torch.nn.functional.scaled_dot_product_attention"
MOST_SCORES = "dimr_kernels.ops.attention.MOST_SCORES_ON_CPU"


@pytest.fixture(params=["chosen by size", "torch's"])
def either_form(request):
    if request.param == "torch's":
        request.getfixturevalue("torch_attention_at_any_size")


def qkv(shape, dtype, device):
    """Make random q ``[B, heads, L, E]``, k and v, with two more keys than queries."""
    B, H, L, E = shape
    lengths = {"q": L, "k": L + 2, "v": L + 2}
    return {
        name: torch.randn(B, H, length, E, device=device).to(dtype).requires_grad_() for name, length in lengths.items()
    }


def views_of_packed(B, L, H, E, dtype, device):
    """Make q, k and v as a model does: views of one projection ``[B, L, 3, H, E]``."""
    return torch.randn(B, L, 3, H, E, device=device).to(dtype).permute(2, 0, 3, 1, 4).unbind(0)


def test_eager_is_the_definition():
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(3))
    expected = torch.einsum("bhls,bhse->bhle", torch.softmax(torch.einsum("bhle,bhse->bhls", q, k) / 2, -1), v)
    torch.testing.assert_close(attention(q, k, v, backend="eager"), expected)
    assert not torch.allclose(attention(q, k, v, backend="eager", scale=0.1), expected)


@pytest.mark.parametrize("shape", [(2, 3, 17, 64), (1, 2, 33, 60), (3, 1, 7, 72), (1, 1, 1, 1), (2, 2, 65, 20)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_auto_matches_eager(shape, dtype, device, either_form):
    assert_parity(attention, qkv(shape, dtype, device), backend="auto", ulps=4)


@pytest.mark.parametrize("backend", ["flash", "math"])
@pytest.mark.parametrize("scale", [None, 60**-0.5])
def test_named_backends_match_eager(backend, scale, device):
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    inputs = qkv((2, 2, 19, 64), dtype, device)
    assert_parity(lambda q, k, v: attention(q, k, v, backend, scale), inputs, backend="auto", ulps=4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["flash_attn", "flash", "cudnn", "efficient"])
@pytest.mark.parametrize("head_dim", [64, 72])
def test_gpu_backends_match_eager(backend, head_dim, device):
    inputs = qkv((2, 2, 257, head_dim), torch.bfloat16, device)
    try:
        results_of(lambda q, k, v: attention(q, k, v, backend), inputs, "auto")
    except dk.BackendError as problem:
        pytest.skip(str(problem))
    assert_parity(lambda q, k, v: attention(q, k, v, backend), inputs, backend="auto", ulps=4)


def test_unequal_value_width(device, either_form):
    q, k, v = (torch.randn(2, 2, 5, width, device=device, requires_grad=True) for width in (8, 8, 6))
    assert_parity(attention, {"q": q, "k": k, "v": v}, backend="auto")


def test_views_of_a_packed_projection_are_not_copied(device, torch_attention_at_any_size):
    views = views_of_packed(2, 9, 3, 16, torch.float32, device)
    assert not any(view.is_contiguous() for view in views)
    with mock.patch(SDPA, side_effect=torch.nn.functional.scaled_dot_product_attention) as sdpa:
        attention(*views)
    for given, taken in zip(views, sdpa.call_args.args, strict=True):
        assert taken.data_ptr() == given.data_ptr()
        assert taken.stride() == given.stride()


def test_strided_inputs(device, either_form):
    inputs = {name: strided(x) for name, x in qkv((2, 2, 5, 16), torch.float32, device).items()}
    assert inputs["q"].stride(-1) == 2
    assert_parity(attention, inputs, backend="auto")
    views = views_of_packed(2, 9, 3, 16, torch.float32, device)
    assert_parity(attention, {n: x.detach().requires_grad_() for n, x in zip("qkv", views, strict=True)}, "auto")


@pytest.mark.parametrize("backend", ["auto", "math", "eager"])
def test_empty_batch(backend, device, either_form):
    q, k, v = (torch.randn(0, 2, 5, 8, device=device, requires_grad=True) for _ in range(3))
    out = attention(q, k, v, backend)
    out.sum().backward()
    assert out.shape == q.grad.shape == (0, 2, 5, 8)


@pytest.mark.parametrize("needs", ["q", "k", "v"])
def test_gradient_of_one_input(needs, device, either_form):
    inputs = qkv((1, 2, 5, 8), torch.float32, device)
    inputs = {name: x.detach().requires_grad_(name == needs) for name, x in inputs.items()}
    assert_parity(attention, inputs, backend="auto")


@pytest.mark.parametrize(
    "backend", ["auto", "flash", *(pytest.param(b, marks=pytest.mark.slow) for b in ("math", "eager"))]
)
def test_compiles_whole(backend, device, either_form):
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    inputs = qkv((2, 2, 9, 16), dtype, device)

    def function(q, k, v):
        return attention(q, k, v, backend, scale=0.3)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected = results_of(function, inputs, "auto")
    for name, value in results_of(compiled, inputs, "auto").items():
        torch.testing.assert_close(value, expected[name])


def test_ordered_choice_compiles_whole(device):
    """Compile with several backends in order, as on a GPU."""
    q, k, v = (x.detach() for x in qkv((2, 2, 9, 16), torch.float32, device).values())

    def function(q, k, v):
        return backends._sdpa(q, k, v, 0.3, ["cudnn", "flash", "efficient", "math"])

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), attention(q, k, v, "eager", scale=0.3))


def test_described_calls_compile_whole(device):
    """Trace the rules that choose a backend."""
    q, k, v = (x.detach() for x in qkv((2, 2, 9, 16), torch.float32, device).values())

    def function(q, k, v):
        names = automatic(replace_device(backends.describe(q, k, v)))
        return q + len(names)

    def replace_device(call):
        return Call("cuda", torch.bfloat16, call.head_dim, call.value_dim, call.batch, call.queries, call.keys)

    torch.testing.assert_close(torch.compile(function, fullgraph=True, backend="eager")(q, k, v), q + 1)


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_autocast(backend, device, either_form):
    inputs = {name: x.detach() for name, x in qkv((2, 2, 5, 16), torch.float32, device).items()}
    inputs["v"] = inputs["v"].bfloat16()
    with torch.autocast(device.type, torch.bfloat16):
        out = attention(**inputs, backend=backend)
    assert out.dtype == torch.bfloat16
    rounded = {name: x.bfloat16() for name, x in inputs.items()}
    torch.testing.assert_close(out, attention(**rounded, backend=backend))


def test_use_backend(torch_attention_at_any_size):
    inputs = {name: x.detach() for name, x in qkv((1, 1, 4, 8), torch.float32, "cpu").items()}
    with mock.patch(SDPA, side_effect=torch.nn.functional.scaled_dot_product_attention) as sdpa:
        for name, calls in (("eager", 0), ("auto", 1), ("triton", 2), ("cuda", 3)):
            with dk.use_backend(name):
                attention(**inputs)
            assert sdpa.call_count == calls, name
        with dk.use_backend("eager"):
            attention(**inputs, backend="math")  # the nearer choice is binding
        assert sdpa.call_count == 4


@pytest.mark.parametrize(("scores", "calls"), [(2 * 3 * 5 * 7, 0), (2 * 3 * 5 * 7 - 1, 1)])
def test_products_up_to_so_many_scores_on_a_cpu(scores, calls):
    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8)
    with mock.patch(MOST_SCORES, scores), mock.patch(SDPA, return_value=q) as sdpa:
        attention(q, k, k)
        assert sdpa.call_count == calls
        attention(q.to("meta"), k.to("meta"), k.to("meta"))  # the measurements are those of CPUs
        with dk.use_backend("triton"):
            attention(q, k, k)
        assert sdpa.call_count == calls + 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_products_of_16_bits_are_float32(dtype, autocast):
    """Round the result once: it is off by half a unit in the last place, and by what float32 is off."""
    q, k, v = (torch.randn(2, 3, 33, 16).to(dtype) for _ in range(3))
    exact = attention(q.double(), k.double(), v.double(), "eager")

    def errors(backend):
        with torch.autocast("cpu", dtype, enabled=autocast):
            found = attention(*((x.float() if autocast else x) for x in (q, k, v)), backend)
        assert found.dtype == dtype
        return ((found.double() - exact).abs() / (exact.abs() + 1e-3)).max() / torch.finfo(dtype).eps

    assert errors("auto") <= 0.6
    assert errors("eager") > 0.6


def test_exported_programs_take_any_size():
    class Attend(torch.nn.Module):
        def forward(self, q):
            return attention(q, q, q)

    with mock.patch(MOST_SCORES, 2 * 3 * 8 * 8):
        batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
        program = torch.export.export(Attend(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: batch, 2: length},))
    q = torch.randn(7, 3, 19, 8)
    torch.testing.assert_close(program.module()(q), attention(q, q, q, "eager"))


def test_compiled_sizes_on_both_sides_of_the_limit():
    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend="aot_eager")
    with mock.patch(MOST_SCORES, 2 * 3 * 8 * 8):
        for length in (5, 8, 9, 16, 7):
            q, k, v = torch.randn(3, 2, 3, length, 8)
            torch.testing.assert_close(compiled(q, k, v), attention(q, k, v, "eager"))


@pytest.mark.parametrize("backend", ["flash_attn", "cudnn", "efficient"])
def test_explicit_choice_that_cannot_run_says_why(backend):
    q = torch.randn(1, 1, 4, 8)
    with pytest.raises(dk.BackendError, match=f"attention: backend '{backend}'.*CUDA tensors.*'cpu'"):
        attention(q, q, q, backend)


def test_explicit_choice_that_torch_refuses_is_named():
    """Report a limit of torch that the rules do not know."""
    q, v = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 4, 6)
    with (
        mock.patch.dict(RULES, flash=lambda call: None),
        pytest.warns(UserWarning, match="last dimension"),
        pytest.raises(dk.BackendError, match=r"'flash'.*torch refuses it"),
    ):
        attention(q, q, v, "flash")


HOPPER = Call("cuda", torch.bfloat16, 64, 64, 64, 257, 257, capability=(9, 0), cudnn=91900)
AMPERE = replace(HOPPER, capability=(8, 0))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (HOPPER, ["cudnn", "flash", "efficient", "math"]),
        (AMPERE, ["flash", "efficient", "math"]),
        (replace(HOPPER, head_dim=72, value_dim=72), ["cudnn", "flash", "efficient", "math"]),
        (replace(HOPPER, head_dim=60, value_dim=60), ["flash", "math"]),
        (replace(HOPPER, cudnn=91002), ["flash", "efficient", "math"]),
        (replace(HOPPER, cudnn=91002, queries=256, keys=256), ["cudnn", "flash", "efficient", "math"]),
        (replace(HOPPER, deterministic=True), ["flash", "efficient", "math"]),
        (replace(HOPPER, dtype=torch.float32), ["efficient", "math"]),
        (replace(HOPPER, dtype=torch.float64), ["math"]),
        (replace(HOPPER, empty=True), ["math"]),
        (replace(HOPPER, value_dim=128), ["cudnn", "efficient", "math"]),
        (replace(AMPERE, capability=(7, 5)), ["math"]),
        (replace(AMPERE, head_dim=512, value_dim=512), ["efficient", "math"]),
    ],
)
def test_order_of_automatic_choice(call, expected):
    with mock.patch(
        "dimr_kernels.ops.attention_backends.flash_attn_missing_reason", return_value="flash-attn is not installed"
    ):
        assert automatic(call) == expected
    with mock.patch.object(backends, "flash_attn_missing_reason", return_value=None):
        takes_it = "flash" in expected and call.head_dim % 8 == 0
        assert automatic(call) == (["flash_attn"] if takes_it else []) + expected


@pytest.mark.parametrize(
    ("backend", "call", "message"),
    [
        ("flash", replace(HOPPER, dtype=torch.float32), "float16, bfloat16, not torch.float32"),
        ("flash", replace(HOPPER, value_dim=32), "one head dim, queries have 64 and values 32"),
        ("flash", replace(AMPERE, capability=(8, 6), head_dim=200, value_dim=200, needs_grad=True), "head dim 200"),
        ("flash", replace(AMPERE, capability=(7, 5)), "8.0 or newer, this GPU has 7.5"),
        ("cudnn", replace(HOPPER, cudnn=0), "cuDNN 9.0, found none"),
        ("cudnn", replace(HOPPER, cudnn=91002), "multiples of 128, here 257 and 257"),
        ("cudnn", replace(HOPPER, head_dim=60, value_dim=60), "multiple of 8 and at most 128, not 60"),
        ("cudnn", replace(HOPPER, keys=1), "single key"),
        ("cudnn", replace(HOPPER, batch=65536), "65535, not 65536"),
        ("cudnn", replace(HOPPER, deterministic=True), "not deterministic"),
        ("efficient", replace(HOPPER, head_dim=62, value_dim=62, dtype=torch.float32), "multiple of 4"),
        ("efficient", replace(HOPPER, empty=True), "empty"),
        ("flash_attn", replace(HOPPER, head_dim=60, value_dim=60), "multiple of 8 and at most 256, not 60"),
    ],
)
def test_rules_give_the_reason(backend, call, message):
    assert message in RULES[backend](call)


def stand_in(*, broken: bool = False) -> types.ModuleType:
    """Stand in for flash-attn's interface."""
    module = types.ModuleType("flash_attn")
    module.__spec__ = importlib.machinery.ModuleSpec("flash_attn", loader=None)
    if not broken:

        def flash_attn_func(q, k, v, softmax_scale, deterministic):  # [B, L, heads, E]
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=softmax_scale)
            return out.transpose(1, 2)

        module.flash_attn_func = flash_attn_func
    return module


@pytest.fixture
def forget_import():
    backends._flash_attn_import_error.cache_clear()
    yield
    backends._flash_attn_import_error.cache_clear()


def test_flash_attn_is_called_in_its_own_layout(forget_import):
    inputs = {name: x.detach() for name, x in qkv((2, 3, 5, 8), torch.float32, "cpu").items()}
    with mock.patch.dict(sys.modules, flash_attn=stand_in()):
        assert backends.flash_attn_missing_reason() is None
        out = backends._flash_attn(**inputs, scale=0.3)
    torch.testing.assert_close(out, attention(**inputs, backend="eager", scale=0.3))


def test_flash_attn_that_does_not_load_is_reported(forget_import):
    with mock.patch.dict(sys.modules, flash_attn=stand_in(broken=True)):
        assert "does not load" in backends.flash_attn_missing_reason()


def test_flash_attn_absent_is_reported(forget_import):
    with mock.patch.dict(sys.modules, flash_attn=None):
        assert RULES["flash_attn"](HOPPER) == "flash-attn is not installed"


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((zeros(2, 4, 8),) * 3, ValueError, r"q must have 4 dimensions \[B, heads, L, head_dim\]"),
        ((zeros(1, 2, 4, 8), zeros(1, 2, 4, 6), zeros(1, 2, 4, 8)), ValueError, r"k must have shape \[1, 2, 4, 8\]"),
        ((zeros(1, 2, 4, 8), zeros(1, 2, 5, 8), zeros(1, 2, 4, 8)), ValueError, r"v must have shape \[1, 2, 5, 8\]"),
        ((zeros(1, 2, 4, 8), zeros(1, 2, 4, 8).half(), zeros(1, 2, 4, 8)), TypeError, r"k has dtype torch\.float16"),
        ((zeros(1, 2, 4, 8, dtype=torch.int64),) * 3, TypeError, "q must have a floating-point dtype"),
        ((zeros(1, 2, 4, 0),) * 3, ValueError, "positive head_dim"),
        ((*(zeros(1, 2, 4, 8),) * 3, "fast"), ValueError, "backend must be one of 'auto'.*got 'fast'"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        attention(*arguments)
