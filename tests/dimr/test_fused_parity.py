"""The whole model with every fused form against its eager definition, forward and every gradient."""

from __future__ import annotations

import pytest
import torch

import dimr
import dimr_kernels as dk
from tests.support.parity import assert_deterministic, assert_parity
from tests.support.small_models import inputs, perturbed_model

# Rounding adds up over some thirty operators in a row.
ULPS = 16


def small(norm, dims=(16, 12), layers=(2, 2), kernel_size=3):
    return dimr.DiMRConfig(
        3, 2 ** len(dims), dims, layers, num_heads=2, num_classes=5, kernel_size=kernel_size, norm=norm
    )


def as_function(config, timestep, device):
    """The model as a function of its image and parameters, with arguments that all want a gradient."""
    model = perturbed_model(config).to(device)
    batch = {name: value.to(device) for name, value in inputs(config).items()}

    def predict(x, **parameters):
        arguments = (x, batch["timestep"] if timestep is None else timestep, batch["class_labels"])
        return torch.func.functional_call(model, parameters, arguments)

    arguments = {"x": batch["x"], **dict(model.named_parameters())}
    return predict, {name: value.detach().requires_grad_() for name, value in arguments.items()}


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["td_layer", "td_rms"])
@pytest.mark.parametrize("timestep", [None, 300.0])
def test_forward_and_every_gradient(norm, timestep, device):
    function, arguments = as_function(small(norm), timestep, device)
    assert_parity(function, arguments, backend="triton", ulps=ULPS)


@pytest.mark.slow
def test_three_branches_and_the_papers_kernel_size(device):
    function, arguments = as_function(small("td_layer", (16, 12, 8), (2, 1, 1), kernel_size=7), None, device)
    assert_parity(function, arguments, backend="triton", ulps=ULPS)


@pytest.mark.slow
def test_deterministic(device):
    function, arguments = as_function(small("td_rms"), None, device)
    assert_deterministic(function, arguments, backend="triton")


def test_fused_forms_are_taken_and_can_be_switched_off(device):
    """Every fused operator that the model has runs under "triton", and none under "eager"."""
    calls = set()

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, arguments=(), kwargs=None):
            if operator.namespace == "dimr_kernels":
                calls.add(operator._opname)
            return operator(*arguments, **(kwargs or {}))

    model = perturbed_model(small("td_rms", layers=(1, 1))).to(device)
    batch = {name: value.to(device) for name, value in inputs(model.config, batch=1).items()}
    outputs = {}
    for backend in ("eager", "triton"):
        calls.clear()
        with torch.no_grad(), dk.use_backend(backend), Recorder():
            outputs[backend] = model(**batch)
        if backend == "eager":
            assert not calls
    assert calls == {"depthwise_conv2d", "geglu_packed", "shuffle_norm_add", "td_norm"}
    for a, b in zip(outputs["triton"], outputs["eager"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
