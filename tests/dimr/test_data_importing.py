"""Latents that other programs computed."""

from __future__ import annotations

import io
import json
import os
import pickle

import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("tqdm")

import numpy as np
from safetensors.torch import save_file

from dimr.cli import main
from dimr.data.dataset import SampleRandom
from dimr.data.errors import DataError
from dimr.data.importing import open_latent_files
from dimr.data.latents import LatentDataset
from dimr.data.opening import open_dataset
from dimr.data.spec import DataSpec

N, C, S = 5, 4, 2
LABELS = [3, 0, 7, 7, 1]


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(N, C, S, S, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def moments() -> torch.Tensor:
    return torch.randn(N, 2 * C, S, S, generator=torch.Generator().manual_seed(1))


def write_pair(path, moments, label):
    """A file as NumPy before 1.24 made of ``np.save(path, (moments, label))``."""
    pair = np.empty(2, object)
    pair[:] = [moments, label]
    file = io.BytesIO()
    np.save(file, pair, allow_pickle=True)
    path.write_bytes(file.getvalue())


def write_pairs(folder, moments):
    folder.mkdir()
    for i, (one, label) in enumerate(zip(moments.numpy(), LABELS, strict=True)):
        write_pair(folder / f"{i + 8}.npy", one, np.int64(label))  # 8, 9, 10: numbers, not names, are in order


def encode(source, output, *more) -> int:
    return main([str(a) for a in ("encode", source, "--from", "latents", "--output", output, "--shard-size", 2, *more)])


def fails(capsys, source, output, *more) -> str:
    assert encode(source, output, *more) == 2
    return capsys.readouterr().err.splitlines()[-1]


def drawn(dataset, i) -> torch.Tensor:
    return dataset.load(i, SampleRandom(0, 0, i))


def draw(moments, i, coins=0) -> torch.Tensor:
    random = SampleRandom(0, 0, i)
    for _ in range(coins):
        random.coin()
    return moments[:C] + torch.exp(0.5 * moments[C:]) * random.normal((C, S, S))


def refused(folder):
    with pytest.raises(DataError, match=f"{folder} holds latents of another program: dimr encode .* --from latents"):
        open_dataset(DataSpec(str(folder)))


def test_pairs_of_the_published_code(tmp_path, moments, capsys):
    write_pairs(tmp_path / "features", moments)
    assert encode(tmp_path / "features", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "train with data.flip = false" in said
    assert "5 latents of 4x2x2 in 3 files" in said
    dataset = open_dataset(DataSpec(str(tmp_path / "out"), flip=False))
    assert dataset.labels.tolist() == LABELS
    assert dataset.num_classes == 8
    for i in range(N):
        torch.testing.assert_close(dataset.load(i), 0.18215 * moments[i, :C])
        torch.testing.assert_close(drawn(dataset, i), 0.18215 * draw(moments[i], i))
    refused(tmp_path / "features")


def test_pairs_of_older_numpy(tmp_path, moments):
    """Its modules had other names, and protocol 2 keeps bytes as text."""
    folder = tmp_path / "features"
    folder.mkdir()
    pair = np.empty(2, object)
    pair[:] = [moments[0].numpy(), np.int64(3)]
    for i, protocol in enumerate((2, 3, 4)):
        data = pickle.dumps(pair, protocol)
        if protocol < 4:  # where names have no length
            data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (2,)})
        (folder / f"{i}.npy").write_bytes(header.getvalue() + data)
    files = open_latent_files(folder)
    for i in range(3):
        values, label = files.read(i)
        assert np.array_equal(values[0], moments[0])
        assert label == 3


