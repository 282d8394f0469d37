"""Offloading by accelerate and diffusers: weights come in while a module is called, and are elsewhere between calls.

Weights that are on the meta device or on disk between calls are wrong wherever a layer's weights are read without a
call of it, also on a machine without a GPU.
"""

from __future__ import annotations

import dataclasses
import inspect
from random import Random

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

import dimr
import dimr_kernels as dk
from dimr.model.network import without_weights
from dimr_kernels.adoption import adopt_ada_norm, adopt_time_norms
from tests.support.pipelines import latent_pipeline, seeded
from tests.support.small_models import TINY, inputs, perturbed_model

from .neighbours import assert_close, require

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BRANCHES = ("branches.0", "branches.1", "branches.2")


def by_cpu_offload(model: nn.Module, folder: str) -> None:
    require("accelerate").cpu_offload(model, execution_device=DEVICE)


def by_disk_offload(model: nn.Module, folder: str) -> None:
    require("accelerate").disk_offload(model, folder, execution_device=DEVICE)


def by_device_map(model: nn.Module, folder: str) -> None:
    places = dict(zip(BRANCHES, ("cpu", "disk", DEVICE.index or DEVICE.type), strict=True))
    require("accelerate").dispatch_model(model, places, main_device=DEVICE, offload_dir=folder, force_hooks=True)


def in_groups(model: nn.Module, folder: str, kind: str, to_disk: bool) -> None:
    hooks = require("diffusers.hooks")
    if "offload_to_disk_path" not in inspect.signature(hooks.apply_group_offloading).parameters:
        pytest.skip("this diffusers does not offload groups to disk")
    place = {"offload_to_disk_path": folder} if to_disk else {}
    hooks.apply_group_offloading(model, DEVICE, CPU, offload_type=kind, num_blocks_per_group=1, **place)


def by_leaf_groups(model: nn.Module, folder: str) -> None:
    in_groups(model, folder, "leaf_level", to_disk=True)


def by_block_groups(model: nn.Module, folder: str) -> None:
    in_groups(model, folder, "block_level", to_disk=True)


def by_leaf_groups_in_memory(model: nn.Module, folder: str) -> None:
    in_groups(model, folder, "leaf_level", to_disk=False)


OFFLOADERS = [by_cpu_offload, by_disk_offload, by_device_map, by_leaf_groups, by_block_groups, by_leaf_groups_in_memory]


def given() -> dict[str, torch.Tensor]:
    return {name: value.to(DEVICE) for name, value in inputs().items()}


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize("offload", OFFLOADERS)
def test_the_model(offload, backend, tmp_path):
    with dk.use_backend(backend):
        wanted = perturbed_model().to(DEVICE)(**given())
        model = perturbed_model()
        offload(model, str(tmp_path))
        for _ in range(2):
            assert_close(model(**given()), wanted, 1e-5)
    accelerated = offload in (by_cpu_offload, by_disk_offload, by_device_map)
    assert any(p.is_meta for p in model.parameters()) == accelerated


@pytest.mark.parametrize("offload", [by_cpu_offload, by_disk_offload, by_device_map])
def test_sampling(offload, tmp_path):
    """Draw the noise on the device that hooks compute on, for the weights are on none."""
    wanted = dimr.sample(perturbed_model().to(DEVICE), [0, 3], steps=2, generator=seeded())
    model = perturbed_model()
    offload(model, str(tmp_path))
    assert model.device.type == DEVICE.type
    assert_close([dimr.sample(model, [0, 3], steps=2, generator=seeded())], [wanted], 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_loading_to_several_places(share, tmp_path):
    """Load a model of diffusers with a device map that diffusers makes from the memory there is."""
    require("diffusers", "accelerate", "safetensors")
    transformer = require("dimr.diffusers_pipeline").DiMRTransformer2DModel
    model = transformer.from_dimr(perturbed_model())
    given = {"hidden_states": inputs()["x"], "timestep": torch.tensor([3, 900]), "class_labels": torch.tensor([0, 3])}
    wanted = model(**given).predictions
    model.save_pretrained(tmp_path / "model")
    most = int(share * sum(4 * p.numel() for p in model.parameters()))
    loaded = transformer.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": most}, offload_folder=tmp_path / "offloaded"
    )
    assert set(map(str, loaded.hf_device_map.values())) == {"cpu", "disk"}
    assert_close(loaded(**given).predictions, wanted, 1e-5)


CONFIGS = {
    "paper": {},
    "U-ViT's time": {"norm": "layer", "mlp": "gelu"},
    "adaLN-Zero": {"norm": "adaln_zero"},
    "no transformer": {"first_branch": "convnext"},
    "concatenation": {"cascade": "concat"},
}


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="a torch without CUDA knows one device")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_layers_on_different_devices(changes, seed):
    """Put each layer on one of two devices, which exist in name alone; mixing them is an error."""
    model = without_weights(dataclasses.replace(TINY, **changes))
    unsplit = require("dimr.diffusers_pipeline").DiMRTransformer2DModel._no_split_modules
    units = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{unit}.") for unit in units)
        if not inside and (type(module).__name__ in unsplit or not list(module.children())):
            units.append(path)
    assert any(name.endswith("skips.0") for name in units)
    with FakeTensorMode(), torch.no_grad(), dk.use_backend("eager"):
        weights, random = {}, Random(seed)
        for path in units:
            device, unit = torch.device("cuda", random.randrange(2)), model.get_submodule(path)
            weights |= {f"{path}.{name}": torch.empty(p.shape, device=device) for name, p in unit.named_parameters()}
            unit.register_forward_pre_hook(lambda module, args, device=device: tree_map(lambda x: x.to(device), args))
        assert weights.keys() == dict(model.named_parameters()).keys()
        given = {name: torch.empty(value.shape, dtype=value.dtype, device="cuda:0") for name, value in inputs().items()}
        outputs = torch.func.functional_call(model, weights, tuple(given.values()))
    assert {out.device.index for out in outputs} <= {0, 1}


