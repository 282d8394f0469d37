"""Models with adapters: what computes with weights of its own must not miss them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import dimr
import dimr_kernels as dk

from ..support.small_models import inputs, perturbed_model


class Adapted(nn.Module):
    """A linear layer with an adapter, which shows the base's weight as its own, as peft's does."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


def adapted(model: dimr.DiMR) -> dimr.DiMR:
    """Put an adapter on every linear layer of a copy."""
    model = copy.deepcopy(model)
    linears = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    for name in linears:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, Adapted(model.get_submodule(name)))
    return model


def test_adapters_act_in_every_form():
    """Check fused against eager, and that no adapter is left out: each has a gradient."""
    model = adapted(perturbed_model())
    found = model(**inputs())
    with dk.use_backend("eager"):
        for one, other in zip(found, model(**inputs()), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    torch.stack([out.square().mean() for out in found]).sum().backward()
    idle = [
        name for name, p in model.named_parameters() if ".up." in name and not (p.grad is not None and p.grad.any())
    ]
    assert idle == []


def test_the_engine_refuses_adapters():
    with pytest.raises(ValueError, match=r"proj is a Adapted: merge adapters"):
        dimr.optimize_for_inference(adapted(perturbed_model()), torch.float32)


def test_the_engine_takes_parametrized_layers():
    model = perturbed_model()
    nn.utils.parametrizations.weight_norm(model.branches[0].blocks[0].mlp.out)
    engine = dimr.optimize_for_inference(model, torch.float32)
    for one, other in zip(engine(**inputs()), model(**inputs()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


class Marked(Tensor):
    """A weight that is more than its numbers, as quantised ones are."""


def test_the_engine_refuses_weights_of_another_kind():
    model = perturbed_model()
    out = model.branches[0].blocks[0].mlp.out
    weight = nn.Parameter(out.weight.detach().as_subclass(Marked))
    out.weight = weight
    with pytest.raises(ValueError, match=r"branches.0.blocks.0.mlp.out has a Marked"):
        dimr.optimize_for_inference(model, torch.float32)


def test_a_model_with_adapters_is_not_saved_as_one_without(tmp_path):
    pytest.importorskip("safetensors")
    with pytest.raises(dimr.checkpoints.CheckpointError, match="merge adapters"):
        dimr.save_model(adapted(perturbed_model()), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pefts_adapters(tmp_path):
    """Check peft's LoRA on every linear layer: before and after merging, in the engine and on disk."""
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False)
    model = peft.get_peft_model(perturbed_model(), settings).eval()
    with torch.no_grad():
        expected = model(**inputs())
    with pytest.raises(ValueError, match="merge_and_unload"):
        dimr.optimize_for_inference(model.base_model.model, torch.float32)
    merged = model.merge_and_unload()
    dimr.save_model(merged, tmp_path)
    for form in (merged, dimr.optimize_for_inference(merged, torch.float32), dimr.load_model(tmp_path)):
        for one, other in zip(form(**inputs()), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
