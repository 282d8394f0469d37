"""Rules for every operator: gradients for any subset, half precision, empty batches, autocast, one graph, opcheck."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import dimr_kernels as dk
from dimr_kernels.dispatch import unavailable_reason
from tests.support.operators import BATCHED, EXAMPLES, HALF_PRECISION_ONLY, VARIANTS, Example, Inputs, in_cpp
from tests.support.parity import assert_deterministic, assert_parity, results_of
from tests.support.requirements import needs_inductor

CALLS = EXAMPLES | VARIANTS | in_cpp(EXAMPLES | VARIANTS)
ALL_CALLS = CALLS | HALF_PRECISION_ONLY


def _problem(example: Example, device: torch.device) -> str | None:
    return None if example.fused == "auto" else unavailable_reason(example.fused, device)


@pytest.fixture(params=CALLS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def example(name: str, device: torch.device) -> Example:
    found = ALL_CALLS[name]
    problem = _problem(found, device)
    if problem is not None:
        pytest.skip(f"no fused form here: {problem}")
    return found


@pytest.fixture
def fresh_compiler() -> None:
    """Forget the graphs of earlier tests, which would be found for the same function and may be broken."""
    torch.compiler.reset()


def test_every_function_has_an_example():
    linear = {"linear", "apply_linear"}  # torch's own but for plain calls of large products: test_linear.py
    assert {*EXAMPLES} == {*dk.functional.__all__} - linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_matches_eager(example, dtype, device):
    assert_parity(example.function, example.make_inputs(device, dtype), example.fused)


@pytest.mark.parametrize("name", ALL_CALLS)
def test_deterministic(example, device):
    """Compare two runs bit by bit, on a batch whose partial sums come from several programs."""
    inputs = example.make_inputs(device, torch.float32)
    for name in BATCHED & inputs.keys():
        x = inputs[name].detach()
        inputs[name] = x.repeat(2, *[1] * (x.dim() - 1)).requires_grad_()
    assert_deterministic(example.function, inputs, example.fused)


@pytest.mark.parametrize("name", ALL_CALLS)
def test_each_gradient_alone_equals_that_of_all(example, device):
    inputs = example.make_inputs(device, torch.float32)
    together = results_of(example.function, inputs, example.fused)
    for wanted in (key for key, x in inputs.items() if x is not None):
        alone = {
            key: x.detach().requires_grad_(key == wanted) if isinstance(x, torch.Tensor) else x
            for key, x in inputs.items()
        }
        found = results_of(example.function, alone, example.fused)
        assert torch.equal(found[f"grad.{wanted}"], together[f"grad.{wanted}"]), wanted


@pytest.mark.parametrize("name", ALL_CALLS)
def test_empty_batch(example, device):
    inputs = example.make_inputs(device, torch.float32)
    empty = {key: x.detach()[:0].requires_grad_() if key in BATCHED else x for key, x in inputs.items()}
    for key, value in results_of(example.function, empty, example.fused).items():
        assert torch.equal(value, torch.zeros_like(value)), f"{key}: not zero, or not empty"


def test_autocast_gives_the_dtype_of_eager(example, device):
    inputs = example.make_inputs(device, torch.float32)
    with torch.autocast(device.type, torch.bfloat16):
        fused = results_of(example.function, inputs, example.fused)
        eager = results_of(example.function, inputs, "eager")
    assert {key: value.dtype for key, value in fused.items()} == {key: value.dtype for key, value in eager.items()}


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", ALL_CALLS)
def test_one_graph_with_gradients(example, device):
    inputs = example.make_inputs(device, torch.float32)
    compiled = torch.compile(example.function, fullgraph=True, backend="aot_eager")
    expected = results_of(example.function, inputs, example.fused)
    found = results_of(compiled, inputs, example.fused)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


def test_meta_tensors_have_the_right_shape(example, device):
    """Compute shapes without memory, as model builders and torch.export do."""
    inputs = example.make_inputs(device, torch.float32)
    real = example.function(**inputs)
    meta = {key: x.detach().to("meta") if isinstance(x, torch.Tensor) else x for key, x in inputs.items()}
    with dk.use_backend("eager"):
        abstract = example.function(**meta)
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (real, abstract)), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


class _OperatorCalls(TorchDispatchMode):
    """Keep the arguments of each call of this package's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), kwargs: Any = None) -> Any:
        if operator.namespace == "dimr_kernels":
            self.calls.append((operator, *tree_map(_copy, (arguments, kwargs or {}))))
        return operator(*arguments, **(kwargs or {}))


def _copy(value: Any) -> Any:
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _operator_calls(example: Example, inputs: Inputs) -> list[tuple[Any, Any, Any]]:
    """Run the fused form forward and backward."""
    with _OperatorCalls() as seen:
        results_of(example.function, inputs, example.fused)
    return seen.calls


def _computes_gradients(operator: Any) -> bool:
    return operator._opname.removesuffix("_cpp").endswith(("_backward", "_gradient"))


@pytest.mark.parametrize("name", ALL_CALLS)
def test_opcheck(example, device):
    """Check schema, fake tensors, autograd and dynamic shapes of each operator that runs, forward and backward."""
    for operator, arguments, kwargs in _operator_calls(example, example.make_inputs(device, torch.float32)):
        with torch.set_grad_enabled(not _computes_gradients(operator)):
            torch.library.opcheck(operator, arguments, kwargs)


def test_opcheck_of_a_backward_with_one_gradient(example, device):
    inputs = example.make_inputs(device, torch.float32)
    wanted = "t" if "t" in inputs else next(iter(inputs))
    inputs = {
        key: x.detach().requires_grad_(key == wanted) if isinstance(x, Tensor) else x for key, x in inputs.items()
    }
    for operator, arguments, kwargs in _operator_calls(example, inputs):
        if _computes_gradients(operator):
            with torch.no_grad():
                torch.library.opcheck(operator, arguments, kwargs)


def test_every_registered_operator_is_called(device):
    """Except the operators that write into their arguments, which ``test_inference.py`` covers."""
    if any(_problem(example, device) for example in ALL_CALLS.values()):
        pytest.skip("a fused form is missing here")
    called = {
        operator.name()
        for example in ALL_CALLS.values()
        for operator, *_ in _operator_calls(example, example.make_inputs(device, torch.float32))
    }
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("dimr_kernels::")}
    assert called == {name for name in registered if not name.removesuffix("_cpp").endswith(("_into", "_"))}


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@needs_inductor
@pytest.mark.parametrize("form", ["eager", "fused"])
def test_compiled_by_inductor(form, device):
    """Compile all calls in one graph, since one compilation for each would take several times as long."""
    calls = CALLS if form == "eager" else ALL_CALLS
    backends = {name: "eager" if form == "eager" else example.fused for name, example in calls.items()}
    names = [name for name in calls if form == "eager" or _problem(calls[name], device) is None]
    inputs = {
        f"{name}: {key}": x for name in names for key, x in calls[name].make_inputs(device, torch.float32).items()
    }

    def together(**inputs: Tensor) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        for name in names:
            own = {key.removeprefix(f"{name}: "): x for key, x in inputs.items() if key.startswith(f"{name}: ")}
            with dk.use_backend(backends[name]):
                output = calls[name].function(**own)
            outputs.extend(output if isinstance(output, tuple) else (output,))
        return tuple(outputs)

    expected = results_of(together, inputs, "auto")
    found = results_of(torch.compile(together, fullgraph=True), inputs, "auto")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        tolerances = {"rtol": 2e-3, "atol": 2e-3} if value.dtype == torch.float16 else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(found[key], value, **tolerances)
