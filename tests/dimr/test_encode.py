"""Latents of pictures: what they hold, what training reads of them, and the command that makes them."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("tqdm")
pytest.importorskip("diffusers")

import numpy as np

from dimr.cli import main
from dimr.data.dataset import SampleRandom
from dimr.data.encoding import Encoder, EncodingSettings
from dimr.data.errors import DataError
from dimr.data.latents import LatentDataset
from dimr.data.loader import TrainingLoader
from dimr.data.opening import open_dataset
from dimr.data.spec import DataSpec
from dimr.sampling.autoencoder import decode_latents, load_autoencoder
from tests.support.autoencoders import SIZE
from tests.support.encoding import encode, encoder, opened, saved_autoencoders, seven_pictures

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory):
    return saved_autoencoders(tmp_path_factory)


@pytest.fixture
def pictures(tmp_path):
    return seven_pictures(tmp_path)


def images_of(pictures):
    dataset = opened(pictures)
    return torch.stack([dataset.load(i) for i in range(len(dataset))]).float() / 127.5 - 1, dataset


@torch.no_grad()
def test_variational_latents(autoencoders, pictures, tmp_path):
    encode(autoencoders, pictures, tmp_path / "latents")
    images, source = images_of(pictures)
    latents = LatentDataset(tmp_path / "latents")
    autoencoder = load_autoencoder(autoencoders["AutoencoderKL"])
    assert latents.sample_shape == (4, SIZE // 2, SIZE // 2)
    assert latents.labels.tolist() == source.labels.tolist()
    assert (latents.class_names, latents.num_classes) == (source.class_names, 3)
    for i in range(len(source)):
        plain, mirrored = (autoencoder.encode(view).latent_dist for view in (images[[i]], images[[i]].flip(-1)))
        torch.testing.assert_close(latents.load(i), 0.18215 * plain.mean[0], rtol=1e-4, atol=1e-5)
        for epoch in range(4):
            random, same = SampleRandom(0, epoch, i), SampleRandom(0, epoch, i)
            chosen = mirrored if same.coin() else plain
            drawn = chosen.mean[0] + chosen.std[0] * same.normal(latents.sample_shape)
            torch.testing.assert_close(latents.load(i, random), 0.18215 * drawn, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_plain_latents(autoencoders, pictures, tmp_path):
    encode(autoencoders, pictures, tmp_path / "latents", "AutoencoderTiny", flipped=False, dtype="float16")
    images, _ = images_of(pictures)
    latents = LatentDataset(tmp_path / "latents", flip=False)
    wanted = load_autoencoder(autoencoders["AutoencoderTiny"]).encode(images).latents
    for i in range(len(latents)):
        assert latents.load(i).dtype == torch.float32
        torch.testing.assert_close(latents.load(i, SampleRandom(0, 0, i)), wanted[i], rtol=1e-3, atol=1e-3)
    with pytest.raises(DataError, match="holds no mirrored latents: set flip = false"):
        LatentDataset(tmp_path / "latents")
    with pytest.raises(DataError, match="holds latents of 16 pixels, not of 32"):
        open_dataset(DataSpec(str(tmp_path / "latents"), image_size=32, flip=False))


def test_training_reads_them(autoencoders, pictures, tmp_path):
    encode(autoencoders, pictures, tmp_path / "latents")
    dataset = open_dataset(DataSpec(str(tmp_path / "latents")))
    batches = [next(iter(TrainingLoader(dataset, 7, num_workers=n))).to("cpu") for n in (0, 2)]
    assert torch.equal(batches[0][0], batches[1][0])
    assert sorted(batches[0][1].tolist()) == dataset.labels.tolist()
    copied = pickle.loads(pickle.dumps(dataset))  # as for a worker that is not forked
    assert torch.equal(copied.load(3), dataset.load(3))


def test_latents_that_are_not_finite(autoencoders, pictures, tmp_path):
    made = encoder(autoencoders, pictures, tmp_path / "latents", dtype="float16")
    made.autoencoder.quant_conv.weight.data.mul_(1e6)
    with pytest.raises(DataError, match="not finite in float16"):
        next(made.run())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shard_size": 0}, "shard_size must be at least 1"),
        ({"dtype": "int8"}, "dtype must be one of float32, float16"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        EncodingSettings(**arguments)


def test_command(autoencoders, pictures, tmp_path, capsys):
    def command(*more, source=pictures):
        required = ["--autoencoder", autoencoders["AutoencoderTiny"], "--output", tmp_path / "latents"]
        return main([str(a) for a in ("encode", source, *required, "--device", "cpu", "--shard-size", 4, *more)])

    assert command("--image-size", SIZE + 1) == 2
    assert "image_size must be a multiple of 2 for this autoencoder, got 17" in capsys.readouterr().err
    assert command("--image-size", SIZE) == 0
    assert "7 latents of 4x8x8 in 2 files" in capsys.readouterr().out
    assert command("--image-size", SIZE, "--workers", 2) == 0
    assert "2 of 2 shards are there and whole" in capsys.readouterr().out
    assert command(source=tmp_path / "latents") == 2
    assert f"wanted pictures, {tmp_path / 'latents'} holds latents" in capsys.readouterr().err
    assert command(source=tmp_path / "nowhere") == 2
    assert "no data at" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "latents")
    (tmp_path / "latents").write_text("a file")
    assert command("--image-size", SIZE) == 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="no photographs beside the checkout")
def test_real_photographs_survive(tmp_path):
    (tmp_path / "pictures").mkdir()
    for path in sorted((SHARED / "photos256").iterdir())[:4]:
        shutil.copy(path, tmp_path / "pictures")
    source = open_dataset(DataSpec(str(tmp_path / "pictures"), image_size=128))
    autoencoder = load_autoencoder(SHARED / "taesd")
    for _ in Encoder(source, autoencoder, tmp_path / "latents", EncodingSettings()).run():
        pass
    latents = LatentDataset(tmp_path / "latents")
    decoded = decode_latents(autoencoder, torch.stack([latents.load(i) for i in range(4)]))
    original = torch.stack([source.load(i) for i in range(4)]).float() / 127.5 - 1
    decibels = -10 * np.log10(((decoded - original) / 2).square().mean().item())
    assert decibels > 20
