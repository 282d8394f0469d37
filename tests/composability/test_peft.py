"""Adapters of peft: training, saving, merging, the inference engine, checkpoints."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dimr
from dimr.checkpoints import to_official_state_dict
from tests.support.small_models import inputs, perturbed_model

from .neighbours import assert_close, largest_change, require

TARGETS = {  # and the number of layers
    "all-linear": 32,
    "qkv": 3,
    "proj": 14,
    "out": 12,
    "geglu.proj": 9,
    "upsample.proj": 2,
    "skips.0": 3,
    "class_embedding": 1,
    "head.conv": 3,
}


def adapted(target: str = "all-linear", **options: object) -> dimr.DiMR:
    """Put random adapters on the target's layers, as peft's LoRA has after training."""
    peft = require("peft")
    if target == "head.conv":
        target = r".*head\.conv"
    chosen = target if target == "all-linear" or "*" in target else [target]
    config = peft.LoraConfig(r=4, target_modules=chosen, init_lora_weights=False, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return peft.inject_adapter_in_model(config, perturbed_model()).eval()


@torch.no_grad()
@pytest.mark.parametrize("target", TARGETS)
def test_engine_and_checkpoint_have_the_adapters(target, tmp_path):
    model = adapted(target)
    wanted = model(**inputs())
    assert largest_change(perturbed_model()(**inputs()), wanted) > 1e-2
    engine = dimr.optimize_for_inference(model, torch.float32)
    assert_close(engine(**inputs()), wanted)
    report = engine.report()
    assert len(report["merged"]) == TARGETS[target]
    assert all("peft.tuners.lora" in what for what in report["merged"].values())
    assert set(report["not_fused"]) <= {"CUDA graph"}
    dimr.save_model(model, tmp_path)
    assert_close(dimr.load_model(tmp_path)(**inputs()), wanted)
    assert_close(model(**inputs()), wanted, 0)  # nothing was merged into the model itself


@torch.no_grad()
@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.5}, {"use_rslora": True, "bias": "all"}])
def test_kinds_of_adapters(options):
    model = adapted("all-linear", **options)
    wanted = model(**inputs())
    model.train()  # dropout
    assert_close(dimr.optimize_for_inference(model, torch.float32)(**inputs()), wanted)


@torch.no_grad()
def test_adapters_that_are_off_are_not_merged():
    model = adapted("qkv")
    for layer in model.modules():
        if hasattr(layer, "enable_adapters"):
            layer.enable_adapters(False)
    engine = dimr.optimize_for_inference(model, torch.float32)
    assert_close(engine(**inputs()), perturbed_model()(**inputs()))
    assert engine.report()["merged"] == {}


def test_training_saving_and_merging(tmp_path):
    """Train adapters on a wrapped model, save them alone, put them on another model, merge."""
    peft = require("peft")
    model = perturbed_model().eval()
    base = [p.detach().clone() for p in model.parameters()]
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear"))
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    assert len(trained) == 2 * TARGETS["all-linear"]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(4):
        loss = sum(out.square().mean() for out in wrapped(**inputs()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        wanted = wrapped(**inputs())
        wrapped.save_pretrained(tmp_path)
        other = peft.PeftModel.from_pretrained(perturbed_model().eval(), tmp_path)
        assert_close(other(**inputs()), wanted)
        assert_close(dimr.optimize_for_inference(other.get_base_model(), torch.float32)(**inputs()), wanted)
        with pytest.raises(TypeError, match=r"got PeftModel.*get_base_model\(\)"):
            dimr.optimize_for_inference(other)
        merged = other.merge_and_unload()
        assert type(merged) is dimr.DiMR
        assert {type(m) for m in merged.modules()} == {type(m) for m in perturbed_model().modules()}
        assert_close(merged(**inputs()), wanted)
        frozen = [p for name, p in wrapped.named_parameters() if "lora_" not in name]
        assert all(torch.equal(a, b) for a, b in zip(frozen, base, strict=True))


def test_modules_saved_whole_are_kept_and_not_saved(tmp_path):
    """peft's ``modules_to_save`` trains a copy of a layer, which has no merge: it must be unloaded first."""
    peft = require("peft")
    config = peft.LoraConfig(r=4, target_modules=["qkv"], modules_to_save=["class_embedding"])
    model = peft.get_peft_model(perturbed_model().eval(), config).get_base_model()
    with torch.no_grad():
        nn.init.normal_(model.branches[0].class_embedding.modules_to_save["default"].weight)
        wanted = model(**inputs())
        engine = dimr.optimize_for_inference(model, torch.float32)
        assert_close(engine(**inputs()), wanted)
    assert "branches.0.class_embedding" in engine.report()["not_fused"]
    with pytest.raises(dimr.CheckpointError, match=r"class_embedding\.modules_to_save"):
        dimr.save_model(model, tmp_path / "folder")


def test_other_formats(tmp_path):
    """A published file has the adapters merged; a model of diffusers, whose weights it writes, refuses."""
    model = adapted("qkv")
    with torch.no_grad():
        wanted = model(**inputs())
        torch.save(to_official_state_dict(model), tmp_path / "file.pth")
        assert_close(dimr.load_official_checkpoint(tmp_path / "file.pth", model.config)(**inputs()), wanted)
    transformer = require("dimr.diffusers_pipeline").DiMRTransformer2DModel.from_dimr(model)
    with pytest.raises(dimr.CheckpointError, match=r"has adapters.*dimr\.save_model"):
        transformer.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