def test_an_offloaded_model_is_neither_packed_nor_saved(tmp_path):
    model = perturbed_model()
    by_cpu_offload(model, "")
    with pytest.raises(ValueError, match="cannot take over the model has a forward of its own"):
        dimr.optimize_for_inference(model)
    with pytest.raises(dimr.CheckpointError, match="has no data here, but on the meta device"):
        dimr.save_model(model, tmp_path / "folder")
    require("accelerate.hooks").remove_hook_from_module(model, recurse=True)
    dimr.save_model(model, tmp_path / "folder")
    with torch.no_grad():
        assert_close(dimr.load_model(tmp_path / "folder")(**inputs()), perturbed_model()(**inputs()))


def test_another_device_is_an_error_where_nothing_is_offloaded():
    with pytest.raises(ValueError, match="x is on meta, the model is on cpu"):
        perturbed_model()(**{**inputs(), "x": inputs()["x"].to("meta")})


# The pipeline


def drawn(pipeline) -> torch.Tensor:
    options = {"guidance_scale": 1.4, "num_inference_steps": 2, "generator": seeded(), "output_type": "pt"}
    return pipeline([0, 3], **options).images


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offload_of_the_pipeline(kind, tmp_path):
    require("diffusers", "safetensors")
    pipeline, wanted = latent_pipeline(), drawn(latent_pipeline().to(DEVICE))
    if not hasattr(pipeline, "enable_group_offload"):
        pytest.skip("this diffusers offloads no pipeline in groups")
    pipeline.enable_group_offload(
        onload_device=DEVICE, offload_type=kind, num_blocks_per_group=1, offload_to_disk_path=str(tmp_path)
    )
    for _ in range(2):
        assert_close([drawn(pipeline)], [wanted], 1e-5)


def test_sequential_offload_of_the_pipeline():
    accelerate = require("accelerate", "diffusers")
    pipeline, wanted = latent_pipeline(), drawn(latent_pipeline().to(DEVICE))
    if DEVICE.type == "cuda":
        pipeline.enable_sequential_cpu_offload()
    else:  # what it does; it asks for an accelerator, and accelerate cannot offload to "cpu:0"
        for part in (pipeline.transformer, pipeline.vae):
            accelerate.cpu_offload(part, CPU)
    assert all(p.is_meta for p in pipeline.transformer.parameters())
    for _ in range(2):
        assert_close([drawn(pipeline)], [wanted], 1e-5)


# Adopted layers


def dit() -> nn.Module:
    diffusers = require("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=4,
            patch_size=2,
        ).eval()  # fmt: skip


def feed_forwards() -> nn.Module:
    attention = require("diffusers.models.attention")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.LayerNorm(16), attention.FeedForward(16, activation_fn="geglu")).eval()


def call(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), dk.time_conditioning(0.3):
        if isinstance(model, nn.Sequential):
            return model(torch.randn(2, 3, 16, generator=generator).to(DEVICE))
        x = torch.randn(2, 4, 4, 4, generator=generator).to(DEVICE)
        steps, labels = torch.tensor([3, 500], device=DEVICE), torch.tensor([1, 2], device=DEVICE)
        return model(x, timestep=steps, class_labels=labels).sample


ADOPTIONS = [
    (feed_forwards, lambda model: dk.adopt(model, layer_norm=True)),
    (dit, lambda model: dk.adopt(model, layer_norm=True)),
    (dit, adopt_time_norms),
    (dit, adopt_ada_norm),
]


@pytest.mark.parametrize(("make", "adopt"), ADOPTIONS)
@pytest.mark.parametrize("offload", [by_cpu_offload, by_disk_offload, by_leaf_groups, by_leaf_groups_in_memory])
def test_adopted_layers(make, adopt, offload, tmp_path):
    plain, model = make(), make()
    assert adopt(plain).swapped or make is dit
    adopt(model)
    wanted = call(plain.to(DEVICE))
    offload(model, str(tmp_path))
    for _ in range(2):
        torch.testing.assert_close(call(model), wanted)


@pytest.mark.parametrize("offload", [by_cpu_offload, by_leaf_groups, by_leaf_groups_in_memory])
def test_adopting_after_offloading(offload, tmp_path):
    """Changes that keep the parameters work; those that add some are refused: they would stay where they are."""
    model, wanted = feed_forwards(), call(feed_forwards().to(DEVICE))
    offload(model, str(tmp_path / "1"))
    report = dk.adopt(model, layer_norm=True)
    assert [row.why for row in report.left] == ["its forward was replaced on the instance"]  # the layer norm
    torch.testing.assert_close(call(model), wanted)
    for adopt in (adopt_time_norms, adopt_ada_norm):
        model, wanted = dit(), call(dit().to(DEVICE))
        offload(model, str(tmp_path / adopt.__name__))
        with pytest.raises(ValueError, match=rf"{adopt.__name__}: the model is offloaded.*adopt first"):
            adopt(model)
        torch.testing.assert_close(call(model), wanted)