def test_features_of_dit(tmp_path, latents):
    for name in ("imagenet256_features", "imagenet256_labels"):
        (tmp_path / "dit" / name).mkdir(parents=True)
    for i in range(N):
        np.save(tmp_path / "dit" / "imagenet256_features" / f"{i}.npy", latents[i][None].numpy())
        np.save(tmp_path / "dit" / "imagenet256_labels" / f"{i}.npy", np.array([LABELS[i]]))
    assert encode(tmp_path / "dit", tmp_path / "out") == 0
    dataset = LatentDataset(tmp_path / "out", flip=False)
    assert dataset.labels.tolist() == LABELS
    assert all(torch.equal(drawn(dataset, i), latents[i]) for i in range(N))
    refused(tmp_path / "dit")


@pytest.mark.parametrize("flipped", [True, False])
def test_shards_of_lightningdit(tmp_path, latents, flipped, capsys):
    folder = tmp_path / "shards"
    folder.mkdir()
    mirrored = latents + 10
    for i, part in enumerate((slice(0, 3), slice(3, 5))):
        tensors = {"latents": latents[part].clone(), "labels": torch.tensor(LABELS[part])}
        if flipped:
            tensors["latents_flip"] = mirrored[part].clone()
        save_file(tensors, folder / f"latents_rank00_shard00{i}.safetensors")
    refused(folder)
    assert "give the factor that the latents are to be scaled by (--latent-scale)" in fails(
        capsys, folder, tmp_path / "a"
    )
    assert encode(folder, tmp_path / "scaled", "--latent-scale", 0.5) == 0
    scaled = LatentDataset(tmp_path / "scaled", flip=flipped)
    assert all(torch.equal(scaled.load(i), 0.5 * latents[i]) for i in range(N))
    mean, std = torch.arange(4.0).reshape(1, 4, 1, 1), torch.arange(1.0, 5).reshape(1, 4, 1, 1)
    torch.save({"mean": mean, "std": std}, folder / "latents_stats.pt")
    assert encode(folder, tmp_path / "out") == 0
    dataset = LatentDataset(tmp_path / "out", flip=flipped)
    assert dataset.labels.tolist() == LABELS
    for i in range(N):
        torch.testing.assert_close(dataset.load(i), (latents[i] - mean[0]) / std[0])
        coin = flipped and SampleRandom(0, 0, i).coin()
        torch.testing.assert_close(drawn(dataset, i), ((mirrored if coin else latents)[i] - mean[0]) / std[0])


class TestMeanAndDeviation:
    """The files of REPA, whose second half is the standard deviation and not the log variance."""

    @pytest.fixture
    def root(self, tmp_path, moments):
        pairs = []
        for i, (one, label) in enumerate(zip(moments, LABELS, strict=True)):
            name = f"{i // 3:05d}/img-mean-std-{i:08d}.npy"
            (tmp_path / "vae-sd" / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "vae-sd" / name, torch.cat([one[:C], torch.exp(0.5 * one[C:])]).numpy())
            pairs.append([name, label])
        (tmp_path / "vae-sd" / "dataset.json").write_text(json.dumps({"labels": pairs[::-1]}))
        return tmp_path

    @pytest.mark.parametrize("place", [".", "vae-sd"])
    def test_becomes_moments(self, root, moments, place):
        assert encode(root / place, root / "out") == 0
        dataset = LatentDataset(root / "out", flip=False)
        assert dataset.labels.tolist() == LABELS
        for i in range(N):
            torch.testing.assert_close(dataset.load(i), 0.18215 * moments[i, :C])
            torch.testing.assert_close(drawn(dataset, i), 0.18215 * draw(moments[i], i))
        refused(root / "vae-sd")

    def test_a_deviation_of_zero(self, root):
        np.save(root / "vae-sd" / "00000" / "img-mean-std-00000000.npy", np.zeros((2 * C, S, S), np.float16))
        assert encode(root, root / "out") == 0
        assert drawn(LatentDataset(root / "out", flip=False), 0).abs().max() < 1e-6

    def test_mistakes(self, root, capsys):
        file, labels = root / "vae-sd" / "00000" / "img-mean-std-00000001.npy", root / "vae-sd" / "dataset.json"
        np.save(file, np.full((2 * C, S, S), -1.0))
        message = "00000001.npy cannot be read: its second half has negative values; wanted standard deviations"
        assert message in fails(capsys, root, root / "out")
        np.save(file, np.ones((2 * C, S, S), np.int64))
        assert "wanted floating-point latents [channels, height, width], found torch.int64" in fails(
            capsys, root, root / "out"
        )
        labels.write_text('{"labels": null}')
        assert "dataset.json has no labels" in fails(capsys, root, root / "out")
        labels.unlink()
        assert "vae-sd has no dataset.json with the labels of its latents" in fails(capsys, root, root / "out")


