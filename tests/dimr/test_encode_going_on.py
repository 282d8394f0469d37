"""Encoding that was cut off, damaged afterwards, or meets files that cannot be read."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("tqdm")
pytest.importorskip("diffusers")

from safetensors.torch import load_file

from dimr.data.errors import DataError
from dimr.data.latents import LatentDataset
from tests.support.autoencoders import SIZE
from tests.support.encoding import contents, encode, encoder, saved_autoencoders, seven_pictures
from tests.support.pictures import class_folders, pixels

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory):
    return saved_autoencoders(tmp_path_factory)


@pytest.fixture
def pictures(tmp_path):
    return seven_pictures(tmp_path)


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


def test_a_folder_made_otherwise_is_left_alone(autoencoders, pictures, tmp_path):
    encode(autoencoders, pictures, tmp_path / "latents")
    whole = contents(tmp_path / "latents")
    for change in ({"kind": "AutoencoderTiny"}, {"flipped": False}, {"dtype": "float16"}, {"shard_size": 2}):
        key = {"kind": "autoencoder"}.get(*change, *change)
        with pytest.raises(DataError, match=f"was made with {key} = .*: choose another folder"):
            encode(autoencoders, pictures, tmp_path / "latents", **change)
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
