"""``torch.func``: its transforms work through every operator, or raise a clear error."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.func import functional_call, grad, jacrev, jvp, vmap

import dimr_kernels as dk
from dimr_kernels.dispatch import unavailable_reason

from .cells import DEVICE, assert_same, each_cell, leaves_of, loss_of, outputs_of, plain_results

ROOT = Path(__file__).parents[2]


def _split(cell):
    """Return the tensors to differentiate by, and the loss as a function of them."""
    module, inputs = cell.module(), cell.inputs()
    leaves = {name: leaf.detach() for name, leaf in leaves_of(module, inputs).items()}

    def outputs(leaves):
        called = tuple(leaves.get(f"input {i}", x) for i, x in enumerate(inputs))
        parameters = {name: leaf for name, leaf in leaves.items() if not name.startswith("input ")}
        return outputs_of(lambda *xs: functional_call(module, parameters, xs), called)

    return leaves, outputs


@each_cell("torch.func.functional_call")
def test_functional_call(cell):
    leaves, outputs = _split(cell)
    with cell.running():
        found = {f"output {i}": out.detach() for i, out in enumerate(outputs(leaves))}
    expected = {name: value for name, value in plain_results(cell).items() if name.startswith("output")}
    assert_same(found, expected)


@each_cell("torch.func.grad")
def test_grad(cell):
    leaves, outputs = _split(cell)
    with cell.running():
        found = grad(lambda leaves: loss_of(outputs(leaves)))(leaves)
        expected = {name: value for name, value in plain_results(cell).items() if not name.startswith("output")}
        assert_same({name: found[name] for name in expected}, expected)


@each_cell("torch.func.vjp, jacrev")
def test_jacrev(cell):
    leaves, outputs = _split(cell)
    name = next(iter(leaves))
    with cell.running():
        found = jacrev(lambda leaf: torch.stack([loss_of(outputs({**leaves, name: leaf})) * k for k in (1, 2)]))(
            leaves[name]
        )
        expected = plain_results(cell)[name]
        torch.testing.assert_close(found, torch.stack([expected, 2 * expected]))


@each_cell("torch.func.vmap")
def test_vmap(cell):
    """Map over the inputs, with fixed parameters."""
    module = cell.module()
    inputs = [x.detach() for x in cell.inputs(batch=4)]
    batched = [x.unflatten(0, (2, 2)) for x in inputs]
    with cell.running(), torch.no_grad():
        found = outputs_of(vmap(module), batched)
    with torch.no_grad():
        expected = outputs_of(module, inputs)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got.flatten(0, 1), wanted)


@each_cell("torch.func, per-sample gradients")
def test_per_sample_gradients(cell):
    """Take vmap of grad."""
    module, inputs = cell.module(), cell.inputs()
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def loss(parameters, *xs):
        return loss_of(outputs_of(lambda *xs: functional_call(module, parameters, xs), [x[None] for x in xs]))

    xs = [x.detach() for x in inputs]
    with cell.running():
        found = vmap(grad(loss), in_dims=(None, *[0] * len(xs)))(parameters, *xs)
    for i in range(2):
        with cell.running():
            alone = grad(loss)(parameters, *(x[i] for x in xs))
        assert_same({name: value[i] for name, value in found.items()}, alone)


@each_cell("torch.func.jvp")
def test_jvp(cell):
    leaves, outputs = _split(cell)
    tangents = {name: torch.ones_like(leaf) for name, leaf in leaves.items()}
    with cell.running():
        _, found = jvp(lambda leaves: loss_of(outputs(leaves)), (leaves,), (tangents,))
        gradients = plain_results(cell)
        expected = sum(g.sum() for name, g in gradients.items() if not name.startswith("output"))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compiled_derivatives():
    """Compile around a transform: the fused operator breaks the graph and loses no tangent."""
    x, call = torch.randn(4, 8, device=DEVICE), dk.functional.geglu
    with dk.use_backend("triton"):
        found = torch.compile(grad(lambda x: call(x).sum()), backend="aot_eager")(x)
        torch.testing.assert_close(found, grad(lambda x: call(x).sum())(x))
        found = torch.compile(vmap(call), backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(found, call(x))
        with pytest.raises(RuntimeError, match="forward-mode"):
            torch.compile(lambda x: jvp(call, (x,), (x,)), backend="aot_eager")(x)


VMAP_OF_EVERY_OPERATOR = """
import sys
import warnings

import torch
from torch.func import grad, vmap

import dimr_kernels as dk
from dimr_kernels.dispatch import unavailable_reason
from tests.support.operators import EXAMPLES

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
called = 0
for name, example in EXAMPLES.items():
    for form in ("triton", "cpp") if example.fused == "triton" else ("auto",):
        if form != "auto" and unavailable_reason(form, device) is not None:
            continue
        if name == "attention" and device.type == "cpu":
            continue  # torch's own operator, for which torch has no rule on a CPU
        inputs = example.make_inputs(device, torch.float32)
        fixed = {key: x for key, x in inputs.items() if not isinstance(x, torch.Tensor)}
        batch = {key: torch.stack([x.detach(), x.detach() + 0.1]) for key, x in inputs.items() if key not in fixed}

        def call(tensors):
            return example.function(**tensors, **fixed)

        def loss(tensors):
            out = call(tensors)
            return sum(part.square().sum() for part in (out if isinstance(out, tuple) else (out,)))

        with warnings.catch_warnings(record=True) as seen, dk.use_backend(form):
            warnings.simplefilter("always")
            vmap(call)(batch)
            vmap(grad(loss))(batch)
        for warning in seen:
            print(warning.message, file=sys.stderr)
        called += 1
print(called)
"""


def test_vmap_has_rules():
    """torch loops over an operator without a rule, with a line on standard error or, where it can, a warning."""
    result = subprocess.run(
        [sys.executable, "-c", VMAP_OF_EVERY_OPERATOR], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "batching rule" not in result.stderr
    assert int(result.stdout) >= 2


def test_vmap_of_operators_that_write_into_an_argument():
    conv = dk.DepthwiseConv2d(8, 3).to(DEVICE)
    x = torch.randn(3, 2, 4, 4, 8, device=DEVICE)

    def write(x, out):
        dk.inference.depthwise_conv2d(x, conv.weight, conv.bias, out)
        return x

    for form in ("triton", "cpp"):
        if unavailable_reason(form, DEVICE) is None:
            out = torch.full_like(x, math.nan)
            with torch.no_grad(), dk.use_backend(form):
                vmap(write)(x, out)
                wanted = torch.stack([conv(part, residual=part) for part in x])
            torch.testing.assert_close(out, wanted)
