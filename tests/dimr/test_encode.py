"""``dimr encode``: the latents, what training reads of them, and runs that are interrupted or meet damaged files."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("tqdm")
pytest.importorskip("diffusers")

import numpy as np
from safetensors.torch import load_file

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
from tests.support.encoding import contents, encode, encoder, opened, saved_autoencoders, seven_pictures
from tests.support.pictures import class_folders, encoded, pixels

ROOT = Path(__file__).parents[2]
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


def test_going_on_makes_the_same_files_and_keeps_the_finished(autoencoders, pictures, tmp_path):
    encode(autoencoders, pictures, tmp_path / "whole")
    partly = tmp_path / "partly"
    run = encoder(autoencoders, pictures, partly).run(batch_size=2)
    assert [next(run) for _ in range(4)] == [2, 1, 2, 1]  # the second shard is encoded, not written
    run.close()
    assert sorted(contents(partly)) == ["index.json", "latents-00000.safetensors"]
    with pytest.raises(DataError, match="partly holds 1 of 3 shards: finish dimr encode first"):
        LatentDataset(partly)
    (partly / ".latents-00001.77.partial.safetensors").write_bytes(b"left by a killed run")
    before = (partly / "latents-00000.safetensors").stat().st_mtime_ns
    encode(autoencoders, pictures, partly)
    assert contents(partly) == contents(tmp_path / "whole")
    assert (partly / "latents-00000.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["missing", "changed", "shorter"])
def test_damaged_files_are_made_again(autoencoders, pictures, tmp_path, damage, caplog):
    encode(autoencoders, pictures, tmp_path / "latents")
    whole = contents(tmp_path / "latents")
    path = tmp_path / "latents" / "latents-00001.safetensors"
    data = whole[path.name]
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if damage == "changed" else data[:-1])
    if damage != "changed":  # sizes are looked at whenever latents are opened, checksums by dimr encode
        with pytest.raises(DataError, match=r"latents-00001.safetensors: .*; run dimr encode again"):
            LatentDataset(tmp_path / "latents")
        dataset = LatentDataset(tmp_path / "latents", max_skipped=1)
        assert (len(dataset), len(dataset.missing)) == (4, 1)
    encode(autoencoders, pictures, tmp_path / "latents")
    assert contents(tmp_path / "latents") == whole
    assert "latents-00001.safetensors is missing or damaged and is made again" in caplog.text


def test_replaced_pictures_are_encoded_again(autoencoders, pictures, tmp_path, caplog):
    before = encode(autoencoders, pictures, tmp_path / "latents")
    path = sorted(pictures.glob("*/*.png"))[4]  # in the second of three shards
    old = LatentDataset(tmp_path / "latents")
    old = [old.load(i) for i in range(7)]
    path.write_bytes(encoded(255 - pixels(1, SIZE)[0]))
    after = encode(autoencoders, pictures, tmp_path / "latents")
    assert "latents-00001.safetensors was made from files that have changed and is made again" in caplog.text
    assert [a == b for a, b in zip(before["shards"], after["shards"], strict=True)] == [True, False, True]
    new = LatentDataset(tmp_path / "latents")
    assert [torch.equal(a, new.load(i)) for i, a in enumerate(old)] == [True] * 4 + [False] + [True] * 2
    whole = encode(autoencoders, pictures, tmp_path / "whole")
    assert whole == after
    caplog.clear()
    assert encode(autoencoders, pictures, tmp_path / "latents") == after
    assert not caplog.records


def test_folders_of_older_versions_go_on(autoencoders, pictures, tmp_path):
    """They have neither stamps nor the options of decoding."""
    encode(autoencoders, pictures, tmp_path / "latents")
    path = tmp_path / "latents" / "index.json"
    index = json.loads(path.read_text())
    del index["settings"]["decoding"]
    for shard in index["shards"]:
        del shard["stamp"]
    removed = index["shards"].pop()
    path.write_text(json.dumps(index))
    assert encode(autoencoders, pictures, tmp_path / "latents")["shards"][-1].items() >= removed.items()
    assert len(LatentDataset(tmp_path / "latents")) == 7


def test_a_folder_made_otherwise_is_left_alone(autoencoders, pictures, tmp_path):
    encode(autoencoders, pictures, tmp_path / "latents")
    whole = contents(tmp_path / "latents")
    for change in ({"kind": "AutoencoderTiny"}, {"flipped": False}, {"dtype": "float16"}, {"shard_size": 2}):
        key = {"kind": "autoencoder"}.get(*change, *change)
        with pytest.raises(DataError, match=f"was made with {key} = .*: choose another folder"):
            encode(autoencoders, pictures, tmp_path / "latents", **change)
    dataset = open_dataset(DataSpec(str(pictures), image_size=SIZE, background="black"))
    with pytest.raises(DataError, match=r"was made with decoding = .*'white'.*, not .*'black'"):
        Encoder(dataset, load_autoencoder(autoencoders["AutoencoderKL"]), tmp_path / "latents", EncodingSettings(3))
    next(pictures.glob("*/*.png")).unlink()
    with pytest.raises(DataError, match=r"was made with source = .*: choose another folder"):
        encode(autoencoders, pictures, tmp_path / "latents")
    assert contents(tmp_path / "latents") == whole
    (tmp_path / "latents" / "index.json").write_text("{}")
    with pytest.raises(DataError, match=r"index.json is not an index of latents: KeyError"):
        encode(autoencoders, pictures, tmp_path / "latents")


def test_corrupt_pictures(autoencoders, pictures, tmp_path):
    paths = sorted(pictures.glob("*/*.png"))
    for path in paths[3:6]:  # the whole second shard
        path.write_bytes(b"not a picture")
    with pytest.raises(DataError, match=f"^{paths[3]}: not a picture that Pillow can read"):
        encode(autoencoders, pictures, tmp_path / "latents")
    with pytest.raises(DataError, match="more than max_skipped = 2 files are unreadable"):
        encode(autoencoders, pictures, tmp_path / "latents", max_skipped=2)
    index = encode(autoencoders, pictures, tmp_path / "latents", max_skipped=3)
    assert (index["samples"], index["skipped"], index["complete"]) == (4, 3, True)
    assert [name for shard in index["shards"] for name, _ in shard["skipped"]] == [str(p) for p in paths[3:6]]
    latents = LatentDataset(tmp_path / "latents")
    assert latents.labels.tolist() == [0, 0, 0, 2]
    assert len({latents.load(i).sum().item() for i in range(4)}) == 4


def test_skipped_pictures_count_when_a_run_goes_on(autoencoders, pictures, tmp_path):
    for path in sorted(pictures.glob("*/*.png"))[::3][:2]:  # one each in the first and the second shard
        path.write_bytes(b"")
    run = encoder(autoencoders, pictures, tmp_path / "latents", max_skipped=1).run(batch_size=3)
    next(run)
    with pytest.raises(DataError, match="more than max_skipped = 1"):
        next(run)
    with pytest.raises(DataError, match="more than max_skipped = 1"):
        encode(autoencoders, pictures, tmp_path / "latents", max_skipped=1)
    assert encode(autoencoders, pictures, tmp_path / "latents", max_skipped=2)["skipped"] == 2


def test_a_full_disk(autoencoders, pictures, tmp_path):
    """A limit on the size of files stands in for it: the write itself fails."""
    resource = pytest.importorskip("resource")
    run = encoder(autoencoders, pictures, tmp_path / "latents").run(batch_size=3)
    next(run), next(run)
    before = contents(tmp_path / "latents")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(DataError, match=r"latents: File too large; 1 of 3 shards are finished and kept"):
            next(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(tmp_path / "latents") == before
    assert encode(autoencoders, pictures, tmp_path / "latents")["complete"]


# Kills itself at the n-th time that a written file should get its name.
KILLED = """
import os, signal, sys
left, named = int(sys.argv.pop(1)), os.replace

