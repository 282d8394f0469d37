"""``torch.func``: its transforms work through every operator, or raise a clear error."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, grad, jacrev, jvp, vmap

import dimr_kernels as dk

from .cells import DEVICE, assert_same, each_cell, leaves_of, loss_of, outputs_of, plain_results


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
