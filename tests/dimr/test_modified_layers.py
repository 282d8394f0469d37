"""Layers that compute more than their weights say: the engine and saved models compute the same, or name them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import dimr
from tests.support.small_models import TINY, inputs, perturbed_model

LINEAR = "branches.0.blocks.1.attn.qkv"
PLACES = {  # a layer of each part
    "branches.0.embed.proj": "branches.0.embed",
    "branches.0.class_embedding": "branches.0.class_embedding",
    LINEAR: "branches.0.blocks.1",
    "branches.0.blocks.2.mlp.geglu.proj": "branches.0.blocks.2",
    "branches.0.blocks.0.mlp.out": "branches.0.blocks.0",
    "branches.0.skips.0": "branches.0.skips.0",
    "branches.1.upsample.proj": "branches.1.upsample",
    "branches.1.upsample.norm_in": "branches.1.upsample",
    "branches.1.upsample.norm_out": "branches.1.upsample",
    "branches.1.blocks.0.conv": "branches.1.blocks.0",
    "branches.1.blocks.1.norm": "branches.1.blocks.1",
    "branches.2.skips.0": "branches.2.skips.0",
    "branches.2.head.conv": "branches.2.head",
    "branches.2.blocks.1": "branches.2.blocks.1",
    "branches.2.embed": "branches.2.embed",
}


def changed(x: Tensor) -> Tensor:
    return x + 0.5 * torch.cos(3 * x)  # no norm undoes it


class Wrapper(nn.Module):
    """Stands for its layer, whose weight it shows, and computes something else."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias

    def forward(self, *arguments: Tensor) -> Tensor:
        return changed(self.layer(*arguments))


class ChangedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return changed(super().forward(x))


class Changed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return changed(x)

    def right_inverse(self, x: Tensor) -> Tensor:
        return x


def by_forward_hook(model: nn.Module, path: str) -> None:
    model.get_submodule(path).register_forward_hook(lambda module, args, out: changed(out))


def by_pre_hook(model: nn.Module, path: str) -> None:
    model.get_submodule(path).register_forward_pre_hook(lambda module, args: (changed(args[0]), *args[1:]))


def by_wrapper(model: nn.Module, path: str) -> None:
    model.set_submodule(path, Wrapper(model.get_submodule(path)))


def by_forward_of_instance(model: nn.Module, path: str) -> None:
    layer = model.get_submodule(path)
    forward = layer.forward
    layer.forward = lambda *arguments, **options: changed(forward(*arguments, **options))


def by_subclass(model: nn.Module, path: str) -> None:
    model.get_submodule(path).__class__ = ChangedLinear


def by_bias(model: nn.Module, path: str) -> None:
    layer = model.get_submodule(path)
    layer.bias = nn.Parameter(torch.ones(layer.out_features))


def by_parametrization(model: nn.Module, path: str) -> None:
    layer = model.get_submodule(path)
    for name in [name for name, _ in layer.named_parameters(recurse=False)]:
        parametrize.register_parametrization(layer, name, Changed())


def by_spectral_norm(model: nn.Module, path: str) -> None:
    parametrizations.spectral_norm(model.get_submodule(path))


def by_pruning(model: nn.Module, path: str) -> None:
    prune.random_unstructured(model.get_submodule(path), "weight", 0.5)


def by_padding(model: nn.Module, path: str) -> None:
    conv = model.get_submodule(path)
    conv.padding_mode, conv._reversed_padding_repeated_twice = "circular", [1, 1, 1, 1]


def assert_close(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], tolerance: float = 2e-5) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


def modified_model(change: Callable[[nn.Module, str], None], path: str) -> dimr.DiMR:
    """Make a model whose predictions the change moves."""
    model = perturbed_model().eval()
    with torch.no_grad():
        before = model(**inputs())
        change(model, path)
        assert max((a - b).abs().max().item() for a, b in zip(before, model(**inputs()), strict=True)) > 1e-3
    return model


@torch.no_grad()
def assert_engine_is_the_model(model: dimr.DiMR, kept: str | None) -> dimr.inference.InferenceEngine:
    for batch in (0, 2):
        given = inputs(batch=batch)
        if batch == 0:
            given["timestep"] = torch.tensor([500.0])
        engine = dimr.optimize_for_inference(model, torch.float32)
        if batch:
            assert_close(engine(**given), model(**given))
        else:
            assert [len(out) for out in engine(**given)] == [0] * 3
    lowered = dimr.optimize_for_inference(model, torch.bfloat16)(**{**given, "x": given["x"].bfloat16()})
    assert all(out.dtype == torch.bfloat16 for out in lowered)
    assert_close([out.float() for out in lowered], model(**given), 0.2)
    named = {part for part in engine.report()["not_fused"] if part.startswith("branches")}
    assert named == ({kept} if kept else set())
    return engine


@pytest.mark.parametrize("path", PLACES)
def test_any_layer_of_any_part(path):
    engine = assert_engine_is_the_model(modified_model(by_forward_hook, path), PLACES[path])
    assert f"{path} has forward hooks (<lambda>)" in engine.report()["not_fused"][PLACES[path]]
    assert "called as they are" in engine.graph_status


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (by_pre_hook, "has forward hooks (<lambda>)"),
        (by_forward_of_instance, "has a forward of its own, set on the instance"),
        (by_wrapper, "is a tests.dimr.test_modified_layers.Wrapper"),
        (by_subclass, "is a tests.dimr.test_modified_layers.ChangedLinear"),
        (by_bias, "has other parameters (bias)"),
        (by_pruning, "has forward hooks (RandomUnstructured)"),
    ],
)
def test_any_change_of_a_linear_layer(change, reason):
    engine = assert_engine_is_the_model(modified_model(change, LINEAR), PLACES[LINEAR])
    assert f"{LINEAR} {reason}" in engine.report()["not_fused"][PLACES[LINEAR]]


