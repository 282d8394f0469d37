"""Cost of an eager call on the host, counted in Python calls; and the calls that bypass torch's dispatcher."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dimr_kernels as dk
from dimr_kernels import registration
from dimr_kernels.dispatch import unavailable_reason
from dimr_kernels.registration import Operator
from tests.support.dispatch import operators_called
from tests.support.operators import EXAMPLES
from tests.support.parity import results_of

# Calls of Python and C functions in one call with the launch left out: without a gradient, and with one. A tenth above
# what they are, since Python's versions differ; on the machine of ``benchmarks.host_time`` ten take a microsecond.
BOUNDS = {
    "td_layer_norm": (153, 211),
    "td_rms_norm": (116, 168),
    "geglu": (59, 78),
    "depthwise_conv2d": (92, 119),
    "pixel_shuffle_td_norm_add": (157, 215),
}
FUSED = list(BOUNDS)


def calls_of(function: Callable[[], Any]) -> int:
    """List the Python and C functions that one warm call enters."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    for _ in range(2):
        function()
    gc.disable()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", FUSED)
def test_few_calls(name, recorded):
    from benchmarks.stubs import stubbed_launches

    inputs = EXAMPLES[name].make_inputs(torch.device("cpu"), torch.bfloat16)
    with stubbed_launches(), torch.set_grad_enabled(recorded):
        found = calls_of(lambda: EXAMPLES[name].function(**inputs))
    bound = BOUNDS[name][recorded]
    assert found <= bound, f"{name}: {found} calls, {bound} allowed"


@pytest.mark.parametrize("name", FUSED)
def test_nothing_to_differentiate_costs_no_graph(name):
    """Inputs without ``requires_grad`` cost what they do under ``no_grad``, but for a look at each of them."""
    from benchmarks.stubs import stubbed_launches

    inputs = EXAMPLES[name].make_inputs(torch.device("cpu"), torch.bfloat16)
    inputs = {key: x.detach() if isinstance(x, Tensor) else x for key, x in inputs.items()}
    with stubbed_launches():
        found = calls_of(lambda: EXAMPLES[name].function(**inputs))
        with torch.no_grad():
            expected = calls_of(lambda: EXAMPLES[name].function(**inputs))
    assert found <= expected + 3


class Dispatched(list):
    """Names of the operators that reach torch's dispatcher; ``around`` notes them while a block runs."""

    def around(self, monkeypatch: pytest.MonkeyPatch) -> Dispatched:
        original = torch._ops.OpOverload.__call__

        def call(overload: Any, /, *arguments: Any, **options: Any) -> Any:
            self.append(overload.name().partition("::")[2])
            return original(overload, *arguments, **options)

        monkeypatch.setattr(torch._ops.OpOverload, "__call__", call)
        return self


@pytest.fixture
def dispatched(monkeypatch: pytest.MonkeyPatch) -> Dispatched:
    return Dispatched().around(monkeypatch)


@pytest.fixture
def geglu_input(device: torch.device) -> Tensor:
    return torch.randn(3, 8, device=device)


def geglu(h: Tensor) -> Tensor:
    with dk.use_backend("triton"):
        return dk.functional.geglu(h)


def test_plain_calls_leave_the_dispatcher_out(dispatched, geglu_input):
    geglu(geglu_input)
    with torch.no_grad():
        geglu(geglu_input.requires_grad_())
    with torch.inference_mode():
        geglu(geglu_input)
    geglu(geglu_input.requires_grad_()).sum().backward()
    assert dispatched == []
    assert geglu_input.grad is not None


def test_modes_see_the_operator(dispatched, geglu_input):
    with operators_called(qualified=True) as called:
        geglu(geglu_input)
    assert "dimr_kernels::geglu_packed" in called
    assert "geglu_packed" in dispatched


def test_fake_tensors_run_no_kernel(dispatched, geglu_input):
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        out = geglu(mode.from_tensor(geglu_input))
    assert out.shape == (3, 4)
    assert "geglu_packed" in dispatched


def test_function_modes_and_subclasses_go_to_the_dispatcher(dispatched, geglu_input):
    class Subclass(torch.Tensor):
        pass

    assert type(geglu(geglu_input.as_subclass(Subclass))) is Subclass
    assert "geglu_packed" in dispatched
    dispatched.clear()
    with torch.device(geglu_input.device):  # a function mode
        geglu(geglu_input)
    assert "geglu_packed" in dispatched


@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_tracing_with_real_tensors_records_the_operator(pre_dispatch, geglu_input):
    from torch.fx.experimental.proxy_tensor import make_fx

    traced = make_fx(geglu, pre_dispatch=pre_dispatch)(geglu_input)
    assert "dimr_kernels.geglu_packed" in traced.code
    other = torch.randn_like(geglu_input)
    torch.testing.assert_close(traced(other), geglu(other))


def test_jit_trace_records_the_operator(geglu_input):
    traced = torch.jit.trace(geglu, geglu_input)
    other = torch.randn_like(geglu_input)
    torch.testing.assert_close(traced(other), geglu(other))


