"""What holds of every operator: gradients for any subset, float16 inputs, empty batches, autocast, one graph."""

from __future__ import annotations

import pytest
import torch

import dimr_kernels as dk
from dimr_kernels.dispatch import unavailable_reason
from tests.support.operators import EXAMPLES, Example
from tests.support.parity import assert_deterministic, assert_parity, results_of

pytestmark = pytest.mark.parametrize("name", dk.functional.__all__)


@pytest.fixture
def example(name: str, device: torch.device) -> Example:
    found = EXAMPLES[name]
    problem = None if found.fused == "auto" else unavailable_reason(found.fused, device)
    if problem is not None:
        pytest.skip(f"no fused form here: {problem}")
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_matches_eager(example, dtype, device):
    assert_parity(example.function, example.make_inputs(device, dtype), example.fused)


def test_deterministic(example, device):
    assert_deterministic(example.function, example.make_inputs(device, torch.float32), example.fused)


def test_each_gradient_alone_equals_that_of_all(example, device):
    inputs = example.make_inputs(device, torch.float32)
    together = results_of(example.function, inputs, example.fused)
    for wanted in inputs:
        alone = {
            key: x.detach().requires_grad_(key == wanted) if isinstance(x, torch.Tensor) else x
            for key, x in inputs.items()
        }
        found = results_of(example.function, alone, example.fused)
        torch.testing.assert_close(found[f"grad.{wanted}"], together[f"grad.{wanted}"])


def test_empty_batch(name, example, device):
    inputs = example.make_inputs(device, torch.float32)
    batched = {"x", "y", "t", "h", "q", "k", "v", "residual"}
    empty = {key: x.detach()[:0].requires_grad_() if key in batched else x for key, x in inputs.items()}
    for key, value in results_of(example.function, empty, example.fused).items():
        assert torch.equal(value, torch.zeros_like(value)), f"{key}: not zero, or not empty"


def test_autocast_gives_the_dtype_of_eager(example, device):
    inputs = example.make_inputs(device, torch.float32)
    with torch.autocast(device.type, torch.bfloat16):
        fused = results_of(example.function, inputs, example.fused)
        eager = results_of(example.function, inputs, "eager")
    assert {key: value.dtype for key, value in fused.items()} == {key: value.dtype for key, value in eager.items()}


@pytest.mark.slow
def test_one_graph_with_gradients(example, device):
    inputs = example.make_inputs(device, torch.float32)
    compiled = torch.compile(example.function, fullgraph=True, backend="aot_eager")
    expected = results_of(example.function, inputs, example.fused)
    found = results_of(compiled, inputs, example.fused)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


def test_meta_tensors_have_the_right_shape(name, example, device):
    """Shapes can be worked out without memory: what model builders and torch.export rely on."""
    inputs = example.make_inputs(device, torch.float32)
    real = example.function(**inputs)
    meta = {key: x.detach().to("meta") if isinstance(x, torch.Tensor) else x for key, x in inputs.items()}
    with dk.use_backend("eager"):
        abstract = example.function(**meta)
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (real, abstract)), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