def test_settings_of_a_layer():
    """Circular padding, set on a convolution as is done for tiles."""
    engine = assert_engine_is_the_model(modified_model(by_padding, "branches.2.head.conv"), "branches.2.head")
    assert "padding_mode=circular" in engine.report()["not_fused"]["branches.2.head"]


@pytest.mark.parametrize("path", [path for path in PLACES if path not in ("branches.2.blocks.1", "branches.2.embed")])
def test_parametrizations_are_merged(path):
    model = modified_model(by_parametrization, path)
    before = copy.deepcopy(model.state_dict())
    engine = assert_engine_is_the_model(model, None)
    assert list(engine.report()["merged"]) == [path]
    assert "has a parametrized" in engine.report()["merged"][path]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert parametrize.is_parametrized(model.get_submodule(path))


def test_spectral_norm_is_merged_without_a_step_of_its_iteration():
    model = modified_model(by_spectral_norm, LINEAR)
    with torch.no_grad():
        wanted = model(**inputs())
        model.train()
        before = copy.deepcopy(model.state_dict())
        assert_close(dimr.optimize_for_inference(model, torch.float32)(**inputs()), wanted)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


class Adapter(nn.Module):
    """Follows the protocol of peft's adapters."""

    def __init__(self, layer: nn.Linear, off: bool) -> None:
        super().__init__()
        self.layer, self.off = layer, off

    def get_base_layer(self) -> nn.Linear:
        return self.layer

    def merge(self, safe_merge: bool = False) -> None:
        self.layer.weight.data = 2 * self.layer.weight.data

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if self.off else 2 * self.layer(x)


@pytest.mark.parametrize("off", [False, True])
def test_adapters_are_merged_if_that_changes_nothing(off):
    model = perturbed_model().eval()
    model.set_submodule(LINEAR, Adapter(model.get_submodule(LINEAR), off))
    engine = assert_engine_is_the_model(model, PLACES[LINEAR] if off else None)
    assert list(engine.report()["merged"]) == ([] if off else [LINEAR])


def test_merged_layers_inside_a_kept_part_are_not_reported_as_merged():
    model = modified_model(by_parametrization, LINEAR)
    by_forward_hook(model, "branches.0.blocks.1")
    assert assert_engine_is_the_model(model, "branches.0.blocks.1").report()["merged"] == {}


def test_hooks_of_the_backward_change_nothing():
    model = perturbed_model().eval()
    model.get_submodule(LINEAR).register_full_backward_hook(lambda *_: None)
    assert_engine_is_the_model(model, None)


@pytest.mark.parametrize("path", ["", "branches.1"])
def test_the_engine_refuses_to_replace_a_modified_call(path):
    model = perturbed_model()
    model.get_submodule(path).register_forward_hook(lambda module, args, out: out)
    with pytest.raises(ValueError, match=rf"cannot take over {path or 'the model'} has forward hooks"):
        dimr.optimize_for_inference(model)


def test_kept_parts_run_in_the_dtype_of_the_model():
    model = perturbed_model(seed=3).bfloat16().eval()
    seen = []
    model.get_submodule(LINEAR).register_forward_hook(lambda module, args, out: seen.append(args[0].dtype))
    with torch.no_grad():
        out = dimr.optimize_for_inference(model, torch.float32)(**inputs())
    assert seen == [torch.bfloat16]
    assert out[-1].dtype == torch.float32


# Saving


@pytest.mark.parametrize("change", [by_parametrization, by_spectral_norm])
def test_merged_weights_are_saved(change, tmp_path):
    model = modified_model(change, LINEAR)
    dimr.save_model(model, tmp_path)
    with torch.no_grad():
        assert_close(dimr.load_model(tmp_path)(**inputs()), model(**inputs()))
    assert parametrize.is_parametrized(model.get_submodule(LINEAR))


@pytest.mark.parametrize(
    ("change", "named"), [(by_wrapper, "Wrapper"), (by_bias, "bias"), (by_pruning, "RandomUnstructured")]
)
def test_what_would_not_load_is_not_saved(change, named, tmp_path):
    model = modified_model(change, LINEAR)
    with pytest.raises(dimr.CheckpointError, match=rf"cannot be saved so that it loads.*{LINEAR}.*{named}"):
        dimr.save_model(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_weights_without_data_are_not_saved(tmp_path):
    model = perturbed_model()
    model.branches[1].to("meta")
    with pytest.raises(dimr.CheckpointError, match=r"branches\.1\.embed\.position has no data here"):
        dimr.save_model(model, tmp_path / "folder")


def test_code_that_is_not_saved_is_named(tmp_path, caplog):
    for change, path in ((by_forward_hook, LINEAR), (by_subclass, "branches.0.skips.0"), (partial(by_pre_hook), "")):
        model = perturbed_model()
        change(model, path)
        with caplog.at_level(logging.WARNING, logger="dimr.checkpoints"):
            dimr.save_model(model, tmp_path)
        assert f"{path or 'the model'} " in caplog.records[-1].getMessage()
    assert len(caplog.records) == 3
    dimr.save_model(perturbed_model(TINY), tmp_path)
    assert len(caplog.records) == 3
