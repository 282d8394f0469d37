"""Pipelines on disk, and on their way from and to this package's checkpoints."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers")
pytest.importorskip("PIL")

import diffusers

import dimr
from dimr.checkpoints import CheckpointError
from dimr.cli import main
from dimr.diffusers_pipeline import DiMRPipeline, DiMRTransformer2DModel, convert_from_pipeline, convert_to_pipeline
from dimr.sampling.class_names import save_class_names
from tests.support.autoencoders import tiny_autoencoder
from tests.support.official import CONFIGS, official_model, state_dict_path
from tests.support.pipelines import LATENTS, NAMES, latent_pipeline, pixel_pipeline, seeded
from tests.support.small_models import TINY, perturbed_model

pytestmark = pytest.mark.filterwarnings("ignore:__array")  # diffusers' use of NumPy


def drawn(pipeline, **options):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline([0, 3], generator=seeded(), num_inference_steps=2, **{"output_type": "pt", **options}).images


def same_weights(a, b):
    torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("AutoencoderKL", {}),
        ("AutoencoderTiny", {"safe_serialization": False}),
        ("AutoencoderTiny", {"variant": "fp16"}),
        (None, {"max_shard_size": "20KB"}),
    ],
    ids=["safetensors", "pickle", "variant", "sharded"],
)
def test_there_and_back(tmp_path, kind, options):
    pipeline = pixel_pipeline(id2label=NAMES) if kind is None else latent_pipeline(kind, id2label=NAMES)
    pipeline.save_pretrained(tmp_path, **options)
    variant = {"variant": options["variant"]} if "variant" in options else {}
    again = DiMRPipeline.from_pretrained(tmp_path, **variant)
    same_weights(again.transformer, pipeline.transformer)
    if kind is None:
        assert again.vae is None
        assert not (tmp_path / "vae").exists()
    else:
        assert type(again.vae).__name__ == kind
        same_weights(again.vae, pipeline.vae)
    assert again.get_label_ids(["dog, domestic"]) == [3]
    kept = {name: value for name, value in pipeline.scheduler.config.items() if not name.startswith("_")}
    assert {name: again.scheduler.config[name] for name in kept} == kept
    assert torch.equal(drawn(again), drawn(pipeline))
    again.save_pretrained(tmp_path / "again", **options)
    third = DiMRPipeline.from_pretrained(tmp_path / "again", **variant)
    assert torch.equal(drawn(third), drawn(pipeline))


@pytest.mark.parametrize("options", [{"variant": "fp16"}, {"variant": "fp16", "max_shard_size": "20KB"}])
def test_variants_are_converted_back(tmp_path, options):
    pipeline = pixel_pipeline(id2label=NAMES)
    pipeline.save_pretrained(tmp_path / "pipeline", **options)
    convert_from_pipeline(tmp_path / "pipeline", tmp_path / "folder")
    same_weights(dimr.load_model(tmp_path / "folder"), pipeline.transformer.to_dimr())
    pipeline.save_pretrained(tmp_path / "pipeline", variant="bf16")
    with pytest.raises(CheckpointError, match="transformer holds several variants, bf16, fp16: keep one of them"):
        convert_from_pipeline(tmp_path / "pipeline", tmp_path / "folder")
    pipeline.save_pretrained(tmp_path / "pipeline")
    convert_from_pipeline(tmp_path / "pipeline", tmp_path / "folder")


def test_swapped_schedulers_of_a_loaded_pipeline(tmp_path):
    pipeline = pixel_pipeline()
    pipeline.save_pretrained(tmp_path)
    again = DiMRPipeline.from_pretrained(tmp_path)
    for one in (pipeline, again):
        one.scheduler = diffusers.DDIMScheduler.from_config(one.scheduler.config)
        assert one.scheduler.config.clip_sample is False
        assert one.scheduler.config.timestep_spacing == "trailing"
    assert torch.equal(drawn(again), drawn(pipeline))
    again.save_pretrained(tmp_path / "ddim")
    third = DiMRPipeline.from_pretrained(tmp_path / "ddim")
    assert isinstance(third.scheduler, diffusers.DDIMScheduler)
    assert torch.equal(drawn(third), drawn(pipeline))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(tmp_path, dtype):
    pipeline = latent_pipeline().to(dtype)
    pipeline.save_pretrained(tmp_path, variant="fp16")
    weights = load_file(tmp_path / "transformer" / "diffusion_pytorch_model.fp16.safetensors")
    assert {weight.dtype for weight in weights.values()} == {dtype}
    again = DiMRPipeline.from_pretrained(tmp_path, torch_dtype=dtype, variant="fp16")
    assert {again.transformer.dtype, again.vae.dtype} == {dtype}
    assert torch.equal(drawn(again), drawn(pipeline))


def test_parts_given_while_loading(tmp_path):
    pixel_pipeline(LATENTS).save_pretrained(tmp_path)
    vae = tiny_autoencoder("AutoencoderTiny").eval()
    transformer = DiMRTransformer2DModel.from_pretrained(tmp_path, subfolder="transformer")
    loaded = DiMRPipeline.from_pretrained(tmp_path, transformer=transformer, vae=vae)
    assert loaded.vae is vae
    assert loaded.transformer is transformer
    assert drawn(loaded).shape == (2, 3, 16, 16)
    loaded.save_pretrained(tmp_path / "with")
    without = DiMRPipeline.from_pretrained(tmp_path / "with", vae=None)
    assert without.vae is None
    assert torch.equal(drawn(without, output_type="latent"), drawn(loaded, output_type="latent"))
    with pytest.raises(ValueError, match="other noise levels"):
        DiMRPipeline.from_pretrained(tmp_path, scheduler=diffusers.DDIMScheduler())


def test_a_damaged_folder(tmp_path):
    pixel_pipeline().save_pretrained(tmp_path)
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"the pipeline in .* cannot be read"):
        convert_from_pipeline(tmp_path, tmp_path / "out")
    (tmp_path / "model_index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no pipeline at .*: there is no model_index\.json"):
        convert_from_pipeline(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def checkpoint(folder, config=TINY):
    dimr.save_model(perturbed_model(config), folder)
    save_class_names(list(NAMES.values()), folder)
    return folder


def test_from_a_checkpoint_folder(tmp_path):
    pipeline = DiMRPipeline.from_checkpoint(checkpoint(tmp_path / "model"))
    same_weights(pipeline.transformer, perturbed_model())
    assert pipeline.class_names == list(NAMES.values())
    assert not pipeline.transformer.training
    assert drawn(pipeline).shape == (2, 3, 8, 8)
    named = DiMRPipeline.from_checkpoint(tmp_path / "model", class_names=list("abcde"))
    assert named.get_label_ids("d") == [3]
    schedule = dimr.NoiseSchedule(0.0001, 0.02)
    assert DiMRPipeline.from_checkpoint(tmp_path / "model", schedule=schedule).schedule == schedule


def test_from_a_checkpoint_of_latents(tmp_path):
    checkpoint(tmp_path / "model", LATENTS)
    vae = tiny_autoencoder("AutoencoderKL")
    vae.save_pretrained(tmp_path / "vae")
    pipeline = DiMRPipeline.from_checkpoint(tmp_path / "model", vae=tmp_path / "vae")
    same_weights(pipeline.vae, vae)
    assert DiMRPipeline.from_checkpoint(tmp_path / "model", vae=vae).vae is vae
    assert drawn(pipeline).shape == (2, 3, 16, 16)


def test_from_a_published_file(tmp_path, monkeypatch):
    monkeypatch.setattr("dimr.checkpoints.official.model_config", {"known": CONFIGS["tdrms_2r"]}.__getitem__)
    path = state_dict_path("tdrms_2r")
    pipeline = DiMRPipeline.from_checkpoint(path, model="known")
    same_weights(pipeline.transformer, official_model("tdrms_2r"))
    with pytest.raises(ValueError, match=r"model must say what the file .* holds: one of dimr-tiny-3r"):
        DiMRPipeline.from_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        DiMRPipeline.from_checkpoint(tmp_path / "nothing.pth", model="known")
    with pytest.raises(ValueError, match="model must be None for a folder"):
        DiMRPipeline.from_checkpoint(checkpoint(tmp_path), model="known")


def test_folder_to_pipeline_and_back(tmp_path):
    checkpoint(tmp_path / "model")
    assert convert_to_pipeline(tmp_path / "model", tmp_path / "new" / "pipeline") == tmp_path / "new" / "pipeline"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["pipeline"]
    convert_from_pipeline(tmp_path / "new" / "pipeline", tmp_path / "back")
    for name in ("config.json", "class_names.json", "model.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    with pytest.raises(FileExistsError, match="is there already; a pipeline needs a new folder"):
        convert_to_pipeline(tmp_path / "model", tmp_path / "new" / "pipeline")


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
    checkpoint(tmp_path / "model")

    def broken(self, folder):
        super(DiMRPipeline, self).save_pretrained(folder)
        raise OSError("disk full")

    monkeypatch.setattr(DiMRPipeline, "save_pretrained", broken)
    with pytest.raises(OSError, match="disk full"):
        convert_to_pipeline(tmp_path / "model", tmp_path / "pipeline")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_command(tmp_path, capsys):
    checkpoint(tmp_path / "model", LATENTS)
    tiny_autoencoder("AutoencoderTiny").save_pretrained(tmp_path / "vae")
    model, pipeline, vae = (str(tmp_path / name) for name in ("model", "pipeline", "vae"))
    assert main(["convert", model, pipeline, "--pipeline", "--vae", vae]) == 0
    assert f"wrote {pipeline}" in capsys.readouterr().out
    assert drawn(DiMRPipeline.from_pretrained(pipeline)).shape == (2, 3, 16, 16)
    assert main(["convert", pipeline, str(tmp_path / "back")]) == 0
    same_weights(dimr.load_model(tmp_path / "back"), perturbed_model(LATENTS))
    assert main(["convert", pipeline, str(tmp_path / "published.safetensors")]) == 0
    same_weights_of_file = dimr.load_official_checkpoint(tmp_path / "published.safetensors", LATENTS).state_dict()
    torch.testing.assert_close(same_weights_of_file, perturbed_model(LATENTS).state_dict(), rtol=0, atol=2**-23)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "out", "--vae", "vae"], "--vae: it is a part of a pipeline; give --pipeline too"),
        (["model", "out", "--pipeline", "--vae", "vae"], "vae must have the model's 3 latent channels, got 4"),
        (["model", "vae", "--pipeline"], "vae is there already; a pipeline needs a new folder"),
        (["model", "out", "--pipeline", "--vae", "none"], "no autoencoder at"),
        (["model", "out", "--pipeline", "--model", "dimr-m-3r"], "is a folder, which says itself what it holds"),
        (["pipeline", "out", "--pipeline"], "is a pipeline's folder already"),
    ],
)
def test_bad_commands(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "model")
    tiny_autoencoder("AutoencoderTiny").save_pretrained(tmp_path / "vae")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    assert main(["convert", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_written_names_the_classes(tmp_path):
    """The names by which other programs find the parts: changing one would strand the folders that are out there."""
    latent_pipeline(id2label=NAMES).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "DiMRPipeline"
    assert index["transformer"] == ["dimr.diffusers_pipeline.transformer", "DiMRTransformer2DModel"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert index["scheduler"] == ["diffusers", "DPMSolverMultistepScheduler"]
    assert index["id2label"] == {str(i): name for i, name in NAMES.items()}
    assert (index["beta_start"], index["beta_end"]) == (0.00085, 0.012)