def name_or_die(*files):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    named(*files)

os.replace = name_or_die
from tests.support.torchvision_operators import declare_missing_operators
declare_missing_operators()
from dimr.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_killed_at_any_moment(autoencoders, tmp_path):
    pictures, folder = tmp_path / "pictures", tmp_path / "latents"
    class_folders(pictures, pixels(30, SIZE))
    encode(autoencoders, pictures, tmp_path / "whole")
    options = [
        "encode", pictures, "--autoencoder", autoencoders["AutoencoderKL"], "--output", folder, "--image-size",
        str(SIZE), "--shard-size", "3", "--batch-size", "1", "--device", "cpu",
    ]  # fmt: skip
    for last in (1, 2, 5):
        command = [sys.executable, "-c", KILLED, str(last), *options]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert process.returncode == -signal.SIGKILL, process.stderr
    done = json.loads((folder / "index.json").read_text())["shards"]
    assert 0 < len(done) < 10
    for shard in done:
        assert len(load_file(folder / shard["file"])["labels"]) == 3
    index = encode(autoencoders, pictures, folder)
    assert index["complete"]
    assert sorted(contents(folder)) == sorted(contents(tmp_path / "whole"))
    ours, whole = (LatentDataset(path) for path in (folder, tmp_path / "whole"))
    for i in range(30):  # batches of another size round otherwise
        torch.testing.assert_close(ours.load(i), whole.load(i), rtol=1e-4, atol=1e-5)
