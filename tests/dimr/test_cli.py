from __future__ import annotations

import builtins
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dimr
from dimr.cli import main
from dimr.utils import MissingPackageError
from tests.support.requirements import needs_demo_extra
from tests.support.small_models import perturbed_model

ROOT = Path(__file__).parents[2]
PIXELS = dimr.DiMRConfig(in_channels=1, input_size=8, dims=(16, 8), layers=(1, 1), num_heads=2, num_classes=3)
LATENTS = dimr.DiMRConfig(in_channels=4, input_size=8, dims=(16, 8), layers=(1, 1), num_heads=2, num_classes=3)
UNGUIDED = dimr.DiMRConfig(
    in_channels=3, input_size=8, dims=(16, 8), layers=(1, 1), num_heads=2, num_classes=3, unconditional_class=False
)


def checkpoint(folder, config=PIXELS):
    return dimr.save_model(dimr.DiMR(config), folder / "checkpoint")


def fails(capsys, *arguments) -> str:
    """The one line with which a command that must end with exit code 2 says what is wrong."""
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"dimr {arguments[0]}: error: ")
    return error


def sample(checkpoint, output, *more) -> int:
    short = ["--steps", "2", "--per-class", "2", "--device", "cpu"]
    return main(["sample", str(checkpoint), "--output", str(output), *short, *map(str, more)])


def test_same_seed_same_picture(tmp_path):
    pytest.importorskip("PIL")
    folder = checkpoint(tmp_path)
    files = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for path, seed, batch in zip(files, (3, 3, 4), (64, 5, 64), strict=True):
        assert sample(folder, path, "--seed", seed, "--batch-size", batch) == 0
    first, second, third = (path.read_bytes() for path in files)
    assert first == second
    assert first != third


@needs_demo_extra
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_latents_as_tensors(tmp_path, suffix, capsys):
    folder, path = checkpoint(tmp_path, LATENTS), tmp_path / f"latents{suffix}"
    assert sample(folder, path, "--classes", "2,0") == 0
    assert "4 latents of 4x8x8" in capsys.readouterr().out
    if suffix == ".npz":
        arrays = pytest.importorskip("numpy").load(path)
        samples, labels = arrays["samples"], arrays["labels"]
    else:
        tensors = pytest.importorskip("safetensors.torch").load_file(path)
        samples, labels = tensors["samples"], tensors["labels"]
    assert samples.shape == (4, 4, 8, 8)
    assert labels.tolist() == [2, 2, 0, 0]


@needs_demo_extra
def test_guidance_kinds_change_the_samples(tmp_path):
    load = pytest.importorskip("safetensors.torch").load_file
    folder, path = checkpoint(tmp_path), tmp_path / "a.safetensors"
    # A new model predicts zeros whatever it is asked; make the classes count.
    model = dimr.load_model(folder)
    torch.nn.init.normal_(model.branches[-1].head.conv.weight)
    torch.nn.init.normal_(model.branches[0].class_embedding.weight)
    dimr.save_model(model, folder)
    found = []
    for options in (("--guidance", 0), (), ("--guidance", 3), ("--guidance", 3, "--guidance-power", 2)):
        assert sample(folder, path, "--overwrite", *options) == 0
        found.append(load(path)["samples"].numpy().tobytes())
    assert len(set(found)) == 4


@needs_demo_extra
def test_bad_sample_requests(tmp_path, capsys):
    folder = checkpoint(tmp_path)
    out = tmp_path / "a.png"
    assert "ending in .png" in fails(capsys, "sample", folder, "--output", tmp_path / "a.txt")
    assert "classes 0 to 2, got 7" in fails(capsys, "sample", folder, "--output", out, "--classes", "0,7")
    assert "no configuration at" in fails(capsys, "sample", tmp_path / "none", "--output", out)
    assert f"did you mean {folder}?" in fails(capsys, "sample", tmp_path, "--output", out)
    assert "dimr convert" in fails(capsys, "sample", folder / "model.safetensors", "--output", out)
    assert "got 'tpu'" in fails(capsys, "sample", folder, "--output", out, "--device", "tpu")
    assert "cuda:99 is not there" in fails(capsys, "sample", folder, "--output", out, "--device", "cuda:99")
    latents = checkpoint(tmp_path / "latents", LATENTS)
    assert "--decoder DIR" in fails(capsys, "sample", latents, "--output", out)
    assert "no autoencoder at" in fails(capsys, "sample", latents, "--output", out, "--decoder", tmp_path)
    unguided = checkpoint(tmp_path / "unguided", UNGUIDED)
    assert "no unconditional class" in fails(capsys, "sample", unguided, "--output", out, "--guidance", 1)
    assert not out.exists()