def test_vmap(dispatched, geglu_input):
    batch = torch.stack([geglu_input, -geglu_input])
    found = torch.func.vmap(geglu)(batch)
    assert "geglu_packed" in dispatched
    torch.testing.assert_close(found, torch.stack([geglu(batch[0]), geglu(batch[1])]))


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", FUSED)
def test_the_same_bits_as_through_the_dispatcher(name, recorded, device, monkeypatch):
    example = EXAMPLES[name]
    inputs = {k: v.requires_grad_(recorded) for k, v in example.make_inputs(device, torch.bfloat16).items()}
    with torch.set_grad_enabled(recorded):
        direct = results_of(example.function, inputs, example.fused)
        monkeypatch.setattr(registration, "is_plain_call", lambda arguments: False)
        dispatched = results_of(example.function, inputs, example.fused)
    assert direct.keys() == dispatched.keys()
    for key, value in dispatched.items():
        assert torch.equal(direct[key], value), key


def test_parameters_of_any_stride(device):
    inputs = EXAMPLES["td_layer_norm"].make_inputs(device, torch.float32)
    parameters = [name for name in inputs if name not in ("x", "t", "residual")]
    expected = results_of(dk.functional.td_layer_norm, inputs, "triton")
    columns = {name: torch.stack([inputs[name].detach()] * 3, dim=1)[:, 1].requires_grad_() for name in parameters}
    assert not columns["p1"].is_contiguous()
    found = results_of(dk.functional.td_layer_norm, {**inputs, **columns}, "triton")
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


CHOICES = """
import itertools, json, torch
from benchmarks.stubs import pretended_gpu, recorded_calls
from dimr_kernels import functional as F
from dimr_kernels.launch import Launch

def chosen(launch, pointers):
    "What Triton compiles for these pointers, and what Launch calls: (first time, then from its own memory)."
    seen = []
    original = Launch.by_triton
    Launch.by_triton = lambda self, pointers: seen.append(original(self, pointers)) or seen[-1]
    try:
        launch(*pointers)
        launch(*pointers)
    finally:
        Launch.by_triton = original
    form = (original(launch, pointers), [f.__closure__ for f in launch._compiled.values()])
    return len(seen), form

rows = []
with pretended_gpu(), torch.no_grad():
    for dtype, D, offset in itertools.product((torch.float16, torch.bfloat16), (16, 24), (0, 1)):
        storage = torch.randn(4 * 2 * D + 1).to(dtype)
        h = storage[offset : offset + 4 * 2 * D].view(4, 2 * D)
        with recorded_calls(Launch) as calls:
            F.geglu(h)
        (launch, pointers), = calls
        by_triton = launch.by_triton(pointers)
        triton_calls, (again, closures) = chosen(launch, pointers)
        kept = [cell.cell_contents for closure in closures for cell in closure]
        rows.append({"aligned": pointers[0].data_ptr() % 16 == 0 and pointers[1].data_ptr() % 16 == 0,
                     "kept": any(by_triton is cell for cell in kept), "by_triton": triton_calls})
print(json.dumps(rows))
"""


@pytest.mark.slow
def test_what_is_kept_is_what_triton_would_choose():
    """Compare in a separate process, where kernels are compiled; nothing is launched."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", CHOICES], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    assert {row["aligned"] for row in rows} == {False, True}
    for row in rows:
        assert row["kept"] == row["aligned"], row
        assert row["by_triton"] == (0 if row["aligned"] else 2), row


def fastest(functions: dict[str, Callable[[], Any]], rounds: int = 30, calls: int = 20) -> dict[str, float]:
    """CPU seconds of this thread for a call of each, the least of several rounds in turn."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.thread_time()
            for _ in range(calls):
                function()
            best[name] = min(best[name], (time.thread_time() - start) / calls)
    return best


@pytest.mark.skipif(unavailable_reason("cpp", torch.device("cpu")) is not None, reason="the extension is missing")
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", ["td_layer_norm", "td_rms_norm", "depthwise_conv2d", "td_group_norm"])
def test_a_small_call_on_a_cpu_costs_no_more_than_eager(name, recorded):
    """``auto`` takes C++ for these; GeGLU's small calls run in plain PyTorch (``SMALLEST_FOR_CPP``)."""
    example = EXAMPLES[name]
    inputs = example.make_inputs(torch.device("cpu"), torch.float32)
    inputs = {key: x.detach().requires_grad_(recorded) for key, x in inputs.items()}

    def call(backend: str) -> None:
        with dk.use_backend(backend):
            outputs = example.function(**inputs)
            if recorded:
                first = outputs[0] if isinstance(outputs, tuple) else outputs
                torch.autograd.grad(first, list(inputs.values()), torch.ones_like(first))

    found = fastest({backend: lambda backend=backend: call(backend) for backend in ("eager", "auto")})
    assert found["auto"] <= 1.1 * found["eager"], found


def test_operators_keep_their_overload():
    from dimr_kernels.ops import geglu as module

    names = {form: operator.overload for form, operator in module.geglu_packed_ops.items()}
    assert all(isinstance(operator, Operator) for operator in module.geglu_packed_ops.values())
    ops = torch.ops.dimr_kernels
    assert names == {"triton": ops.geglu_packed.default, "cpp": ops.geglu_packed_cpp.default}