def test_npz_with_moments(tmp_path, moments, latents, capsys):
    path = tmp_path / "a.npz"
    np.savez(path, moments=moments.numpy(), y=LABELS)
    assert encode(path, tmp_path / "out") == 0
    dataset = LatentDataset(tmp_path / "out", flip=False)
    assert dataset.labels.tolist() == LABELS
    torch.testing.assert_close(drawn(dataset, 2), 0.18215 * draw(moments[2], 2))
    with pytest.raises(DataError, match=r"only moments, y; dimr encode .*a.npz --from latents converts latents"):
        open_dataset(DataSpec(str(path), image_size=8))
    np.savez(path, latents=latents.half().numpy(), labels=LABELS)
    assert "--latent-scale" in fails(capsys, path, tmp_path / "other")
    assert encode(path, tmp_path / "other", "--latent-scale", 1) == 0
    assert torch.equal(LatentDataset(tmp_path / "other", flip=False).load(4), latents[4].half().float())
    np.savez(path, latents=latents.numpy())
    assert "a.npz has no latents with labels, only latents" in fails(capsys, path, tmp_path / "b")


def test_goes_on(tmp_path, moments, capsys):
    write_pairs(tmp_path / "features", moments)
    assert encode(tmp_path / "features", tmp_path / "out") == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "latents-00001.safetensors").unlink()
    assert encode(tmp_path / "features", tmp_path / "out") == 0
    assert "2 of 3 shards are there and whole" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == whole
    assert "was made with autoencoder" in fails(capsys, tmp_path / "features", tmp_path / "out", "--latent-scale", 2)


class Payload:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_unusable_latents(tmp_path, moments, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, out = tmp_path / "features", tmp_path / "out"
    assert "no latents at" in fails(capsys, folder, out)
    folder.mkdir()
    assert "holds no latents: wanted numbered .npy files" in fails(capsys, folder, out)
    good = moments[0].numpy()
    write_pair(folder / "0.npy", good, np.int64(3))
    for other, message in (
        ((good, Payload()), "1.npy cannot be read: it holds posix.system"),
        ((good, 0.5), "1.npy: the label is 0.5; wanted a class id"),
        ((good[:2], 1), "1.npy: latents of one shape are wanted, found [2, 2, 2], the first sample has [8, 2, 2]"),
        ((good * np.nan, 1), "1.npy: the latent is not finite"),
        ((good.astype(int), 1), "1.npy: wanted floating-point latents [channels, height, width], found torch.int64"),
        (("text", 1), "1.npy cannot be read"),
    ):
        write_pair(folder / "1.npy", *other)
        assert message in fails(capsys, folder, out)
    (folder / "1.npy").write_bytes((folder / "0.npy").read_bytes()[:-20])
    assert "1.npy cannot be read" in fails(capsys, folder, out)
    np.save(folder / "1.npy", good)
    assert "1.npy cannot be read: wanted a pair of moments and label, found an array of float32" in fails(
        capsys, folder, out
    )
    assert not (tmp_path / "ran").exists()
    options = ("--autoencoder", tmp_path)
    assert "--autoencoder: it is for pictures" in fails(capsys, folder, out, *options)
    assert main(["encode", str(folder), "--output", str(out)]) == 2
    assert "--autoencoder: give the folder of the autoencoder" in capsys.readouterr().err