@needs_demo_extra
def test_damaged_checkpoints(tmp_path, capsys):
    folder = checkpoint(tmp_path)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (b"", whole[:20], whole[: len(whole) // 2]):
        weights.write_bytes(damaged)
        assert "model.safetensors" in fails(capsys, "sample", folder, "--output", tmp_path / "a.png")
    weights.write_bytes(whole)
    (folder / "config.json").write_text('{"dims": [16')
    assert "config.json" in fails(capsys, "info", folder)


def test_a_package_of_diffusers_that_cannot_be_imported(tmp_path, monkeypatch, capsys):
    """As torchvision cannot, built for another torch: diffusers says so in the second line."""

    def refused(name, *arguments, **keywords):
        if name == "diffusers_pipeline":
            raise RuntimeError("Failed to import diffusers.models because of (look up):\nnms does not exist\nmore")
        return original(name, *arguments, **keywords)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refused)
    error = fails(capsys, "convert", checkpoint(tmp_path), tmp_path / "pipeline", "--pipeline")
    assert error.endswith("diffusers.models because of (look up): nms does not exist")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "x", "--output", "a.png", "--per-class", "0"], "--per-class: wanted a whole number of at least 1"),
        (["sample", "x", "--output", "a.png", "--guidance", "nan"], "--guidance: wanted a finite number"),
        (["sample", "x", "--output", "a.png", "--per-class", "2", "--count", "9"], "--count: not allowed with"),
        (
            ["analyze", "distortion", "x", "--threshold", "2"],
            "--threshold: wanted a number above 0, at most 1, got '2'",
        ),
        (["demo", "--output", "d", "--size", "12"], "--size: wanted a multiple of 8"),
        (["demo", "--output", "d", "--seed", "-1"], "--seed: wanted"),
        (["demo"], "--output"),
        (["paint"], "paint"),
        ([], "COMMAND"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_decoded_latents(tmp_path, capsys):
    diffusers = pytest.importorskip("diffusers")
    Image = pytest.importorskip("PIL.Image")
    decoders = {
        "tiny": diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
        ),
        "kl": diffusers.AutoencoderKL(
            block_out_channels=(8,), norm_num_groups=4, latent_channels=4,
        ),
    }  # fmt: skip
    folder = checkpoint(tmp_path, LATENTS)
    for name, decoder in decoders.items():
        decoder.save_pretrained(tmp_path / name)
        assert sample(folder, tmp_path / f"{name}.png", "--decoder", tmp_path / name) == 0
        assert "6 images of 3x" in capsys.readouterr().out
        assert Image.open(tmp_path / f"{name}.png").mode == "RGB"
    (tmp_path / "kl" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    message = fails(capsys, "sample", folder, "--output", tmp_path / "a.png", "--decoder", tmp_path / "kl")
    assert "describes 'UNet2DModel'" in message


@pytest.mark.slow
def test_info_of_all_models(capsys):
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == dimr.list_models()
    assert "505.05 M parameters" in lines[dimr.list_models().index("dimr-xl-2r")]


def test_info(tmp_path, capsys):
    assert main(["info", "dimr-tiny-3r"]) == 0
    assert '"input_size": 16' in capsys.readouterr().out
    assert main(["info", str(checkpoint(tmp_path))]) == 0
    assert '"num_classes": 3' in capsys.readouterr().out
    assert "'dimr-xxl' is neither" in fails(capsys, "info", "dimr-xxl")


def test_convert_there_and_back(tmp_path, capsys):
    model = dimr.create_model("dimr-tiny-3r")
    dimr.save_model(model, tmp_path / "folder")
    assert main(["convert", str(tmp_path / "folder"), str(tmp_path / "published.pth")]) == 0
    arguments = ["convert", str(tmp_path / "published.pth"), str(tmp_path / "again"), "--model", "dimr-tiny-3r"]
    assert main(arguments) == 0
    again = dimr.load_model(tmp_path / "again").state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=0)


def test_convert_between_published_files(tmp_path, capsys):
    pytest.importorskip("safetensors")
    model = dimr.create_model("dimr-tiny-3r")
    torch.save(dimr.checkpoints.to_official_state_dict(model), tmp_path / "a.pth")
    named = ["--model", "dimr-tiny-3r"]
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors"), *named]) == 0
    assert main(["convert", str(tmp_path / "b.safetensors"), str(tmp_path / "c.pth"), *named]) == 0
    first, last = (torch.load(tmp_path / name) for name in ("a.pth", "c.pth"))
    torch.testing.assert_close(last, first, atol=1e-6, rtol=0)
    options = (tmp_path / "a.pth", tmp_path / "p.safetensors", *named, "--pipeline")
    assert "a pipeline is a folder" in fails(capsys, "convert", *options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "b.safetensors", "c.pth"]


