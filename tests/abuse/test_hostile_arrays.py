"""Files of tensors and arrays that declare more data than they hold, or other data."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("diffusers")

import numpy as np
from safetensors.torch import load_file, save_file

from dimr.checkpoints import CheckpointError
from tests.abuse.readers import READERS, refusal
from tests.support.pictures import pixels

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_are_none(suffix, tmp_path):
    name = f"published {suffix}"
    path = READERS[name].write(tmp_path)
    state = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    key, value = next(iter(state.items()))
    odd: dict[str, torch.Tensor] = {
        "integers": value.long(), "booleans": value.bool(), "complex": value.to(torch.complex64),
        "a scalar": torch.zeros(()), "nothing": torch.zeros(0), "a dimension more": value[None],
    }  # fmt: skip
    if suffix == ".pth":
        odd |= {
            "sparse": value.to_sparse(), "no data": value.to("meta"), "expanded": torch.zeros(1).expand(2**45),
            "quantized": torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        }  # fmt: skip
    for tensor in odd.values():
        changed = {**state, key: tensor}
        save_file(changed, path) if suffix == ".safetensors" else torch.save(changed, path)
        assert key in refusal(name, path)


def test_a_folder_of_integers(tmp_path):
    path = READERS["folder's weights"].write(tmp_path)
    save_file({key: value.long() for key, value in load_file(path).items()}, path)
    assert "must be a floating-point tensor" in refusal("folder's weights", path)


def test_an_autoencoder_s_weights_under_other_names(tmp_path):
    """diffusers alone would only warn, and initialise the missing weights at random."""
    path = READERS["autoencoder's weights"].write(tmp_path)
    state = load_file(path)
    key, value = state.popitem()
    for changed, problem in (({}, "missing keys"), ({key: value, "x": torch.zeros(1)}, "unexpected keys")):
        save_file({**state, **changed}, path)
        with pytest.raises(CheckpointError, match=f"{tmp_path} cannot be read: 1 {problem}: "):
            READERS["autoencoder's weights"].read(path)


def safetensors_bytes(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS = {
    "a header of 2^60 bytes": safetensors_bytes({"samples": ENTRY}, bytes(4), length=2**60),
    "a header as long as a number can be": safetensors_bytes({"samples": ENTRY}, bytes(4), length=2**64 - 1),
    "data of 2^60 bytes": safetensors_bytes({"samples": {**ENTRY, "shape": [2**58], "data_offsets": [0, 2**60]}}),
    "a shape of 2^124": safetensors_bytes({"samples": {**ENTRY, "shape": [2**62, 2**62]}}, bytes(4)),
    "data before its begin": safetensors_bytes({"samples": {**ENTRY, "data_offsets": [4, 0]}}, bytes(4)),
    "overlapping data": safetensors_bytes({"samples": ENTRY, "labels": ENTRY}, bytes(4)),
    "an unknown type": safetensors_bytes({"samples": {**ENTRY, "dtype": "F31"}}, bytes(4)),
    "a list": safetensors_bytes([ENTRY], bytes(4)),
}


@pytest.mark.parametrize("case", HEADERS)
@pytest.mark.parametrize("name", ["published .safetensors", "folder's weights", "samples .safetensors"])
def test_safetensors_that_declare_too_much(case, name, tmp_path):
    path = READERS[name].write(tmp_path)
    path.write_bytes(HEADERS[case])
    refusal(name, path)


def write_npz(path: Path, keys: list[str], shape: tuple[int, ...], dtype: str, compression: int, lie: bool) -> None:
    """Write arrays that declare more than they hold; with ``lie`` the archive's directory agrees with them."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", compression) as archive:
        for key in keys:
            archive.writestr(f"{key}.npy", header.getvalue() + bytes(64))
            if lie:
                size = int(np.prod(np.array(shape, object))) * np.dtype(dtype).itemsize
                archive.infolist()[-1].file_size = len(header.getvalue()) + size


BOMBED = ["data .npz", "evaluation's images", "evaluation's statistics", "samples .npz"]


@pytest.mark.parametrize("name", BOMBED)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize("lie", [False, True])
def test_arrays_that_declare_too_much(name, compression, lie, tmp_path):
    path = READERS[name].write(tmp_path)
    keys = list(np.load(path))
    for shape in ((2**60,), (2**31, 2**29), (2**40, 2, 2, 3)):
        write_npz(path, keys, shape, "|u1", compression, lie)
        refusal(name, path)


def test_a_compressed_array_is_not_asked_for_before_it_can_be_there(tmp_path, monkeypatch):
    """Two gigabytes would fit in memory, but must not be allocated before the data is there."""
    path = READERS["data .npz"].write(tmp_path)
    write_npz(path, ["images"], (2**31,), "|u1", zipfile.ZIP_DEFLATED, lie=True)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *a, **k: pytest.fail("it was read"))
    assert "cannot hold" in refusal("data .npz", path)


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("evaluation's statistics", {"mu": np.array(["a"]), "sigma": np.array([["b"]])}),
        ("evaluation's statistics", {"mu": np.zeros(3, complex), "sigma": np.eye(3)}),
        ("evaluation's statistics", {"mu": np.zeros(3), "sigma": np.full((3, 3), INF)}),
        ("evaluation's statistics", {"mu": np.zeros(()), "sigma": np.zeros(())}),
        ("samples .npz", {"samples": np.array("text")}),
        ("samples .npz", {"samples": np.zeros(())}),
        ("samples .npz", {"samples": np.zeros((1, 3, 4, 4)), "labels": np.array(["a"])}),
        ("samples .npz", {"samples": np.full((1, 3, 4, 4), NAN)}),
        ("data .npz", {"images": np.zeros((2, 0, 0, 3), np.uint8)}),
        ("data .npz", {"images": np.zeros((), np.uint8)}),
        ("data .npz", {"images": pixels(2), "labels": np.array([2**64 - 1, 0], np.uint64)}),
        ("data .npz", {"images": pixels(2), "labels": np.array([NAN, 0])}),
        ("data .npz", {"images": pixels(2), "labels": [0, 1], "names": np.array("ant")}),
        ("data .npz of picture files", {"jpeg": np.zeros(9, np.uint8), "offsets": np.array([-5, 3])}),
        ("data .npz of picture files", {"jpeg": np.zeros(9, np.uint8), "offsets": np.array([0.0, NAN])}),
        ("data .npz of picture files", {"jpeg": np.zeros(9, np.uint8), "offsets": np.zeros((2, 2), int)}),
        ("data .npz of picture files", {"jpeg": np.zeros(9, np.uint8), "offsets": np.array([9, 0], np.uint64)}),
        ("data .npz of picture files", {"jpeg": np.zeros(9, np.uint8), "offsets": np.array([0, 2**62])}),
    ],
)
def test_arrays_of_something_else(name, arrays, tmp_path):
    path = READERS[name].write(tmp_path)
    for save in (np.savez, np.savez_compressed):
        save(path, **arrays)
        refusal(name, path)
