"""The network as one of diffusers' models: same function, same weights, diffusers' own conventions."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import subprocess
import sys

import pytest
import torch

pytest.importorskip("diffusers")

from safetensors.torch import load_file

import dimr
from dimr.diffusers_pipeline import DiMRTransformer2DModel
from tests.support.small_models import TINY, inputs, perturbed_model

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def model() -> DiMRTransformer2DModel:
    return DiMRTransformer2DModel.from_dimr(perturbed_model().eval())


def as_diffusers(batch, dtype=torch.float32):
    """Inputs of DiMR as those of diffusers' models, which count timesteps from 0."""
    return {
        "hidden_states": batch["x"].to(dtype),
        "timestep": batch["timestep"] - 1,
        "class_labels": batch["class_labels"],
    }


def whole_steps(batch=2):
    return {**inputs(batch=batch), "timestep": torch.tensor([1, 1000] * (batch // 2))}


def test_arguments_are_the_configurations():
    ours = {field.name: field.default for field in dataclasses.fields(dimr.DiMRConfig)}
    with torch.device("meta"):
        made = DiMRTransformer2DModel()
    theirs = {name: value for name, value in made.config.items() if not name.startswith("_")}
    assert theirs == ours
    assert made.architecture == dimr.DiMRConfig()


@pytest.mark.parametrize("name", ["dimr-tiny-3r", "adaln-zero"])
def test_same_parameters_under_the_same_names(name):
    config = TINY if name == "dimr-tiny-3r" else dataclasses.replace(TINY, norm="adaln_zero", mlp="gelu")
    ours = dimr.DiMR(config)
    theirs = DiMRTransformer2DModel(**config.to_dict())
    theirs.load_state_dict(ours.state_dict())
    assert list(theirs.state_dict()) == list(ours.state_dict())
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert torch.equal(a, b)


def test_same_function_one_timestep_earlier(model):
    batch = whole_steps()
    wanted = perturbed_model().eval()(**batch)
    output = model(**as_diffusers(batch))
    assert torch.equal(output.sample, wanted[-1])
    assert len(output.predictions) == 3
    sample, predictions = model(**as_diffusers(batch), return_dict=False)
    assert torch.equal(sample, wanted[-1])
    for found, again, prediction in zip(predictions, output.predictions, wanted, strict=True):
        assert torch.equal(found, prediction)
        assert torch.equal(again, prediction)
    assert torch.equal(model(batch["x"], 999, batch["class_labels"]).sample[1], wanted[-1][1])


def test_bad_arguments_are_named(model):
    batch = as_diffusers(whole_steps())
    for change, message in [
        ({"timestep": 1000}, r"timestep must be in \(0, 1000\], got 1001"),
        ({"timestep": torch.tensor([-1, 5])}, r"timestep must be in \(0, 1000\], got 0"),
        ({"class_labels": torch.tensor([0, 6])}, r"class_labels must be in \[0, 5\], got 6"),
        ({"hidden_states": torch.zeros(2, 3, 4, 4)}, r"x must have shape \[B, 3, 8, 8\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(**{**batch, **change})
    with pytest.raises(TypeError, match=r"x must have the model's dtype torch\.float32"):
        model(**{**batch, "hidden_states": batch["hidden_states"].half()})
    with pytest.raises(ValueError, match=r"num_heads must divide dims\[0\]"):
        DiMRTransformer2DModel(**{**TINY.to_dict(), "num_heads": 3})


def test_to_and_from_share_the_parameters(model):
    ours = model.to_dimr()
    assert isinstance(ours, dimr.DiMR)
    assert ours.config == TINY
    assert not ours.training
    assert next(ours.parameters()) is next(model.parameters())
    again = DiMRTransformer2DModel.from_dimr(ours.train())
    assert again.training
    assert [id(p) for p in again.parameters()] == [id(p) for p in model.parameters()]


def saved(model, folder, **options):
    model.save_pretrained(folder, **options)
    return folder


@pytest.mark.parametrize(
    "options",
    [{}, {"safe_serialization": False}, {"variant": "fp16"}, {"max_shard_size": "20KB"}],
    ids=["safetensors", "pickle", "variant", "sharded"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_bit_by_bit(model, tmp_path, options, dtype):
    model = model.to(dtype)
    saved(model, tmp_path, **options)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert ("diffusion_pytorch_model.safetensors.index.json" in files) == ("max_shard_size" in options)
    assert ("diffusion_pytorch_model.fp16.safetensors" in files) == ("variant" in options)
    variant = {"variant": options["variant"]} if "variant" in options else {}
    loaded = DiMRTransformer2DModel.from_pretrained(tmp_path, torch_dtype=dtype, **variant)
    assert loaded.architecture == TINY
    assert not loaded.training
    assert loaded.dtype == dtype
    for (name, a), b in zip(loaded.state_dict().items(), model.state_dict().values(), strict=True):
        assert a.dtype == dtype, name
        assert torch.equal(a, b), name
    batch = as_diffusers(inputs(), dtype)
    assert torch.equal(loaded(**batch).sample, model(**batch).sample)


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_torch_dtype_casts_what_is_loaded(model, tmp_path, low_cpu_mem_usage):
    if low_cpu_mem_usage:
        pytest.importorskip("accelerate")
    saved(model, tmp_path)
    loaded = DiMRTransformer2DModel.from_pretrained(
        tmp_path, torch_dtype=torch.bfloat16, low_cpu_mem_usage=low_cpu_mem_usage
    )
    for a, b in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b.bfloat16())


def test_weights_files_serve_both(model, tmp_path):
    dimr.save_model(model.to_dimr(), tmp_path / "ours")
    saved(model, tmp_path / "theirs")
    ours, theirs = load_file(tmp_path / "ours" / "model.safetensors"), load_file(tmp_path / "theirs" / WEIGHTS)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    (tmp_path / "theirs" / WEIGHTS).write_bytes((tmp_path / "ours" / "model.safetensors").read_bytes())
    loaded = DiMRTransformer2DModel.from_pretrained(tmp_path / "theirs")
    assert torch.equal(loaded(**as_diffusers(inputs())).sample, model(**as_diffusers(inputs())).sample)


def test_weights_of_another_shape(model, tmp_path):
    saved(model, tmp_path)
    with pytest.raises((ValueError, RuntimeError), match="class_embedding"):
        DiMRTransformer2DModel.from_pretrained(tmp_path, num_classes=7)
    loaded = DiMRTransformer2DModel.from_pretrained(
        tmp_path, num_classes=7, ignore_mismatched_sizes=True, low_cpu_mem_usage=False
    )
    assert loaded.branches[0].class_embedding.weight.shape == (8, 16)
    assert torch.equal(loaded.branches[0].embed.position, model.branches[0].embed.position)


def test_configuration_is_kept_and_frozen(model, tmp_path):
    assert model.config.num_classes == 5
    with pytest.raises(AttributeError):
        model.config = {}
    with pytest.raises(Exception, match="cannot use ``update``"):
        model.config.update(num_classes=6)
    model.register_to_config(note="kept")
    saved(model, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["_class_name"] == "DiMRTransformer2DModel"
    assert written["note"] == "kept"
    again = DiMRTransformer2DModel.from_config(DiMRTransformer2DModel.load_config(tmp_path))
    assert again.architecture == TINY


def test_gradient_checkpointing_is_the_models_own(model):
    batch = as_diffusers(inputs())

    def gradients():
        model.zero_grad()
        model(**batch).sample.square().sum().backward()
        return [p.grad.clone() for p in model.branches[-1].blocks.parameters()]

    assert not model.is_gradient_checkpointing
    wanted = gradients()
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    assert {branch.checkpointing for branch in model.branches} == {"blocks"}
    for a, b in zip(gradients(), wanted, strict=True):
        assert torch.equal(a, b)
    model.set_checkpointing("selective")
    assert {branch.checkpointing for branch in model.branches} == {"selective"}
    model.disable_gradient_checkpointing()
    assert not model.is_gradient_checkpointing
    assert {branch.checkpointing for branch in model.branches} == {"none"}
    with pytest.raises(ValueError, match="gradient_checkpointing_func cannot be chosen"):
        model.enable_gradient_checkpointing(torch.utils.checkpoint.checkpoint)


def test_copies(model):
    batch = as_diffusers(inputs())
    wanted = model(**batch).sample
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.config == model.config
        assert torch.equal(copied(**batch).sample, wanted)
        copied.branches[0].class_embedding.weight.data.zero_()
    assert torch.equal(model(**batch).sample, wanted)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_layers_stored_in_eight_bits(model, compute):
    """Linear layers are cast when they are called; embeddings and norms keep their dtype."""
    if not hasattr(model, "enable_layerwise_casting"):
        pytest.skip("this diffusers has no layerwise casting")
    model = model.to(compute)
    batch = as_diffusers(inputs(), compute)
    wanted = model(**batch).sample
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute)
    block = model.branches[0].blocks[0]
    for layer in (block.attn.qkv, block.attn.out, block.mlp.geglu.proj, model.branches[1].upsample.proj):
        assert layer.weight.dtype == torch.float8_e4m3fn
    assert model.branches[0].embed.proj.weight.dtype == block.norm1.p1.dtype == compute
    found = model(**batch).sample
    assert found.dtype == compute
    assert 0 < (found - wanted).float().norm() / wanted.float().norm() < 0.3


@pytest.mark.slow
def test_diffusers_is_imported_on_demand_only():
    code = "import sys, dimr, dimr.cli; assert 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_diffusers(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("dimr.diffusers_pipeline")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"needs diffusers, which is not installed: pip install 'dimr_kernels\[diff"):
        import dimr.diffusers_pipeline  # noqa: F401
