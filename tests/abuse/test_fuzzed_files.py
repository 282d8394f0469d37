"""Damaged and hostile files raise a documented error that names them; no code runs and no other file changes."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given

pytest.importorskip("PIL")
pytest.importorskip("diffusers")

import numpy as np

from tests.abuse.damage import Payload, damaged
from tests.abuse.readers import READERS, Reader

EMPTY_IS_WHOLE = ("recipe", "data metadata.jsonl", "data metadata.csv")
MISSING_IS_WHOLE = (
    "class names, JSON", "settings of samples", "data dataset.json", "data metadata.jsonl", "data metadata.csv",
    "record of a run's weights", "history of a run",
)  # fmt: skip
TORCH_FILES = ("published .pth", "training state")
ARRAYS = [name for name in READERS if ".npz" in name or name.startswith("evaluation")]
JSON = (
    "data dataset.json", "folder's configuration", "autoencoder's configuration", "class names, JSON", "latents' index",
    "settings of samples",
)  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(reader: Reader, path: Path, may_be_whole: bool = False) -> str | None:
    """Return the error's message; None if the file was read, or reported as missing."""
    before = contents(path.parent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow and diffusers warn of what they pass over
            found = reader.read(path)
    except reader.errors as error:
        assert contents(path.parent) == before
        return str(error)
    assert may_be_whole or found is False, "read as if it were whole"
    return None


def named(reader: Reader, path: Path) -> bool:
    message = refused(reader, path)
    return message is None or path.name in message or str(path.parent) in message


@pytest.mark.parametrize("name", READERS)
def test_whole_files_are_read(name, tmp_path):
    """Check that valid files are accepted; otherwise the other tests would pass by refusing everything."""
    reader = READERS[name]
    assert reader.read(reader.write(tmp_path)) is not False


@pytest.mark.parametrize("name", READERS)
def test_damaged_bytes(name, tmp_path):
    reader = READERS[name]
    path = reader.write(tmp_path)
    whole = path.read_bytes()

    @given(damaged(whole))
    def fuzz(data: bytes) -> None:
        path.write_bytes(data)
        refused(reader, path, may_be_whole=True)

    fuzz()
    path.write_bytes(whole)
    assert reader.read(path) is not False  # nothing that a damaged file left behind is in the way


@pytest.mark.parametrize("name", READERS)
def test_something_else_in_its_place(name, tmp_path):
    reader = READERS[name]
    path = reader.write(tmp_path)
    path.write_bytes(b"")
    assert name in EMPTY_IS_WHOLE or named(reader, path)
    path.unlink()
    assert name in MISSING_IS_WHOLE or named(reader, path)
    path.unlink(missing_ok=True)
    path.mkdir()
    assert name in MISSING_IS_WHOLE or named(reader, path)
    path.rmdir()
    path.symlink_to(path.name)
    assert name in MISSING_IS_WHOLE or named(reader, path)


@pytest.fixture
def payload(tmp_path) -> Iterator[Payload]:
    """Return a payload that must not have run when the test ends."""
    witness = tmp_path / "the payload ran"
    pickle.loads(pickle.dumps(Payload(witness)))
    assert witness.exists()  # it would
    witness.unlink()
    yield Payload(witness)
    assert not witness.exists()


@pytest.mark.parametrize("name", TORCH_FILES)
@pytest.mark.parametrize("how", ["torch", "torch, legacy", "pickle", "among the weights"])
def test_pickles_are_refused(name, how, tmp_path, payload):
    folder = tmp_path / "files"
    folder.mkdir()
    reader = READERS[name]
    path = reader.write(folder)
    if how == "pickle":
        path.write_bytes(pickle.dumps(payload, protocol=2))
    elif how == "among the weights":
        state = torch.load(path, weights_only=True)
        torch.save({**state, next(iter(state)): payload}, path)
    else:
        torch.save({"weight": payload}, path, _use_new_zipfile_serialization=how == "torch")
    assert path.name in str(refused(reader, path))


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("compressed", [False, True])
def test_pickled_arrays_are_refused(name, compressed, tmp_path, payload):
    folder = tmp_path / "files"
    folder.mkdir()
    reader = READERS[name]
    path = reader.write(folder)
    with np.load(path) as arrays:
        hostile = {key: np.array([payload], dtype=object) for key in arrays}
    (np.savez_compressed if compressed else np.savez)(path, **hostile)
    assert "holds Python objects" in str(refused(reader, path))


def test_a_network_with_a_pickle_is_refused(tmp_path, payload):
    reader = READERS["exported network"]
    path = reader.write(tmp_path)
    pickled = io.BytesIO()
    torch.save(payload, pickled)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, pickled.getvalue() if "sample_inputs" in name else data)
    assert "net.pt2: not a network that torch can load: Weights only" in str(refused(reader, path))


def test_an_autoencoder_s_pickle_is_refused(tmp_path, payload):
    folder = tmp_path / "vae"
    folder.mkdir()
    reader = READERS["autoencoder's weights"]
    weights = reader.write(folder)
    weights.unlink()
    torch.save({"weight": payload}, folder / "diffusion_pytorch_model.bin")
    assert str(folder) in str(refused(reader, weights))


def test_torchvision_s_weights_are_read_without_pickles(tmp_path, payload):
    pytest.importorskip("torchvision")
    from dimr.analysis.distortion import torchvision_classifier
    from dimr.checkpoints import CheckpointError

    torch.save({"fc.weight": payload}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights\.pth is not a whole file"):
        torchvision_classifier("resnet18", tmp_path / "weights.pth", torch.device("cpu"))


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "NaN", "1e999", "9" * 5000, "null", '"text"', "[]", "\ufeff{}"],
    ids=["lists", "objects", "NaN", "infinity", "digits", "null", "text", "empty list", "byte order mark"],
)  # fmt: skip
def test_hostile_json(name, text, tmp_path):
    reader = READERS[name]
    path = reader.write(tmp_path)
    path.write_text(text, encoding="utf-8")
    message = refused(reader, path)
    assert message is not None
    assert path.name in message or str(path.parent) in message


def test_nested_toml(tmp_path):
    reader = READERS["recipe"]
    path = reader.write(tmp_path)
    path.write_text("a = " + "[" * 100_000)
    assert "recipe.toml is not TOML" in str(refused(reader, path))


@contextmanager
def as_nobody() -> Iterator[None]:
    """Run as a user without root's right to read every file."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def unreadable(reader: Reader, path: Path) -> bool:
    try:
        return reader.read(path) is False
    except (*reader.errors, PermissionError) as error:
        return path.name in str(error) or str(path.parent) in str(error)


@pytest.mark.parametrize("name", READERS)
def test_no_permission(name):
    folder = Path(tempfile.mkdtemp(prefix="dimr-"))  # pytest's own folders are for their owner only
    try:
        reader = READERS[name]
        path = reader.write(folder)
        for place in folder.rglob("*"):
            place.chmod(0o755)
        folder.chmod(0o755)
        path.chmod(0)
        with as_nobody():
            if os.access(path, os.R_OK, effective_ids=True):
                pytest.skip("permissions mean nothing here")
            assert unreadable(reader, path)
    finally:
        shutil.rmtree(folder)