def test_checkpoint_folders_of_the_published_code(tmp_path, capsys):
    """They hold nnet.pth, nnet_ema.pth, optimizer.pth, lr_scheduler.pth and step.pth."""
    folder = tmp_path / "500.ckpt"
    folder.mkdir()
    raw, averaged = (perturbed_model(dimr.model_config("dimr-tiny-3r"), seed) for seed in (0, 1))
    for name, model in (("nnet.pth", raw), ("nnet_ema.pth", averaged)):
        torch.save(dimr.checkpoints.to_official_state_dict(model), folder / name)
    torch.save(500, folder / "step.pth")
    error = fails(capsys, "sample", folder, "--output", tmp_path / "a.npz")
    assert f"it is a checkpoint of the published code, which dimr convert {folder} OUT --model NAME converts" in error
    assert f"say which model {folder / 'nnet_ema.pth'} holds" in fails(capsys, "convert", folder, tmp_path / "out")
    for source, wanted in ((folder, averaged), (folder / "nnet.pth", raw)):
        assert main(["convert", str(source), str(tmp_path / "out"), "--model", "dimr-tiny-3r"]) == 0
        found = dimr.load_model(tmp_path / "out").state_dict()
        torch.testing.assert_close(found, dict(wanted.state_dict()), atol=1e-6, rtol=0)


@needs_demo_extra
@pytest.mark.parametrize("umask", [0o027, 0o022, 0o077])
def test_files_get_the_mode_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = checkpoint(tmp_path)
        assert sample(folder, tmp_path / "a.safetensors") == 0
        dimr.save_model(dimr.create_model("dimr-tiny-3r"), tmp_path / "tiny")
        assert main(["convert", str(tmp_path / "tiny"), str(tmp_path / "b.safetensors")]) == 0
        if importlib.util.find_spec("diffusers") is not None:
            assert main(["convert", str(tmp_path / "tiny"), str(tmp_path / "pipeline"), "--pipeline"]) == 0
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 6
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {oct(0o666 & ~umask)}


def test_bad_conversions(tmp_path, capsys):
    assert "there is nothing at" in fails(capsys, "convert", tmp_path / "none.pth", tmp_path / "out")
    torch.save({"stages.0.weight": torch.zeros(2)}, tmp_path / "foreign.pth")
    assert "--model" in fails(capsys, "convert", tmp_path / "foreign.pth", tmp_path / "out")
    arguments = ("convert", tmp_path / "foreign.pth", tmp_path / "out", "--model", "dimr-tiny-3r")
    assert "stages.0.weight" in fails(capsys, *arguments)
    assert "must end in" in fails(capsys, "convert", checkpoint(tmp_path), tmp_path / "out.bin")
    assert not (tmp_path / "out").exists()


def test_missing_package_is_one_line(tmp_path, capsys, monkeypatch):
    def missing(module, extra, purpose):
        raise MissingPackageError(f"{purpose} needs {module}: pip install 'dimr_kernels[{extra}]'")

    monkeypatch.setattr("dimr.commands.demo.require", missing)
    assert "dimr_kernels[demo]" in fails(capsys, "demo", "--output", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_missing_numpy_is_one_line(tmp_path):
    script = (
        "import sys, warnings; warnings.simplefilter('ignore'); sys.modules['numpy'] = None\n"
        "from dimr.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    for command in ("demo", "train dimr-m-3r", "encode x", "evaluate x --reference x"):
        options = [] if "evaluate" in command else ["--output", str(tmp_path / "new")]
        words = [sys.executable, "-c", script, *command.split(), *options]
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2, done.stderr
        assert "not installed: pip install" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "dimr", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for command in ("demo", "sample", "convert", "info"):
        assert command in done.stdout


@needs_demo_extra
def test_samples_through_the_engine(tmp_path, capsys):
    load = pytest.importorskip("safetensors.torch").load_file
    folder = dimr.save_model(perturbed_model(PIXELS), tmp_path / "checkpoint")
    drawn = []
    for name, options in (("plain", ()), ("engine", ("--engine",)), ("without", ("--no-engine",))):
        path = tmp_path / f"{name}.safetensors"
        assert sample(folder, path, *options) == 0
        how = capsys.readouterr().out.splitlines()[-1]
        assert " images/s with " in how
        assert ("inference engine in float32, no CUDA graphs" in how) == (name == "engine")
        drawn.append(load(path)["samples"])
    plain, engine, without = drawn
    assert torch.equal(plain, without)
    assert not torch.equal(plain, engine)
    torch.testing.assert_close(engine, plain, rtol=1e-3, atol=1e-3)
