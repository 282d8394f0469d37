"""Every operator, forward and backward, on the PTX that a GPU would be given."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dimr_kernels import functional as F
from tests.abuse.every_kernel import CALLS
from tests.support.operators import EXAMPLES
from tests.support.parity import ULPS, assert_parity, largest_error, results_of

from .project import operators_on_compiled_kernels
from .ptx.values import Approximation

pytest.importorskip("triton")

ARCHITECTURES = (80, 90)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FUSED = sorted(name for name, example in EXAMPLES.items() if example.fused == "triton")
CPU = torch.device("cpu")
# A gate passes ex2.approx and div.full, each off by 2 units in the last place at most.
APPROXIMATE_ULPS = ULPS + 4

Inputs = dict[str, Any]


def assert_compiled_parity(
    function: Callable[..., Any], inputs: Inputs, architecture: int = 80, approximate: bool = False
) -> None:
    """Against float64. ``approximate``: approximate instructions are as far off as the manual allows."""
    approximation = Approximation(exact=not approximate)
    with operators_on_compiled_kernels(architecture, approximation=approximation) as executor:
        assert_parity(function, inputs, "triton", ulps=APPROXIMATE_ULPS if approximate else ULPS)
    assert executor.launches, "nothing was launched"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_example(architecture: int, name: str, dtype: torch.dtype) -> None:
    example = EXAMPLES[name]
    assert_compiled_parity(example.function, example.make_inputs(CPU, dtype), architecture)


@pytest.mark.parametrize("name", sorted(set(CALLS) - set(FUSED)))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_odd_sizes(architecture: int, name: str) -> None:
    function, make_inputs, _ = CALLS[name]
    assert_compiled_parity(function, make_inputs(CPU), architecture)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_approximate_instructions_at_their_bounds(name: str) -> None:
    function, make_inputs, _ = CALLS[name]
    assert_compiled_parity(function, make_inputs(CPU), approximate=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(5, 24, 7), (200, 96, 80), (130, 320, 96)], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_product_of_geglu_linear(architecture: int, size: tuple[int, int, int], dtype: torch.dtype) -> None:
    """mma on 8.0, wgmma on 9.0; few and many turns of the loop, whole and partial tiles."""
    M, K, N = size
    inputs = {"x": torch.randn(M, K).to(dtype), "weight": torch.randn(2 * N, K).to(dtype)}
    assert_compiled_parity(lambda **x: F.geglu_linear(form="one_kernel", **x), inputs, architecture)


def _gates(D: int) -> Inputs:
    names = ["p1", "p2", "p3", "p4"]
    names += [f"{kind}_gate_{part}" for kind in ("scale", "shift") for part in ("weight", "offset")]
    return {name: torch.randn(D) for name in names}


def _upsampled(x: Tensor) -> Tensor:
    B, H, W, C = x.shape
    return torch.zeros(B, 2 * H, 2 * W, C // 4, dtype=x.dtype)


@pytest.mark.parametrize("value", [3.0, 0.7])
@pytest.mark.parametrize(
    ("function", "shape", "width"),
    [
        (F.td_layer_norm, (2, 5, 48), 48),
        (F.td_layer_norm, (2, 3, 8200), 8200),
        (lambda **x: F.td_group_norm(num_groups=4, **x), (2, 5, 24), 24),
        (lambda **x: F.td_group_norm(num_groups=1, **x), (2, 30, 24), 24),
        (lambda **x: F.pixel_shuffle_td_norm_add(upscale_factor=2, y=_upsampled(x["x"]), **x), (2, 3, 4, 96), 24),
    ],
    ids=["td_layer_norm", "td_layer_norm of wide rows", "td_group_norm", "td_group_norm of one group", "shuffle"],
)
def test_a_constant_input_gives_the_shift(
    function: Callable[..., Any], shape: tuple[int, ...], width: int, value: float
) -> None:
    """Its variance is 0, so what its mean is off by comes out times 1 / sqrt(eps): a mean has to be rounded once."""
    inputs = {"x": torch.full(shape, value), "t": torch.rand(shape[0]), **_gates(width)}
    truth = results_of(function, inputs, "eager", torch.float64)["out.0"]
    eager = results_of(function, inputs, "eager")["out.0"]
    with operators_on_compiled_kernels() as executor:
        found = results_of(function, inputs, "triton")["out.0"]
    assert executor.launches
    slack = APPROXIMATE_ULPS * torch.finfo(torch.float32).eps * truth.abs().max().item()
    error, allowed = largest_error(found, truth), 2 * largest_error(eager, truth) + slack
    assert error <= allowed


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", [240, 480, 1152])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_norm_at_the_widths_of_the_models(architecture: int, D: int, dtype: torch.dtype) -> None:
    inputs = EXAMPLES["td_layer_norm"].make_inputs(CPU, torch.float32)
    wide: Inputs = {
        name: torch.randn(*value.shape[:-1], D if value.dim() != 1 or name != "t" else 2)
        for name, value in inputs.items()
    }
    for name in ("x", "residual"):
        wide[name] = wide[name].to(dtype)
    leaves = {name: value.requires_grad_() for name, value in wide.items()}
    assert_compiled_parity(F.td_layer_norm, leaves, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("kernel_size", [5, 7])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_depthwise_conv_of_large_kernels(architecture: int, dtype: torch.dtype, kernel_size: int) -> None:
    inputs: Inputs = {
        "x": torch.randn(2, 9, 10, 40).to(dtype).requires_grad_(),
        "weight": torch.randn(40, 1, kernel_size, kernel_size).to(dtype).requires_grad_(),
        "bias": torch.randn(40).to(dtype).requires_grad_(),
        "residual": torch.randn(2, 9, 10, 40).to(dtype).requires_grad_(),
    }
    assert_compiled_parity(F.depthwise_conv2d, inputs, architecture)


def test_same_bits_twice() -> None:
    example = EXAMPLES["td_layer_norm"]
    inputs = example.make_inputs(CPU, torch.float32)
    with operators_on_compiled_kernels():
        first, second = (results_of(example.function, inputs, "triton") for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_an_unwritten_output_is_seen() -> None:
    """The comparison fails where a kernel's stores are taken out."""
    x: Tensor = torch.randn(3, 32)
    with operators_on_compiled_kernels(edit=lambda text: re.sub(r"(@!?%p\d+ )?st\.global[^;]*;", "", text)):
        out = results_of(F.geglu, {"h": x}, "triton")["out.0"]
    assert out.isnan().all()
